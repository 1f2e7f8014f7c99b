// Tensor maps and what the copy engine (TMA) does with a box of one: values only. When a copy
// happens is the business of the machine's agents.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "flash_attn4/emulator.h"

namespace fa4::emulator {

/// What the 128 opaque bytes of a CUtensorMap hold here. Aligned as its members only: it is read
/// out of copies of kernel parameters.
struct TensorMap {
  static constexpr uint64_t kMagic = 0x46413454'4d415031;  // "FA4TMAP1"
  uint64_t magic = kMagic;
  uint64_t base = 0;        // address of element 0
  uint32_t last[5] = {};    // extents minus 1, innermost first
  uint32_t box[5] = {};     // extents of the box; 1 beyond the rank
  uint64_t stride[5] = {};  // bytes from one element to the next per dimension; [0]: the element
  uint8_t step[5] = {};     // element strides (traversal)
  uint8_t rank = 0;
  uint8_t element_bytes = 0;
  ElementType type = ElementType::kU8;
  uint8_t swizzle_bytes = 0;  // 0, 32, 64 or 128
  bool fill_nan = false;      // out-of-bounds elements of floating types read as NaN, not 0
};
static_assert(sizeof(TensorMap) <= sizeof(TensorMapBytes));

/// The map at `address`, or null where it holds none (bad magic number).
const TensorMap* tensor_map_at(const void* address);

/// First and one past the last byte of global memory that the map can reach.
struct ByteRange {
  uint64_t begin = 0, end = 0;
};
ByteRange reach(const TensorMap& map);

/// Bytes of the elements of a box, out-of-bounds ones included: what an mbarrier counts.
uint32_t box_bytes(const TensorMap& map);

/// Bytes from one inner row of a box to the next in shared memory: the width of the swizzle, which
/// may be more than the row has; without swizzle the row's bytes.
uint32_t row_pitch(const TensorMap& map);

/// Bytes of shared memory from the first to the last byte of a box, gaps between rows included.
uint32_t box_extent(const TensorMap& map);

/// What keeps a box from lying at this shared-memory address ("must be a multiple of 128, got
/// 0x404"), empty if nothing does. 128 serves every swizzle, which acts on absolute addresses.
std::string box_problem(const TensorMap& map, uint32_t shared_address);

/// What keeps a box at these coordinates from being loaded, empty if nothing does: the inner
/// coordinate has to be a multiple of 16 bytes. An H100 calls it an illegal instruction otherwise.
std::string load_problem(const TensorMap& map, const int32_t* coordinates);

/// The same for stores and reductions, which on an H100 take no negative coordinate either. They
/// move whole 16-byte units: a box that is clipped inside a unit would overwrite up to 15 bytes
/// beyond the inner extent, which counts as a problem here.
std::string store_problem(const TensorMap& map, const int32_t* coordinates);

/// Global memory -> shared memory: the box at `coordinates` (rank of them, innermost first, in
/// elements; may be negative or beyond the extents: fill). shared[shared_address] is the first byte
/// of the box, a row of the inner dimension begins every row_pitch bytes. The swizzle acts on bits
/// of the address.
void load_box(const TensorMap& map, const int32_t* coordinates, uint8_t* shared,
              uint32_t shared_address);

/// Shared memory -> global memory; elements out of bounds are skipped.
void store_box(const TensorMap& map, const int32_t* coordinates, const uint8_t* shared,
               uint32_t shared_address);

enum class Reduction : uint8_t { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor };

/// Whether PTX defines the reduction on elements of this type; the functions below require it.
bool reduction_defined(ElementType type, Reduction op);

/// global = op(global, shared) per element, atomically per element. The map's element type decides
/// the arithmetic; 16-bit floats round to nearest.
void reduce_box(const TensorMap& map, const int32_t* coordinates, const uint8_t* shared,
                uint32_t shared_address, Reduction op);

/// target[i] = op(target[i], source[i]), atomically per element, for bulk reductions without a map.
/// bytes is a multiple of the element's.
void reduce_bytes(void* target, const void* source, size_t bytes, ElementType type, Reduction op);

}  // namespace fa4::emulator
