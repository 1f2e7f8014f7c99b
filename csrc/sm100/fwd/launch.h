// Launch of the SM100 forward kernels.
#pragma once

#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4::sm100 {

/// Runs `kernel` on a call that has passed its checks. q, k and v have to be readable, see
/// gpu::readable.
Status launch_fwd(const KernelRow& kernel, const FwdParams& params, const Context& context);

/// What the call is predicted to take with this form of a kernel, see Cost in dispatch/select.h.
double fwd_clocks(const KernelRow& kernel, const FwdParams& params, int sms);

}  // namespace fa4::sm100
