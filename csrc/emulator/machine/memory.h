// The address spaces: shared memory, global memory, and the windows of generic addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "flash_attn4/emulator.h"

namespace fa4::emulator {

/// Generic addresses of shared and local memory. No address of this process has these top bits, so a
/// generic address tells its space; below 2^48 it is global memory, an address of the host.
constexpr uint64_t kSharedWindow = uint64_t{1} << 56;
constexpr uint64_t kLocalWindow = uint64_t{2} << 56;
constexpr uint64_t kWindowMask = uint64_t{0xff} << 56;

/// Every 16 bits of memory that was never written: a NaN in fp16, bf16 and, twice, in fp32.
constexpr uint16_t kPoison16 = 0xffa5;
constexpr uint32_t kPoison32 = 0xffa5ffa5;

/// Shared memory of one CTA. Variables begin at kBase, as on hardware, where the first KiB is the
/// system's; bits 24 and up of an address are the CTA's rank in the cluster.
class SharedMemory {
 public:
  static constexpr uint32_t kBase = 0x400;

  /// Makes it hold `bytes` bytes from kBase on, all poison.
  void reset(size_t bytes);

  /// The bytes at `offset` (an address without its rank). Faults unless all of them exist.
  uint8_t* at(uint32_t offset, size_t bytes) {
    if (offset < kBase || offset + bytes > end_) out_of_bounds(offset, bytes);
    return bytes_.data() + offset;
  }
  uint8_t* base() { return bytes_.data(); }  // of address 0
  size_t end() const { return end_; }        // one past the last address

 private:
  [[noreturn]] void out_of_bounds(uint32_t offset, size_t bytes) const;
  std::vector<uint8_t> bytes_;
  size_t end_ = 0;
};

struct AddressRange {
  uint64_t begin = 0, end = 0;
  bool holds(uint64_t address, size_t bytes) const {
    return address >= begin && address <= end && bytes <= end - address;
  }
};

/// Which global memory a launch may touch: regions it was given, or whatever is mapped in the process.
class GlobalMemory {
 public:
  explicit GlobalMemory(std::vector<AddressRange> regions);

  /// Faults unless [address, address + bytes) is allowed. `last` is the caller's range of the last
  /// success and saves the search.
  void check(uint64_t address, size_t bytes, AddressRange* last) {
    if (!last->holds(address, bytes)) search(address, bytes, last);
  }

 private:
  void search(uint64_t address, size_t bytes, AddressRange* last);
  bool find(uint64_t address, size_t bytes, AddressRange* last) const;
  void read_mappings();

  bool restricted_;
  std::mutex mutex_;                  // of ranges_ while mappings are read anew
  std::vector<AddressRange> ranges_;  // sorted, merged
};

}  // namespace fa4::emulator
