#include "csrc/dispatch/emulation.h"

#include <mutex>
#include <string>

#include "csrc/driver/emulator.h"

namespace fa4 {

Status use_emulator(const char* arch) {
  static std::mutex mutex;  // of beginning and ending
  static std::string used;
  const std::lock_guard lock(mutex);
  if (arch == nullptr) {
    detail::emulator.store(nullptr, std::memory_order_release);
    driver::replace_table(nullptr);
    return {};
  }
  if (emulating()) {
    return Status::runtime("the emulator serves one use at a time in a process: " + used +
                           " is in use, got " + arch);
  }
  const driver::Table* table = nullptr;
  if (Status s = driver::emulator_table(arch, &table); !s.ok()) return s;
  used = arch;
  driver::replace_table(table);
  detail::emulator.store(table, std::memory_order_release);
  return {};
}

void note_memory(const void* base, size_t bytes) {
  const driver::Table* emulator = detail::emulator.load(std::memory_order_acquire);
  if (emulator != nullptr) emulator->note_memory(base, bytes);
}

void forget_memory() {
  const driver::Table* emulator = detail::emulator.load(std::memory_order_acquire);
  if (emulator != nullptr) emulator->forget_memory();
}

}  // namespace fa4
