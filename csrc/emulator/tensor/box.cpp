// Boxes of a tensor map, copied between global and shared memory one row of the inner dimension at
// a time. A swizzle exchanges the 16-byte units of a row.
#include <algorithm>
#include <cstring>

#include "csrc/emulator/tensor/tensor_map.h"

namespace fa4::emulator {
namespace {

constexpr uint32_t kUnit = 16;           // bytes
constexpr uint32_t kMaxRowBytes = 2048;  // 256 elements of 8 bytes

/// Bytes [begin, end) of an inner row.
struct Part {
  uint32_t begin = 0, end = 0;
};

uint32_t row_bytes(const TensorMap& map) {
  return map.box[0] * map.element_bytes;
}

/// The bytes of every inner row whose elements lie within the extent of the inner dimension.
Part inside_part(const TensorMap& map, int32_t first) {
  const int64_t extent = int64_t{map.last[0]} + 1;
  const int64_t begin = std::clamp<int64_t>(-int64_t{first}, 0, map.box[0]);
  const int64_t end = std::clamp<int64_t>(extent - first, begin, map.box[0]);
  return {static_cast<uint32_t>(begin * map.element_bytes),
          static_cast<uint32_t>(end * map.element_bytes)};
}

/// A row of the box.
struct Row {
  uint64_t global = 0;  // address of byte 0, which may lie outside the tensor
  uint32_t shared = 0;  // address of byte 0 before the exchange
  bool inside = false;  // within the extents of the outer dimensions
};

bool within(int64_t index, uint32_t last) {
  return index >= 0 && index <= int64_t{last};
}

/// visit(Row) for every row of the box, in the order in which they lie in shared memory. Dimensions
/// beyond the rank have extent 1.
template <class Visit>
void for_each_row(const TensorMap& map, const int32_t* coordinates, uint32_t shared_address,
                  Visit&& visit) {
  int64_t first[5] = {};
  for (int d = 0; d < map.rank; ++d) first[d] = coordinates[d];
  int64_t index[5] = {first[0], first[1], first[2], first[3], first[4]};
  uint32_t shared = shared_address;
  for (int turned = 0; turned < 5;) {
    uint64_t plane = map.base + static_cast<uint64_t>(first[0]) * map.stride[0];
    bool plane_inside = true;
    for (int d = 2; d < 5; ++d) {
      plane += static_cast<uint64_t>(index[d]) * map.stride[d];
      plane_inside &= within(index[d], map.last[d]);
    }
    for (int64_t i = first[1]; i < first[1] + map.box[1]; i += map.step[1]) {
      visit(Row{plane + static_cast<uint64_t>(i) * map.stride[1], shared,
                plane_inside && within(i, map.last[1])});
      shared += row_pitch(map);
    }
    for (turned = 2; turned < 5; ++turned) {
      index[turned] += map.step[turned];
      if (index[turned] < first[turned] + map.box[turned]) break;
      index[turned] = first[turned];
    }
  }
}

/// What the swizzle does in one row: byte `at` of it is stored at byte `at ^ flip`. A row is no
/// wider than the swizzle and begins at a multiple of it, so that the address bits that choose the
/// exchange are those of the row.
uint32_t flip_of(const TensorMap& map, uint32_t row_address) {
  const uint32_t units = map.swizzle_bytes == 0 ? 0 : map.swizzle_bytes / kUnit - 1;
  return (row_address >> 7 & units) * kUnit;
}

/// copy(byte as stored, byte of the row, bytes) for the units of a part, or for all of it at once
/// where nothing is exchanged.
template <class Copy>
void for_each_unit(uint32_t flip, Part part, Copy&& copy) {
  if (flip == 0) return copy(part.begin, part.begin, part.end - part.begin);
  uint32_t at = part.begin;
  while (at < part.end) {
    const uint32_t bytes = std::min(part.end, (at & ~(kUnit - 1)) + kUnit) - at;
    if (bytes == kUnit)
      copy(at ^ flip, at, kUnit);  // a constant size: two instructions instead of a call
    else
      copy(at ^ flip, at, bytes);
    at += bytes;
  }
}

uint8_t* pointer(uint64_t address) {
  return reinterpret_cast<uint8_t*>(address);
}

/// Fills a row with what out-of-bounds elements read as: zeros, or the NaN that an H100 writes.
void fill_row(const TensorMap& map, uint32_t flip, uint8_t* row) {
  uint8_t unit[kUnit] = {};
  const uint16_t nan = 0x7ff7;
  for (uint32_t at = 0; map.fill_nan && at < kUnit; at += sizeof nan)
    std::memcpy(unit + at, &nan, sizeof nan);
  for (uint32_t at = 0; at < row_bytes(map); at += kUnit)
    std::memcpy(row + (at ^ flip), unit, kUnit);
}

}  // namespace

void load_box(const TensorMap& map, const int32_t* coordinates, uint8_t* shared,
              uint32_t shared_address) {
  const Part inside = inside_part(map, coordinates[0]);
  const bool clipped = inside.end - inside.begin < row_bytes(map);
  for_each_row(map, coordinates, shared_address, [&](const Row& row) {
    const uint32_t flip = flip_of(map, row.shared);
    uint8_t* to = shared + row.shared;
    if (clipped || !row.inside) fill_row(map, flip, to);
    if (!row.inside) return;
    for_each_unit(flip, inside, [&](uint32_t stored, uint32_t at, uint32_t bytes) {
      std::memcpy(to + stored, pointer(row.global + at), bytes);
    });
  });
}

void store_box(const TensorMap& map, const int32_t* coordinates, const uint8_t* shared,
               uint32_t shared_address) {
  const Part inside = inside_part(map, coordinates[0]);
  for_each_row(map, coordinates, shared_address, [&](const Row& row) {
    if (!row.inside) return;
    const uint8_t* from = shared + row.shared;
    for_each_unit(flip_of(map, row.shared), inside,
                  [&](uint32_t stored, uint32_t at, uint32_t bytes) {
                    std::memcpy(pointer(row.global + at), from + stored, bytes);
                  });
  });
}

void reduce_box(const TensorMap& map, const int32_t* coordinates, const uint8_t* shared,
                uint32_t shared_address, Reduction op) {
  const Part inside = inside_part(map, coordinates[0]);
  for_each_row(map, coordinates, shared_address, [&](const Row& row) {
    if (!row.inside) return;
    const uint8_t* from = shared + row.shared;
    alignas(kUnit) uint8_t values[kMaxRowBytes];
    for_each_unit(flip_of(map, row.shared), inside,
                  [&](uint32_t stored, uint32_t at, uint32_t bytes) {
                    std::memcpy(values + at, from + stored, bytes);
                  });
    reduce_bytes(pointer(row.global + inside.begin), values + inside.begin,
                 inside.end - inside.begin, map.type, op);
  });
}

}  // namespace fa4::emulator
