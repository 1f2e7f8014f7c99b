// One lane of a warp.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

/// True in one lane, the same one every time. By a whole warp; costs no register, as lane == 0
/// would.
FA4_D bool elect_sync() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

}  // namespace fa4::ptx
