// The CPU backend: entry points behind dispatch. Arguments are checked before these are called,
// except for what only the CPU can see: the contents of cu_seqlens, seqused and page_table.
#pragma once

#include "flash_attn4/flash_attn4.h"

namespace fa4::cpu {

Status fwd(const FwdParams& params, const Context& context);
Status bwd(const BwdParams& params, const Context& context);
Status combine(const CombineParams& params, const Context& context);

}  // namespace fa4::cpu
