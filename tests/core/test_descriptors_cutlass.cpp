// Descriptors and the stored tile against CUTLASS: its bit fields, its descriptor construction and
// its layout algebra. Built where CUTLASS and CUDA headers are found.

#include <cstddef>
#include <cstdint>

// Tiles live in this array, and the function stands in for the intrinsic that CuTe lacks on the
// host: it places the array at byte 0x8000 of shared memory.
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1
alignas(1024) static unsigned char shared_memory[48 * 1024];
static size_t __cvta_generic_to_shared(const void* pointer) {
  return 0x8000 + (static_cast<const unsigned char*>(pointer) - shared_memory);
}

#include <gtest/gtest.h>

#include <array>
#include <cute/arch/mma_sm100_desc.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/atom/mma_traits_sm100.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include "combinations.h"
#include "flash_attn4/core/descriptors.h"

namespace fa4 {
namespace {

using cute::Int;
using Element = cute::bfloat16_t;

constexpr Swizzle kSwizzles[] = {Swizzle::k32B, Swizzle::k64B, Swizzle::k128B};
constexpr Major kMajors[] = {Major::kK, Major::kMN};

TEST(BitFields, InstructionDescriptor) {
  const auto check = [](UmmaInstruction instruction) {
    cute::UMMA::InstrDescriptor want{};
    want.a_format_ = instruction.operand == DType::kBFloat16;
    want.b_format_ = instruction.operand == DType::kBFloat16;
    want.c_format_ = instruction.accumulator == DType::kFloat32;
    want.m_dim_ = instruction.m / 16;
    want.n_dim_ = instruction.n / 8;
    want.a_major_ = instruction.a_major == Major::kMN;
    want.b_major_ = instruction.b_major == Major::kMN;
    ASSERT_EQ(umma_instruction_descriptor(instruction), static_cast<uint32_t>(want));
  };
  const std::array types{DType::kFloat16, DType::kBFloat16};
  const std::array accumulators{DType::kFloat16, DType::kFloat32};
  for_each_combination([&](DType operand, DType accumulator, uint32_t m, uint32_t n8, Major a,
                           Major b) { check({operand, accumulator, m, 8 * n8, a, b}); },
                       types, accumulators, std::array{64, 128, 256}, from_to(1, 32), kMajors,
                       kMajors);
}

TEST(BitFields, InstructionDescriptorAsConstructedByCutlass) {
  using cute::UMMA::make_instr_desc;
  constexpr auto kK = cute::UMMA::Major::K;
  constexpr auto kMN = cute::UMMA::Major::MN;
  EXPECT_EQ(umma_instruction_descriptor(
                {DType::kBFloat16, DType::kFloat32, 128, 96, Major::kK, Major::kMN}),
            uint32_t(make_instr_desc<Element, Element, float, 128, 96, kK, kMN>()));
  EXPECT_EQ(umma_instruction_descriptor(
                {DType::kFloat16, DType::kFloat32, 256, 256, Major::kMN, Major::kK}),
            uint32_t(make_instr_desc<cute::half_t, cute::half_t, float, 256, 256, kMN, kK>()));
}

TEST(BitFields, SharedDescriptors) {
  const auto check = [](Swizzle swizzle, Major major, uint32_t atoms, uint32_t address) {
    const TileLayout tile{8 * atoms, swizzle};
    cute::UMMA::SmemDescriptor umma{};
    umma.start_address_ = address / 16;
    umma.leading_byte_offset_ = tile.leading_bytes(major) / 16;
    umma.stride_byte_offset_ = tile.stride_bytes() / 16;
    umma.version_ = 1;
    umma.layout_type_ = swizzle == Swizzle::k128B ? 2 : swizzle == Swizzle::k64B ? 4 : 6;
    ASSERT_EQ(umma_descriptor(address, tile, major), static_cast<uint64_t>(umma));

    cute::GmmaDescriptor gmma;
    gmma.bitfield.start_address_ = address / 16;
    gmma.bitfield.leading_byte_offset_ = tile.leading_bytes(major) / 16;
    gmma.bitfield.stride_byte_offset_ = tile.stride_bytes() / 16;
    gmma.bitfield.layout_type_ = swizzle == Swizzle::k128B ? 1 : swizzle == Swizzle::k64B ? 2 : 3;
    ASSERT_EQ(gmma_descriptor(address, tile, major), static_cast<uint64_t>(gmma));
  };
  for_each_combination(check, kSwizzles, kMajors, from_to(1, 32),
                       std::array{0, 0x400, 0x12420, 0x38bf0});
}

template <Swizzle kSwizzle, Major kMajor>
auto layout_atom() {
  namespace gmma = cute::SM90::GMMA;
  if constexpr (kMajor == Major::kK) {
    if constexpr (kSwizzle == Swizzle::k128B) return gmma::Layout_K_SW128_Atom<Element>{};
    if constexpr (kSwizzle == Swizzle::k64B) return gmma::Layout_K_SW64_Atom<Element>{};
    if constexpr (kSwizzle == Swizzle::k32B) return gmma::Layout_K_SW32_Atom<Element>{};
  } else {
    if constexpr (kSwizzle == Swizzle::k128B) return gmma::Layout_MN_SW128_Atom<Element>{};
    if constexpr (kSwizzle == Swizzle::k64B) return gmma::Layout_MN_SW64_Atom<Element>{};
    if constexpr (kSwizzle == Swizzle::k32B) return gmma::Layout_MN_SW32_Atom<Element>{};
  }
}

/// CuTe's layout of a stored tile of kRows x kColumns, with modes (M or N, K): the atoms of a chunk
/// follow each other along the rows.
template <Swizzle kSwizzle, Major kMajor, int kRows, int kColumns>
auto cute_layout() {
  const auto atom = layout_atom<kSwizzle, kMajor>();
  if constexpr (kMajor == Major::kK) {
    return cute::tile_to_shape(atom, cute::make_shape(Int<kRows>{}, Int<kColumns>{}),
                               cute::Step<cute::_1, cute::_2>{});
  } else {
    return cute::tile_to_shape(atom, cute::make_shape(Int<kColumns>{}, Int<kRows>{}),
                               cute::Step<cute::_2, cute::_1>{});
  }
}

template <Swizzle kSwizzle, Major kMajor, int kRows, int kColumns>
void expect_tile_as_in_cute() {
  SCOPED_TRACE(testing::Message() << "swizzle " << span_bytes(kSwizzle) << ", "
                                  << (kMajor == Major::kK ? "K" : "MN") << "-major, " << kRows
                                  << " x " << kColumns);
  constexpr TileLayout kTile{kRows, kSwizzle};
  constexpr int kExtentK = kMajor == Major::kK ? kColumns : kRows;
  constexpr int kExtentMN = kMajor == Major::kK ? kRows : kColumns;
  static_assert(sizeof(Element) * kRows * kColumns <= sizeof(shared_memory));
  const auto storage = reinterpret_cast<Element*>(shared_memory);
  const auto tensor = cute::make_tensor(cute::make_smem_ptr(storage),
                                        cute_layout<kSwizzle, kMajor, kRows, kColumns>());
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      const Element* element = kMajor == Major::kK ? &tensor(row, column) : &tensor(column, row);
      ASSERT_EQ((element - storage) * sizeof(Element), kTile.offset(row, column))
          << row << " " << column;
    }

  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(storage));
  cute::for_each(cute::make_seq<kExtentK / 16>{}, [&](auto step) {
    const auto operand = cute::local_tile(tensor, cute::make_shape(Int<kExtentMN>{}, Int<16>{}),
                                          cute::make_coord(Int<0>{}, step));
    constexpr auto kUmmaMajor = kMajor == Major::kK ? cute::UMMA::Major::K : cute::UMMA::Major::MN;
    constexpr auto kGmmaMajor =
        kMajor == Major::kK ? cute::SM90::GMMA::Major::K : cute::SM90::GMMA::Major::MN;
    const uint32_t offset = kTile.k_step_offset(kMajor, step);
    EXPECT_EQ(umma_descriptor(base + offset, kTile, kMajor),
              uint64_t(cute::UMMA::make_umma_desc<kUmmaMajor>(operand)))
        << "step " << int(step);
    EXPECT_EQ(advance_descriptor(gmma_descriptor(base, kTile, kMajor), offset),
              uint64_t(cute::SM90::GMMA::make_gmma_desc<kGmmaMajor>(operand)))
        << "step " << int(step);
  });
}

