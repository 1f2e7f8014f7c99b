// The library's one C function, for flash_attn4/emulator.py: calls on the CPU go to the emulator.
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
