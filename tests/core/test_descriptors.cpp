// Descriptors and the stored tile against constants of working kernels and the bits of the layout.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <set>

#include "combinations.h"
#include "flash_attn4/core/descriptors.h"

namespace fa4 {
namespace {

constexpr Swizzle kSwizzles[] = {Swizzle::k32B, Swizzle::k64B, Swizzle::k128B};

constexpr uint32_t low_word(uint64_t value) {
  return static_cast<uint32_t>(value);
}
constexpr uint32_t high_word(uint64_t value) {
  return static_cast<uint32_t>(value >> 32);
}

uint32_t instruction(uint32_t m, uint32_t n, Major a_major, Major b_major) {
  return umma_instruction_descriptor({DType::kBFloat16, DType::kFloat32, m, n, a_major, b_major});
}

TEST(UmmaInstruction, ConstantsOfAttentionKernels) {
  EXPECT_EQ(instruction(128, 128, Major::kK, Major::kK), 0x08200490u);    // S, dP
  EXPECT_EQ(instruction(128, 128, Major::kK, Major::kMN), 0x08210490u);   // P V, dV, dK
  EXPECT_EQ(instruction(128, 64, Major::kK, Major::kMN), 0x08110490u);    // the same, 64 columns
  EXPECT_EQ(instruction(128, 128, Major::kMN, Major::kMN), 0x08218490u);  // dQ
  EXPECT_EQ(instruction(128, 64, Major::kMN, Major::kMN), 0x08118490u);   // dQ, 64 columns
  EXPECT_EQ(instruction(256, 128, Major::kK, Major::kK), 0x10200490u);    // CTA pair, S
  EXPECT_EQ(instruction(256, 128, Major::kK, Major::kMN), 0x10210490u);   // CTA pair, P V
}

TEST(UmmaInstruction, ElementTypes) {
  UmmaInstruction float16{DType::kFloat16, DType::kFloat32, 128, 128, Major::kK, Major::kK};
  EXPECT_EQ(umma_instruction_descriptor(float16), 0x08200010u);
  float16.accumulator = DType::kFloat16;
  EXPECT_EQ(umma_instruction_descriptor(float16), 0x08200000u);
}

TEST(UmmaInstruction, LargestSizesStayInTheirFields) {
  EXPECT_EQ(instruction(256, 256, Major::kMN, Major::kMN), 0x10418490u);
  EXPECT_EQ(instruction(64, 8, Major::kK, Major::kK), 0x04020490u);
}

TEST(SharedDescriptor, WordsOf128ByteSwizzle) {
  const TileLayout tile{128, Swizzle::k128B};
  EXPECT_EQ(high_word(umma_descriptor(0x12400, tile, Major::kK)), 0x40004040u);
  EXPECT_EQ(high_word(gmma_descriptor(0x12400, tile, Major::kK)), 0x40000040u);
  EXPECT_EQ(low_word(umma_descriptor(0x12400, tile, Major::kK)), 0x00011240u);
  EXPECT_EQ(low_word(gmma_descriptor(0x12400, tile, Major::kK)), 0x00011240u);
  EXPECT_EQ(low_word(umma_descriptor(0x12400, tile, Major::kMN)), 0x04001240u);
  EXPECT_EQ(low_word(gmma_descriptor(0x12400, tile, Major::kMN)), 0x04001240u);
}

TEST(SharedDescriptor, SwizzleCodesAndStrides) {
  const TileLayout wide{96, Swizzle::k64B};
  const TileLayout narrow{80, Swizzle::k32B};
  EXPECT_EQ(high_word(umma_descriptor(0, wide, Major::kMN)), 0x80004020u);    // code 4, SBO 512
  EXPECT_EQ(high_word(gmma_descriptor(0, wide, Major::kMN)), 0x80000020u);    // code 2
  EXPECT_EQ(high_word(umma_descriptor(0, narrow, Major::kMN)), 0xc0004010u);  // code 6, SBO 256
  EXPECT_EQ(high_word(gmma_descriptor(0, narrow, Major::kMN)), 0xc0000010u);  // code 3
  EXPECT_EQ(low_word(umma_descriptor(0, wide, Major::kMN)), (96u * 64 / 16) << 16);
  EXPECT_EQ(low_word(umma_descriptor(0, narrow, Major::kMN)), (80u * 32 / 16) << 16);
}

TEST(SharedDescriptor, AddressIsTakenModulo256KiB) {
  const TileLayout tile{64, Swizzle::k128B};
  EXPECT_EQ(umma_descriptor(0x01000400, tile, Major::kK), umma_descriptor(0x400, tile, Major::kK));
}

TEST(SharedDescriptor, AdvancesByKSteps) {
  const TileLayout tile{128, Swizzle::k128B};
  const uint32_t k_major[] = {0, 2, 4, 6, 0x400, 0x402, 0x404, 0x406};
  for (Major major : {Major::kK, Major::kMN})
    for (uint32_t step = 0; step < 8; ++step) {
      const uint64_t first = umma_descriptor(0x8000, tile, major);
      const uint64_t next = advance_descriptor(first, tile.k_step_offset(major, step));
      EXPECT_EQ(next - first, major == Major::kK ? k_major[step] : 0x80 * step) << step;
      EXPECT_EQ(next, umma_descriptor(0x8000 + tile.k_step_offset(major, step), tile, major));
    }
  const TileLayout short_tile{80, Swizzle::k128B};
  EXPECT_EQ(short_tile.k_step_offset(Major::kK, 4) >> 4, 0x280u);
}

TEST(SharedDescriptor, SecondHalfOfTheRowsIsAnOffset) {
  const TileLayout tile{128, Swizzle::k128B};
  EXPECT_EQ(tile.unswizzled_offset(64, 0) >> 4, 0x200u);
}

TEST(Swizzle, ExchangesBitsWithinAnAtomAndIsItsOwnInverse) {
  for (Swizzle swizzle : kSwizzles) {
    std::set<uint32_t> images;
    for (uint32_t address = 0; address < 4096; ++address) {
      const uint32_t image = swizzled(address, swizzle);
      EXPECT_EQ(swizzled(image, swizzle), address);
      EXPECT_EQ(image / span_bytes(swizzle), address / span_bytes(swizzle));
      EXPECT_EQ(image % 16, address % 16);
      images.insert(image);
    }
    EXPECT_EQ(images.size(), 4096u);
  }
}

TEST(TileLayout, FormulaOf128ByteSwizzle) {
  const auto check = [](uint32_t rows, uint32_t row, uint32_t column) {
    if (row >= rows) return;
    const uint32_t unit = ((column % 64) / 8) ^ (row % 8);
    const uint32_t want = column / 64 * rows * 128 + row * 128 + unit * 16 + column % 8 * 2;
    ASSERT_EQ((TileLayout{rows, Swizzle::k128B}.offset(row, column)), want)
        << row << " " << column << " of " << rows;
  };
  for_each_combination(check, std::array{8, 64, 80, 128}, from_to(0, 127), from_to(0, 191));
}

TEST(TileLayout, EveryElementHasItsOwnPlace) {
  const auto check = [](Swizzle swizzle, uint32_t rows) {
    const TileLayout tile{rows, swizzle};
    const uint32_t columns = 3 * tile.span_columns();
    std::set<uint32_t> places;
    for (uint32_t row = 0; row < rows; ++row)
      for (uint32_t column = 0; column < columns; ++column) places.insert(tile.offset(row, column));
    EXPECT_EQ(places.size(), rows * columns);
    EXPECT_EQ(*places.rbegin(), (rows * columns - 1) * TileLayout::kElementBytes);
  };
  for_each_combination(check, kSwizzles, std::array{8, 24, 64});
}

/// The point of the exchange: eight rows of a 16-byte column cover all 32 banks of 4 bytes.
TEST(TileLayout, EightRowsOfAColumnDoNotCollide) {
  const auto check = [](Swizzle swizzle, uint32_t first, uint32_t column) {
    const TileLayout tile{16, swizzle};
    std::set<uint32_t> units;
    for (uint32_t row = first; row < first + 8; ++row)
      units.insert(tile.offset(row, column) / 16 % 8);
    EXPECT_EQ(units.size(), 8u) << span_bytes(swizzle) << " " << first << " " << column;
  };
  for_each_combination(check, kSwizzles, std::array{0, 8}, from_to(0, 63));
}

/// A descriptor adds its steps to an unswizzled address and the hardware exchanges afterwards: that
/// must reach the stored elements for every step, at every base aligned to the atom.
TEST(TileLayout, HardwareAddressesReachTheStoredElements) {
  constexpr uint32_t kRows = 64;
  const auto check_k_major = [](Swizzle swizzle, uint32_t row, uint32_t k) {
    const TileLayout tile{kRows, swizzle};
    const uint32_t base = 5 * atom_bytes(swizzle);
    const uint32_t start = base + tile.k_step_offset(Major::kK, k / 16);
    const uint32_t address =
        start + row / 8 * tile.stride_bytes() + row % 8 * tile.span() + k % 16 * 2;
    ASSERT_EQ(swizzled(address, swizzle), base + tile.offset(row, k)) << row << " " << k;
  };
  const auto check_mn_major = [](Swizzle swizzle, uint32_t k, uint32_t n) {
    const TileLayout tile{kRows, swizzle};
    const uint32_t base = 5 * atom_bytes(swizzle);
    const uint32_t start = base + tile.k_step_offset(Major::kMN, k / 16);
    const uint32_t address = start + n / tile.span_columns() * tile.leading_bytes(Major::kMN) +
                             k % 16 / 8 * tile.stride_bytes() + k % 8 * tile.span() +
                             n % tile.span_columns() * 2;
    ASSERT_EQ(swizzled(address, swizzle), base + tile.offset(k, n)) << k << " " << n;
  };
  for_each_combination(check_k_major, kSwizzles, from_to(0, kRows - 1), from_to(0, 127));
  for_each_combination(check_mn_major, kSwizzles, from_to(0, kRows - 1), from_to(0, 127));
}

}  // namespace
}  // namespace fa4