TEST(LayoutAlgebra, KMajorTiles) {
  expect_tile_as_in_cute<Swizzle::k128B, Major::kK, 128, 128>();
  expect_tile_as_in_cute<Swizzle::k128B, Major::kK, 80, 192>();
  expect_tile_as_in_cute<Swizzle::k128B, Major::kK, 64, 64>();
  expect_tile_as_in_cute<Swizzle::k64B, Major::kK, 128, 96>();
  expect_tile_as_in_cute<Swizzle::k32B, Major::kK, 64, 80>();
}

TEST(LayoutAlgebra, MnMajorTiles) {
  expect_tile_as_in_cute<Swizzle::k128B, Major::kMN, 128, 128>();
  expect_tile_as_in_cute<Swizzle::k128B, Major::kMN, 80, 192>();
  expect_tile_as_in_cute<Swizzle::k64B, Major::kMN, 128, 96>();
  expect_tile_as_in_cute<Swizzle::k32B, Major::kMN, 64, 80>();
}

TEST(LayoutAlgebra, SwizzleFunctions) {
  for (uint32_t address = 0; address < 8192; ++address) {
    ASSERT_EQ(swizzled(address, Swizzle::k128B), (cute::Swizzle<3, 4, 3>::apply(address)));
    ASSERT_EQ(swizzled(address, Swizzle::k64B), (cute::Swizzle<2, 4, 3>::apply(address)));
    ASSERT_EQ(swizzled(address, Swizzle::k32B), (cute::Swizzle<1, 4, 3>::apply(address)));
  }
}

}  // namespace
}  // namespace fa4
