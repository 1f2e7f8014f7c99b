// The layouts of dq's accumulator against what threads hold after a product.
#include <gtest/gtest.h>

#include <vector>

#include "flash_attn4/core/dq_layout.h"

namespace fa4 {
namespace {

using Layout = DqLayoutSm90;

struct Block {
  int rows;
  int columns;
};
constexpr Block kBlocks[] = {{64, 64}, {128, 64}, {64, 128}, {128, 128}, {192, 256}};

TEST(DqLayoutSm90, EveryElementHasAPlaceOfItsOwn) {
  for (const auto& [rows, columns] : kBlocks) {
    std::vector<int> taken(rows * columns);
    ASSERT_EQ(Layout::slices(rows, columns) * Layout::kSliceFloats, rows * columns);
    for (int row = 0; row < rows; ++row) {
      for (int column = 0; column < columns; ++column) {
        const int offset = Layout::offset(row, column, columns);
        ASSERT_TRUE(offset >= 0 && offset < rows * columns) << row << " " << column;
        ASSERT_EQ(taken[offset]++, 0) << row << " " << column;
        ASSERT_EQ(offset / Layout::kSliceFloats, Layout::slice(row, column, columns));
      }
    }
  }
}

TEST(DqLayoutSm90, SlicesLieRowOfSlicesAfterRowOfSlices) {
  EXPECT_EQ(Layout::slice(63, 63, 128), 0);
  EXPECT_EQ(Layout::slice(0, 64, 128), 1);
  EXPECT_EQ(Layout::slice(64, 0, 128), 2);
  EXPECT_EQ(Layout::slice(64, 0, 64), 1);
}

/// The fragment of wgmma m64n64, as PTX documents it: which element register `i` of thread `thread`
/// of the warpgroup is.
TEST(DqLayoutSm90, AThreadAddsItsFragmentAsItIs) {
  for (const auto& [rows, columns] : kBlocks) {
    for (int slice = 0; slice < Layout::slices(rows, columns); ++slice) {
      const int first_row = slice / (columns / 64) * 64, first_column = slice % (columns / 64) * 64;
      for (int thread = 0; thread < 128; ++thread) {
        const int warp = thread / 32, lane = thread % 32;
        for (int i = 0; i < 32; ++i) {
          const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
          const int column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
          ASSERT_EQ(Layout::offset(first_row + row, first_column + column, columns),
                    slice * Layout::kSliceFloats + Layout::fragment_offset(thread, i))
              << "thread " << thread << ", register " << i;
        }
      }
    }
  }
}

TEST(DqLayoutSm90, FourRegistersOfAWarpAre512BytesTogether) {
  for (int i = 0; i < 32; i += 4) {
    for (int thread = 0; thread < 128; ++thread) {
      const int offset = Layout::fragment_offset(thread, i);
      ASSERT_EQ(offset % 4, 0);
      for (int j = 1; j < 4; ++j) ASSERT_EQ(Layout::fragment_offset(thread, i + j), offset + j);
      ASSERT_EQ(offset, Layout::fragment_offset(thread / 32 * 32, i) + 4 * (thread % 32));
    }
  }
}

TEST(DqLayoutSm90, VectorsHoldWhatTheConstantsSay) {
  for (const auto& [rows, columns] : kBlocks) {
    for (int row = 0; row < rows; ++row) {
      if (row / Layout::kVectorRowStep % Layout::kVectorRows != 0) continue;
      for (int column = 0; column < columns; column += Layout::kVectorColumns) {
        const int offset = Layout::offset(row, column, columns);
        ASSERT_EQ(offset % 4, 0);
        for (int k = 0; k < 4; ++k) {
          ASSERT_EQ(Layout::offset(row + k / Layout::kVectorColumns * Layout::kVectorRowStep,
                                   column + k % Layout::kVectorColumns, columns),
                    offset + k)
              << row << " " << column;
        }
      }
    }
  }
}

// ---- SM100 -------------------------------------------------------------------------------------

constexpr int kHeadDims[] = {64, 96, 128};

TEST(DqLayoutSm100, EveryElementHasAPlaceOfItsOwn) {
  using Sm100 = DqLayoutSm100;
  for (int columns : kHeadDims) {
    std::vector<int> taken(128 * columns);
    for (int row = 0; row < 128; ++row) {
      for (int column = 0; column < columns; ++column) {
        const int offset = Sm100::offset(row, column, columns);
        ASSERT_TRUE(offset >= 0 && offset < 128 * columns) << row << " " << column;
        ASSERT_EQ(taken[offset]++, 0) << row << " " << column;
        ASSERT_EQ(offset / (Sm100::kSliceRows * columns), row / Sm100::kSliceRows)
            << "a warp's rows are a slice";
      }
    }
  }
}

/// A warp stages 32 rows of `columns` columns from column `first` on, and what it has staged is
/// added as it lies.
TEST(DqLayoutSm100, WhatAWarpStagesLiesTogether) {
  using Sm100 = DqLayoutSm100;
  for (int columns : kHeadDims) {
    const int part = columns == 96 ? 96 : 64;
    for (int first = 0; first < columns; first += part) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < part; ++i) {
          const int staged = Sm100::vector_offset(lane, 0) + Sm100::vector_offset(0, i / 4 * 4);
          ASSERT_EQ(Sm100::offset(lane, first + i, columns),
                    Sm100::vector_offset(0, first) + staged + i % 4);
        }
      }
    }
  }
}

TEST(DqLayoutSm100, AVectorOfAWarpIs512BytesTogether) {
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(DqLayoutSm100::vector_offset(lane, 8), DqLayoutSm100::vector_offset(0, 8) + 4 * lane);
  }
}

TEST(DqLayoutSm100, VectorsHoldWhatTheConstantsSay) {
  using Sm100 = DqLayoutSm100;
  static_assert(Sm100::kVectorRows == 1 && Sm100::kVectorColumns == 4);
  for (int row = 0; row < 128; ++row) {
    for (int column = 0; column < 96; column += 4) {
      const int offset = Sm100::offset(row, column, 96);
      ASSERT_EQ(offset % 4, 0);
      for (int k = 1; k < 4; ++k) ASSERT_EQ(Sm100::offset(row, column + k, 96), offset + k);
    }
  }
}

}  // namespace
}  // namespace fa4
