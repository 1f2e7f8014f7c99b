// Launch of the SM100 backward kernels.
#pragma once

#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4::sm100 {

/// Clocks that a call is predicted to take with this form of a kernel, for comparing forms.
double bwd_clocks(const KernelRow& kernel, const BwdParams& params, int sms);

/// What bwd_workspace_bytes tells of a call that has passed its checks.
Status bwd_workspace_bytes(const KernelRow& kernel, const BwdParams& params, int64_t* bytes);

/// Runs `kernel`, and what belongs around it, on a call that has passed its checks. q, k, v and
/// dout have to be readable, see gpu::readable.
Status launch_bwd(const KernelRow& kernel, const BwdParams& params, const Context& context);

}  // namespace fa4::sm100
