// Hardware barriers 0..15 of a CTA. `threads` counts those that arrive and those that wait.
#pragma once

#include "flash_attn4/device/device.cuh"

namespace fa4::ptx {

FA4_D void bar_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives without waiting.
FA4_D void bar_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace fa4::ptx
