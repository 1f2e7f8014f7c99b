// Overlap of a grid's end with the beginning of the next one in its stream.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// Until the grids before have ended and their memory is visible. Returns at once where the launch
/// does not ask for an early start.
FA4_D void griddepcontrol_wait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// The next grid may begin, as far as this block is concerned.
FA4_D void griddepcontrol_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace fa4::ptx
