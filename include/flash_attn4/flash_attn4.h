// The C++ API: exact attention without torch. All functions are thread-safe, check every argument
// before anything is launched or written, and never throw.
#pragma once

#include <string>

#include "flash_attn4/params.h"
#include "flash_attn4/status.h"

namespace fa4 {

struct Device {
  enum Kind : uint8_t { kCpu, kCuda };
  Kind kind = kCpu;
  int ordinal = 0;
};

/// Splits [0, count) over threads and returns when body has covered it. body(begin, end, context)
/// must not throw. Null in Context: the library's own threads.
using ParallelFor = void (*)(int64_t count, void (*body)(int64_t begin, int64_t end, void* context),
                             void* context);

/// Where and with what a call runs.
struct Context {
  Device device;
  void* stream = nullptr;              // CUDA: a CUstream; null is the default stream
  ParallelFor parallel_for = nullptr;  // CPU
  int num_threads = 0;  // CPU: pieces worth making; 0: as many as the machine has cores
};

/// out = softmax(mask(q k^T * softmax_scale)) v and lse, see FwdParams.
Status fwd(const FwdParams& params, const Context& context);

/// Gradients of fwd with respect to q, k, v and sink, from dout and dlse. Needs fwd's out and lse.
/// On a GPU it needs scratch memory, see bwd_workspace_bytes.
Status bwd(const BwdParams& params, const Context& context);

/// Bytes that bwd needs at BwdParams::workspace for this call; 0 on the CPU. It depends on sizes,
/// options and the device: addresses may be null still, and no memory of the device is read. Fails
/// where bwd would for these.
Status bwd_workspace_bytes(const BwdParams& params, const Context& context, int64_t* bytes);

/// Merges partial results over splits of the keys, see CombineParams.
Status combine(const CombineParams& params, const Context& context);

/// Version of the library, "major.minor.patch".
const char* version();

}  // namespace fa4
