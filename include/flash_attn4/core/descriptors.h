// The integers that tell a tensor core where its operands lie: instruction and shared-memory
// descriptors of SM100 (UMMA), shared-memory descriptors of SM90 (GMMA), and the tile layout that
// both describe. All for 16-bit elements.
//
// A tile of R rows and C columns, row-major for the programmer, is stored as chunks of `span` bytes
// of columns (span = 128, 64 or 32 B, the swizzle). A chunk holds its R rows one after the other,
// `span` bytes each. Eight rows are an atom of 8 * span bytes; in it 16-byte units are exchanged so
// that eight rows of one column lie in different banks:
//
//     span   address bits exchanged (^=)   atom     tile base aligned to
//     128    4-6 ^= 7-9                    1024 B   1024 B
//      64    4-5 ^= 7-8                     512 B    512 B
//      32    4   ^= 7                       256 B    256 B
//
// TMA writes this layout with the box {span bytes, R rows}. One stored tile serves two ways:
//   K-major   rows are M or N, columns are K     (Q and K in Q K^T)
//   MN-major  rows are K, columns are M or N     (V in P V)
#pragma once

#include <cstdint>

#include "flash_attn4/core/types.h"

namespace fa4 {

enum class Major : uint8_t { kK = 0, kMN = 1 };

/// The value is the span in bytes.
enum class Swizzle : uint8_t { k32B = 32, k64B = 64, k128B = 128 };

FA4_HD constexpr uint32_t span_bytes(Swizzle swizzle) {
  return static_cast<uint32_t>(swizzle);
}
FA4_HD constexpr uint32_t atom_bytes(Swizzle swizzle) {
  return 8 * span_bytes(swizzle);
}

/// Exchanges 16-byte units: where the byte at `address` of the unswizzled layout is stored. Acts on
/// absolute shared-memory addresses, or on offsets in a tile whose base is aligned to its atom.
FA4_HD constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  const uint32_t units = span_bytes(swizzle) / 16 - 1;  // mask of unit bits: 7, 3 or 1
  return address ^ ((address >> 7 & units) << 4);
}

/// Stored tile, in elements. rows is a multiple of 8.
struct TileLayout {
  uint32_t rows;
  Swizzle swizzle;

  static constexpr uint32_t kElementBytes = 2;

  FA4_HD constexpr uint32_t span() const { return span_bytes(swizzle); }
  FA4_HD constexpr uint32_t span_columns() const { return span() / kElementBytes; }
  FA4_HD constexpr uint32_t chunk_bytes() const { return rows * span(); }

  /// Byte offset of an element before the exchange. Descriptors address this way: the hardware
  /// applies the exchange to every address it forms.
  FA4_HD constexpr uint32_t unswizzled_offset(uint32_t row, uint32_t column) const {
    return column / span_columns() * chunk_bytes() + row * span() +
           column % span_columns() * kElementBytes;
  }

  /// Byte offset at which an element is stored, from the tile base.
  FA4_HD constexpr uint32_t offset(uint32_t row, uint32_t column) const {
    return swizzled(unswizzled_offset(row, column), swizzle);
  }

  /// Leading byte offset: from one chunk to the next, along M or N. K-major instructions read one
  /// chunk only and ignore it; 16 is the customary value.
  FA4_HD constexpr uint32_t leading_bytes(Major major) const {
    return major == Major::kK ? 16 : chunk_bytes();
  }

  /// Stride byte offset: from eight rows to the next eight.
  FA4_HD constexpr uint32_t stride_bytes() const { return atom_bytes(swizzle); }

  /// Bytes from the tile base to the operand of k-step `step`, an instruction's 16 elements of K.
  FA4_HD constexpr uint32_t k_step_offset(Major major, uint32_t step) const {
    return major == Major::kK ? unswizzled_offset(0, 16 * step) : unswizzled_offset(16 * step, 0);
  }
};

// Shared-memory descriptor, 64 bit. SM100 and SM90 differ in the version only.
//     0-13    address >> 4
//     16-29   leading byte offset >> 4
//     32-45   stride byte offset >> 4
//     46-48   version: 1 on SM100, 0 on SM90
//     49-51   base offset: 0, because tile bases are aligned to their atom
//     52      mode of the leading byte offset: 0
//     62-63   swizzle: 1 for 128 B, 2 for 64 B, 3 for 32 B. (The SM100 field begins at bit 61; its
//             codes 2, 4, 6 for 128, 64, 32 B are the same bits.)
// Only the low word depends on the address.

/// SM90: operand at `address`, a tile base plus a multiple of 16 bytes, for wgmma.
FA4_HD constexpr uint64_t gmma_descriptor(uint32_t address, TileLayout tile, Major major) {
  const uint64_t code = tile.swizzle == Swizzle::k128B ? 1 : tile.swizzle == Swizzle::k64B ? 2 : 3;
  const uint64_t leading = tile.leading_bytes(major) >> 4;
  const uint64_t stride = tile.stride_bytes() >> 4;
  return (address >> 4 & 0x3fff) | leading << 16 | stride << 32 | code << 62;
}

/// SM100: operand at `address`, a tile base plus a multiple of 16 bytes, for tcgen05.mma.
FA4_HD constexpr uint64_t umma_descriptor(uint32_t address, TileLayout tile, Major major) {
  return gmma_descriptor(address, tile, major) | uint64_t{1} << 46;
}

/// Descriptor of the operand `bytes` further on. Shared memory is smaller than the 256 KiB of the
/// address field, so nothing carries into the next field: adding to the low word is enough.
FA4_HD constexpr uint64_t advance_descriptor(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

/// One tcgen05.mma of kind::f16.
struct UmmaInstruction {
  DType operand;      // of A and B: kFloat16 or kBFloat16
  DType accumulator;  // kFloat32 or kFloat16
  uint32_t m;         // rows of the instruction: 64 or 128, of a CTA pair 128 or 256
  uint32_t n;         // columns, a multiple of 8 up to 256
  Major a_major;
  Major b_major;
};

/// Instruction descriptor, 32 bit.
///     4-5     accumulator: 0 fp16, 1 fp32
///     7-9     A: 0 fp16, 1 bf16            10-12   B: as A
///     15      A MN-major                   16      B MN-major
///     17-22   N >> 3                       24-28   M >> 4
///     0: sparsity (0-2), saturation (3), negation of A and B (13, 14), shift (30, 31)
FA4_HD constexpr uint32_t umma_instruction_descriptor(UmmaInstruction instruction) {
  const uint32_t accumulator = instruction.accumulator == DType::kFloat32 ? 1 : 0;
  const uint32_t operand = instruction.operand == DType::kBFloat16 ? 1 : 0;
  return accumulator << 4 | operand << 7 | operand << 10 |
         static_cast<uint32_t>(instruction.a_major) << 15 |
         static_cast<uint32_t>(instruction.b_major) << 16 | instruction.n >> 3 << 17 |
         instruction.m >> 4 << 24;
}

}  // namespace fa4
