// A compiled kernel as bytes in this library.
#pragma once

#include <cstddef>

namespace fa4::driver {

/// One kernel's machine code and, for the emulator, the PTX it was assembled from. Null without GPU
/// code.
struct Image {
  const unsigned char* cubin_begin = nullptr;
  const unsigned char* cubin_end = nullptr;
  const unsigned char* ptx_begin = nullptr;
  const unsigned char* ptx_end = nullptr;

  size_t cubin_bytes() const { return static_cast<size_t>(cubin_end - cubin_begin); }
  size_t ptx_bytes() const { return static_cast<size_t>(ptx_end - ptx_begin); }
};

}  // namespace fa4::driver
