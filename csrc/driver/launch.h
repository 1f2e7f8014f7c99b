// Loading an image and launching its kernel.
#pragma once

#include <cstddef>

#include "csrc/driver/driver.h"
#include "csrc/driver/image.h"
#include "flash_attn4/status.h"

namespace fa4::driver {

struct Extent {
  unsigned x = 1, y = 1, z = 1;
};

struct Launch {
  Extent grid;
  unsigned threads = 0;        // per block
  size_t shared_bytes = 0;     // dynamic
  int device = 0;              // ordinal
  void* stream = nullptr;      // CUstream
  const void* args = nullptr;  // the kernel's single parameter struct
  // The kernel waits for the grids before it by itself (griddepcontrol.wait), so its blocks may be set
  // up while the last blocks of such a grid still run.
  bool early_start = false;
};

/// Launches kernel `name` of `image`, which is loaded at its first launch and kept. Works on any
/// thread and inside stream capture, the first launch included.
Status launch(const char* name, const Image& image, const Launch& request);

}  // namespace fa4::driver
