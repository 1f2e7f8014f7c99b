// Hand-over of registers between warpgroups. By all warps of a warpgroup.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Waits until the pool holds enough.
template <int kRegisters>
FA4_D void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
FA4_D void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fa4::ptx
