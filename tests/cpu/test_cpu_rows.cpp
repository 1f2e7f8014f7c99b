// Conversion of rows, in the kernels of every instruction set that this machine runs.
#include <gtest/gtest.h>

#include "tests/cpu/cases.h"

namespace fa4::test {
namespace {

std::vector<const cpu::Kernels*> tables() {
  std::vector<const cpu::Kernels*> all{&cpu::kKernelsBaseline};
#if defined(__x86_64__)
  const std::string widest = cpu::kernels().name;
  if (widest != "baseline") all.push_back(&cpu::kKernelsAvx2);
  if (widest == "avx512") all.push_back(&cpu::kKernelsAvx512);
#endif
  return all;
}

TEST(Rows, LoadEveryHalfExactly) {
  for (const cpu::Kernels* table : tables()) {
    for (DType dtype : {kF16, kBF16}) {
      for (int first = 0; first < 65536; first += 8) {
        uint16_t halves[8];
        float row[16];
        for (int i = 0; i < 8; ++i) halves[i] = static_cast<uint16_t>(first + i);
        table->load_row(dtype, halves, row, 8);
        for (int i = 0; i < 8; ++i) {
          const double expected = read(dtype, halves, i);
          if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(row[i])) << table->name << " " << halves[i];
          } else {
            ASSERT_EQ(row[i], expected) << table->name << " " << halves[i];
          }
        }
        for (int i = 8; i < 16; ++i) ASSERT_EQ(row[i], 0.0f);
      }
    }
  }
}

/// Stores one value.
uint16_t stored(const cpu::Kernels& table, DType dtype, float value) {
  const float row[8] = {value};
  uint16_t halves[8];
  table.store_row(dtype, row, 1.0f, halves, 8);
  return halves[0];
}

TEST(Rows, StoreRoundsToNearestEven) {
  for (const cpu::Kernels* table : tables()) {
    for (DType dtype : {kF16, kBF16}) {
      const int infinity = dtype == kF16 ? 0x7c00 : 0x7f80;
      for (int bits = 0; bits + 1 < infinity; ++bits) {
        const uint16_t pair[8] = {static_cast<uint16_t>(bits), static_cast<uint16_t>(bits + 1)};
        const float low = static_cast<float>(read(dtype, pair, 0));
        const float high = static_cast<float>(read(dtype, pair, 1));
        const float middle = static_cast<float>((read(dtype, pair, 0) + read(dtype, pair, 1)) / 2);
        const uint16_t even = bits % 2 == 0 ? pair[0] : pair[1];
        ASSERT_EQ(stored(*table, dtype, low), pair[0]) << table->name << " " << low;
        ASSERT_EQ(stored(*table, dtype, -low), pair[0] | 0x8000) << table->name << " " << low;
        ASSERT_EQ(stored(*table, dtype, middle), even) << table->name << " " << middle;
        ASSERT_EQ(stored(*table, dtype, std::nextafter(middle, low)), pair[0]) << table->name;
        ASSERT_EQ(stored(*table, dtype, std::nextafter(middle, high)), pair[1]) << table->name;
      }
      const float beyond = dtype == kF16 ? 65520.0f : 3.4e38f;
      EXPECT_EQ(stored(*table, dtype, beyond), infinity) << table->name;
      EXPECT_EQ(stored(*table, dtype, -INFINITY), infinity | 0x8000) << table->name;
      const uint16_t nan[8] = {stored(*table, dtype, std::nanf("0x12345"))};
      EXPECT_TRUE(std::isnan(read(dtype, nan, 0))) << table->name;
    }
  }
}

TEST(Rows, DotSumsProducts) {
  float a[24];
  uint16_t b[24];
  double expected = 0.0;
  for (int i = 0; i < 24; ++i) {
    a[i] = static_cast<float>(i - 7);
    write(kBF16, 3 - i, b, i);
    expected += (i - 7.0) * (3.0 - i);
  }
  for (const cpu::Kernels* table : tables()) EXPECT_EQ(table->dot_row(kBF16, a, b, 24), expected);
}

}  // namespace
}  // namespace fa4::test
