// Checks of a call's values, before a kernel is chosen. Nothing here reads tensor contents.
#pragma once

#include "flash_attn4/params.h"
#include "flash_attn4/status.h"

namespace fa4 {

Status check(const FwdParams& params);
Status check(const BwdParams& params);
Status check(const CombineParams& params);

}  // namespace fa4
