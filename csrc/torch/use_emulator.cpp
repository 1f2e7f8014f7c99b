// The library's C functions, for flash_attn4/emulator.py: calls on the CPU go to the emulator.
#include <cstdio>

#include "csrc/dispatch/emulation.h"

/// Begins it on a GPU of `arch` ("sm90", "sm100"), or ends it (null), for the whole process. Returns 0,
/// or the number of a fa4::Code with the message, cut to `bytes`, in `message`.
extern "C" __attribute__((visibility("default"))) int fa4_use_emulator(const char* arch,
                                                                       char* message,
                                                                       size_t bytes) {
  const fa4::Status status = fa4::use_emulator(arch);
  std::snprintf(message, bytes, "%s", status.message.c_str());
  return static_cast<int>(status.code);
}

/// Calls take the form of a kernel with so many CTAs per tile, where there are several; 0: the
/// cheaper one. For the whole process.
extern "C" __attribute__((visibility("default"))) void fa4_force_ctas(int ctas) {
  fa4::forced_ctas.store(ctas, std::memory_order_relaxed);
}
