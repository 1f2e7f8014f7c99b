#include "csrc/emulator/machine/fault.h"

#include <cstdio>

#include "csrc/emulator/machine/op.h"

namespace fa4::emulator {

std::string hex(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

std::string lanes_text(uint32_t mask) {
  if (mask == kAllLanes) return "all lanes";
  std::string text;
  for (int first = 0; first < kWarpLanes; ++first) {
    if ((mask >> first & 1) == 0) continue;
    int last = first;
    while (last + 1 < kWarpLanes && (mask >> (last + 1) & 1) != 0) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (last > first) text += "-" + std::to_string(last);
    first = last;
  }
  if (text.empty()) return "no lanes";
  return (text.find_first_of(",-") == std::string::npos ? "lane " : "lanes ") + text;
}

const char* op_class_name(OpClass op_class) {
  constexpr const char* kNames[] = {"integer",   "float",    "approx", "convert", "move",
                                    "predicate", "control",  "global", "shared",  "local",
                                    "barrier",   "mbarrier", "copy",   "mma",     "tmem",
                                    "warp",      "fence",    "other"};
  static_assert(sizeof kNames / sizeof *kNames == static_cast<size_t>(OpClass::kCount));
  return kNames[static_cast<size_t>(op_class)];
}

}  // namespace fa4::emulator
