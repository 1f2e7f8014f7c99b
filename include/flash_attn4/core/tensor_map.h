// A tensor map as kernels receive it: the 128 bytes that the driver encodes and the copy engine
// reads.
#pragma once

#include <cstdint>

namespace fa4 {

struct alignas(64) TensorMap {
  uint8_t bytes[128];
};

}  // namespace fa4
