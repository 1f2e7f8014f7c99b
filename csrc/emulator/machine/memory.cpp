#include "csrc/emulator/machine/memory.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "csrc/emulator/machine/fault.h"

namespace fa4::emulator {

void SharedMemory::reset(size_t bytes) {
  end_ = kBase + bytes;
  bytes_.resize((end_ + 3) / 4 * 4);
  for (size_t i = 0; i < bytes_.size(); i += 4) std::memcpy(&bytes_[i], &kPoison32, 4);
}

void SharedMemory::out_of_bounds(uint32_t offset, size_t bytes) const {
  throw Fault("shared memory: " + std::to_string(bytes) + " bytes at " + hex(offset) +
              " are out of bounds, the block has " + hex(kBase) + " to " + hex(end_));
}

namespace {

std::vector<AddressRange> merged(std::vector<AddressRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const AddressRange& a, const AddressRange& b) { return a.begin < b.begin; });
  std::vector<AddressRange> result;
  for (const AddressRange& range : ranges) {
    if (!result.empty() && range.begin <= result.back().end) {
      result.back().end = std::max(result.back().end, range.end);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

}  // namespace

GlobalMemory::GlobalMemory(std::vector<AddressRange> regions)
    : restricted_(!regions.empty()), ranges_(std::move(regions)) {
  // Regions are not merged: two tensors side by side are two, and running from one into the other
  // is an error.
  std::sort(ranges_.begin(), ranges_.end(),
            [](const AddressRange& a, const AddressRange& b) { return a.begin < b.begin; });
}

void GlobalMemory::search(uint64_t address, size_t bytes, AddressRange* last) {
  {
    const std::lock_guard lock(mutex_);
    if (find(address, bytes, last)) return;
    if (!restricted_) {
      read_mappings();
      if (find(address, bytes, last)) return;
    }
  }
  std::string text = "global memory: " + std::to_string(bytes) + " bytes at " + hex(address) +
                     " are out of bounds";
  if (!restricted_) throw Fault(text + ": nothing is mapped there");
  for (const AddressRange& range : ranges_) {
    if (address < range.begin && range.begin - address <= 4096) {
      text += ", " + std::to_string(range.begin - address) + " bytes before a region of " +
              std::to_string(range.end - range.begin) + " bytes";
    } else if (address + bytes > range.end && address >= range.begin &&
               address - range.end + 4096 <= 8192) {
      text += ", " + std::to_string(address - range.begin) + " bytes into a region of " +
              std::to_string(range.end - range.begin) + " bytes";
    }
  }
  throw Fault(text);
}

bool GlobalMemory::find(uint64_t address, size_t bytes, AddressRange* last) const {
  // Regions may overlap (views of one tensor), so all that begin before the address are asked.
  for (const AddressRange& range : ranges_) {
    if (range.begin > address) break;
    if (!range.holds(address, bytes)) continue;
    *last = range;
    return true;
  }
  return false;
}

void GlobalMemory::read_mappings() {
  // C's files, not C++'s: streams of two C++ runtimes in one process can crash, and a Python process
  // may hold two.
  std::FILE* const maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) throw Fault("/proc/self/maps: cannot be read");
  std::vector<AddressRange> found;
  char line[4096];
  while (std::fgets(line, sizeof line, maps) != nullptr) {
    AddressRange range;
    char access[5] = {};
    const int fields =
        std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &range.begin, &range.end, access);
    if (fields == 3 && access[0] == 'r') found.push_back(range);
  }
  std::fclose(maps);
  ranges_ = merged(std::move(found));
}

}  // namespace fa4::emulator
