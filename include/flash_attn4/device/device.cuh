// Words of device code.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flash_attn4/core/types.h"

/// A function of device code. Always inlined: a wgmma sequence across a call would be serialised.
#define FA4_D __device__ __forceinline__

namespace fa4 {

constexpr uint32_t kAllLanes = 0xffffffffu;

FA4_D int warp_index() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);  // known to be uniform
}
FA4_D int lane_index() {
  return static_cast<int>(threadIdx.x) % 32;
}

/// 32-bit address of shared memory, as PTX takes it.
FA4_D uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace fa4
