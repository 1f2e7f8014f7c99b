// From a call to the kernel that serves it, or to every reason why none does.
#pragma once

#include <functional>
#include <string>

#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/params.h"
#include "flash_attn4/status.h"

namespace fa4 {

/// What a call asks of a kernel.
struct Request {
  Op op;
  DType dtype;
  int64_t head_dim = 8;
  int64_t head_dim_v = 8;
  uint32_t features = 0;  // bit(Feature)
  int ctas = 0;           // per tile, where the kernel has such a form; 0: the cheaper form
};
Request request_of(const FwdParams& params);
Request request_of(const BwdParams& params);
Request request_of(const CombineParams& params);

/// Where it runs: the CPU, or a GPU of a compute capability.
struct Place {
  bool cpu = true;
  int major = 0;
  int minor = 0;
  std::string description = "cpu";
  int sms = 0;
};

/// Clocks that a kernel is predicted to take for a call; comparable among its forms.
using Cost = std::function<double(const KernelRow&)>;

/// The first kernel of the list that serves the request; of its forms that serve it too the
/// cheapest, the first of equals. Otherwise kUnsupported, with the reasons of every kernel of the
/// operation that runs at this place (element type, head dims, options that it lacks), or of all of
/// them when none does.
Status select_kernel(const Request& request, const Place& place, const Cost& cost,
                     const KernelRow** result);
/// The same without costs: the first kernel of the list.
Status select_kernel(const Request& request, const Place& place, const KernelRow** result);

/// What keeps a kernel from serving a request; nothing set when it does.
struct Mismatch {
  bool place = false;
  bool dtype = false;
  bool head_dim = false;
  bool head_dim_v = false;
  uint32_t features = 0;  // asked for and not there

  bool any() const { return place || dtype || head_dim || head_dim_v || features != 0; }
};
Mismatch mismatch(const KernelRow& kernel, const Request& request, const Place& place);

/// The mismatch in words: "runs on sm90a, dtype is float32, no paged".
std::string describe(const Mismatch& mismatch, const KernelRow& kernel, const Request& request);

}  // namespace fa4
