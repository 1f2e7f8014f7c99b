// The C++ API: check, choose a kernel, run it.
#include "csrc/cpu/backend.h"
#include "csrc/dispatch/check.h"
#include "csrc/dispatch/emulation.h"
#include "csrc/dispatch/gpu.h"
#include "csrc/dispatch/select.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4 {

namespace {

/// The kernel for the call, after its checks.
template <class Params>
Status choose(const Params& params, const Context& context, const KernelRow** kernel) {
  if (Status s = check(params); !s.ok()) return s;
  Place place;
  if (context.device.kind == Device::kCuda || emulating()) {
    if (Status s = gpu::describe(context.device, &place); !s.ok()) return s;
  }
  Request request = request_of(params);
  request.ctas = forced_ctas.load(std::memory_order_relaxed);
  const auto cost = [&](const KernelRow& row) { return gpu::clocks(row, params, place); };
  return select_kernel(request, place, cost, kernel);
}

}  // namespace

Status fwd(const FwdParams& params, const Context& context) {
  const KernelRow* kernel = nullptr;
  if (Status s = choose(params, context, &kernel); !s.ok()) return s;
  if (kernel->target == Target::kCpu) return cpu::fwd(params, context);
  return gpu::fwd(*kernel, params, context);
}

Status bwd(const BwdParams& params, const Context& context) {
  const KernelRow* kernel = nullptr;
  if (Status s = choose(params, context, &kernel); !s.ok()) return s;
  if (kernel->target == Target::kCpu) return cpu::bwd(params, context);
  return gpu::bwd(*kernel, params, context);
}

Status bwd_workspace_bytes(const BwdParams& params, const Context& context, int64_t* bytes) {
  *bytes = 0;
  const KernelRow* kernel = nullptr;
  if (Status s = choose(params, context, &kernel); !s.ok()) return s;
  if (kernel->target == Target::kCpu) return {};
  return gpu::bwd_workspace_bytes(*kernel, params, bytes);
}

Status combine(const CombineParams& params, const Context& context) {
  const KernelRow* kernel = nullptr;
  if (Status s = choose(params, context, &kernel); !s.ok()) return s;
  if (params.batch * params.rows * params.heads == 0) return {};
  if (kernel->target == Target::kCpu) return cpu::combine(params, context);
  return gpu::combine(*kernel, params, context);
}

const char* version() {
  return FA4_VERSION;
}

}  // namespace fa4
