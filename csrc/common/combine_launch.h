// Launch of the combine kernels.
#pragma once

#include "csrc/dispatch/kernel_list.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4 {

Status launch_combine(const KernelRow& kernel, const CombineParams& params, const Context& context);

}  // namespace fa4
