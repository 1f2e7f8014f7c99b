// Tensor-core arithmetic: operands through descriptors, products in both rounding modes. Values are
// compared bit for bit, and every instruction set of this machine is run, whatever the library
// chose.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "csrc/emulator/isa_choice.h"
#include "csrc/emulator/tensor/kernels.h"
#include "csrc/emulator/tensor/tensor_core.h"
#include "flash_attn4/core/descriptors.h"
#include "tests/core/combinations.h"

namespace fa4::emulator::test {
namespace {

constexpr uint32_t kSharedBytes = 232448;
constexpr std::array kKinds{DescriptorKind::kGmma, DescriptorKind::kUmma};
constexpr std::array kTypes{Half::kF16, Half::kBF16};
constexpr std::array kSwizzles{Swizzle::k32B, Swizzle::k64B, Swizzle::k128B};

float float_of(uint16_t element, Half type) {
  if (type == Half::kBF16) return std::bit_cast<float>(uint32_t{element} << 16);
  const int exponent = element >> 10 & 31;
  const int mantissa = element & 1023;
  const float sign = element >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return sign * (mantissa == 0 ? INFINITY : NAN);
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

/// Equal bits, or both NaN: which payload a NaN carries on is not defined.
bool same(float got, float want) {
  return std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(want) ||
         (std::isnan(got) && std::isnan(want));
}

std::vector<const TensorKernels*> kernels_of_this_machine() {
  std::vector<const TensorKernels*> all{&kTensorKernelsBaseline};
#if defined(__x86_64__)
  if (host_supports(Isa::kAvx2)) all.push_back(&kTensorKernelsAvx2);
  if (host_supports(Isa::kAvx512)) all.push_back(&kTensorKernelsAvx512);
#endif
  return all;
}

// ---- Descriptors --------------------------------------------------------------------------------

/// Shared memory filled with distinct elements as far as 16 bits go.
std::vector<uint8_t> filled_shared_memory() {
  std::vector<uint8_t> shared(kSharedBytes);
  for (uint32_t i = 0; i < kSharedBytes / 2; ++i) {
    const uint16_t element = static_cast<uint16_t>(i * 40503u);
    std::memcpy(&shared[2 * i], &element, 2);
  }
  return shared;
}

uint16_t element_at(const std::vector<uint8_t>& shared, uint32_t offset) {
  uint16_t element;
  std::memcpy(&element, &shared[offset], 2);
  return element;
}

/// Everything that reads through a descriptor agrees with offset_of(row, k).
template <class OffsetOf>
void expect_operand_at(SharedOperand operand, const OffsetOf& offset_of) {
  static const std::vector<uint8_t> shared = filled_shared_memory();
  const int rows = operand.rows;
  const size_t stride = rows + 3;
  std::vector<uint16_t> copy(kK * rows);
  std::vector<float> read(kK * stride, 12345.0f);
  copy_operand(operand, shared.data(), copy.data());
  read_operand(operand, shared.data(), read.data(), stride);
  uint32_t end = 0;
  for (int k = 0; k < kK; ++k) {
    for (int row = 0; row < rows; ++row) {
      const uint32_t offset = offset_of(row, k);
      const uint16_t want = element_at(shared, offset);
      ASSERT_EQ(copy[k * rows + row], want) << "row " << row << ", k " << k;
      ASSERT_TRUE(same(read[k * stride + row], float_of(want, operand.type)))
          << "row " << row << ", k " << k;
      end = std::max(end, offset + 2);
    }
    for (size_t gap = rows; gap < stride; ++gap) ASSERT_EQ(read[k * stride + gap], 12345.0f);
  }
  EXPECT_EQ(descriptor_problem(operand, end), "");
  EXPECT_NE(descriptor_problem(operand, end - 1), "");
}

uint64_t tile_descriptor(DescriptorKind kind, uint32_t address, TileLayout tile, Major major) {
  return kind == DescriptorKind::kGmma ? gmma_descriptor(address, tile, major)
                                       : umma_descriptor(address, tile, major);
}

TEST(Descriptors, KMajorTiles) {
  const auto check = [](DescriptorKind kind, Swizzle swizzle, Half type, uint32_t base, int rows) {
    const TileLayout tile{static_cast<uint32_t>(rows), swizzle};
    for (uint32_t step = 0; step < 2 * tile.span_columns() / kK; ++step) {
      const uint32_t address = base + tile.k_step_offset(Major::kK, step);
      expect_operand_at(
          {kind, tile_descriptor(kind, address, tile, Major::kK), OperandMajor::kK, type, rows},
          [&](int row, int k) { return base + tile.offset(row, kK * step + k); });
    }
  };
  for_each_combination(check, kKinds, kSwizzles, kTypes, std::array{0u, 1024u, 0x12400u},
                       std::array{8, 16, 24, 64, 80, 128, 256});
}

TEST(Descriptors, KMajorRowsOfATileFromTheMiddleOn) {
  const auto check = [](DescriptorKind kind, Swizzle swizzle, int first, int rows) {
    const TileLayout tile{128, swizzle};
    const uint32_t base = 0x2000;
    const uint32_t address = base + tile.unswizzled_offset(first, kK);
    expect_operand_at({kind, tile_descriptor(kind, address, tile, Major::kK), OperandMajor::kK,
                       Half::kBF16, rows},
                      [&](int row, int k) { return base + tile.offset(first + row, kK + k); });
  };
  for_each_combination(check, kKinds, std::array{Swizzle::k64B, Swizzle::k128B},
                       std::array{8, 64, 96}, std::array{8, 32});
}

TEST(Descriptors, MnMajorTiles) {
  const auto check = [](DescriptorKind kind, Swizzle swizzle, Half type, uint32_t base, int spans) {
    const TileLayout tile{64, swizzle};
    const int rows = spans * static_cast<int>(tile.span_columns());
    for (uint32_t step = 0; step < tile.rows / kK; ++step) {
      const uint32_t address = base + tile.k_step_offset(Major::kMN, step);
      expect_operand_at(
          {kind, tile_descriptor(kind, address, tile, Major::kMN), OperandMajor::kMN, type, rows},
          [&](int row, int k) { return base + tile.offset(kK * step + k, row); });
    }
  };
  for_each_combination(check, kKinds, kSwizzles, kTypes, std::array{0u, 1024u, 0x12400u},
                       from_to(1, 4));
}

TEST(Descriptors, MnMajorPartsOfSpans) {
  const auto check = [](DescriptorKind kind, Swizzle swizzle, uint32_t first_span, int rows) {
    const TileLayout tile{80, swizzle};
    const uint32_t base = 0x4000;
    const uint32_t column = first_span * tile.span_columns();
    const uint32_t address = base + tile.unswizzled_offset(3 * kK, column);
    expect_operand_at({kind, tile_descriptor(kind, address, tile, Major::kMN), OperandMajor::kMN,
                       Half::kF16, rows},
                      [&](int row, int k) { return base + tile.offset(3 * kK + k, column + row); });
  };
  for_each_combination(check, kKinds, kSwizzles, std::array{0u, 1u, 2u},
                       std::array{8, 16, 24, 40, 72, 104});
}

/// Without swizzle, core matrices lie anywhere: lines of 16 bytes one after the other.
TEST(Descriptors, CoreMatricesWithoutSwizzle) {
  const auto check = [](DescriptorKind kind, OperandMajor major, uint32_t leading, uint32_t stride,
                        int rows) {
    const uint32_t base = 0x1230;
    const uint64_t version = kind == DescriptorKind::kUmma ? 1 : 0;
    const uint64_t descriptor =
        base >> 4 | uint64_t{leading >> 4} << 16 | uint64_t{stride >> 4} << 32 | version << 46;
    expect_operand_at({kind, descriptor, major, Half::kBF16, rows}, [&](int row, int k) {
      const uint32_t matrix = base + row / 8 * stride + k / 8 * leading;
      return major == OperandMajor::kK ? matrix + row % 8 * 16 + k % 8 * 2
                                       : matrix + k % 8 * 16 + row % 8 * 2;
    });
  };
  for_each_combination(check, kKinds, std::array{OperandMajor::kK, OperandMajor::kMN},
                       std::array{128u, 2048u, 4112u}, std::array{128u, 256u, 1040u},
                       std::array{8, 24, 128, 256});
}

SharedOperand operand_of(DescriptorKind kind, uint64_t descriptor) {
  return {kind, descriptor, OperandMajor::kK, Half::kBF16, 64};
}

TEST(DescriptorProblem, NamesFieldValueAndExpectation) {
  struct Case {
    DescriptorKind kind;
    int bit;
    const char* message;
  };
  const Case cases[] = {
      {DescriptorKind::kGmma, 14, "reserved bits 14-15"},
      {DescriptorKind::kGmma, 31, "reserved bits 30-31"},
      {DescriptorKind::kGmma, 46, "reserved bits 46-48"},
      {DescriptorKind::kGmma, 50, "base offset (bits 49-51)"},
      {DescriptorKind::kGmma, 61, "reserved bits 52-61"},
      {DescriptorKind::kUmma, 15, "reserved bits 14-15"},
      {DescriptorKind::kUmma, 30, "reserved bits 30-31"},
      {DescriptorKind::kUmma, 46, "version (bits 46-48)"},
      {DescriptorKind::kUmma, 47, "version (bits 46-48)"},
      {DescriptorKind::kUmma, 49, "base offset (bits 49-51)"},
      {DescriptorKind::kUmma, 52, "mode of the leading byte offset (bit 52)"},
      {DescriptorKind::kUmma, 60, "reserved bits 53-60"},
      {DescriptorKind::kUmma, 61, "swizzle (bits 61-63)"},
  };
  for (const Case& c : cases) {
    const uint64_t good = tile_descriptor(c.kind, 1024, {64, Swizzle::k128B}, Major::kK);
    EXPECT_EQ(descriptor_problem(operand_of(c.kind, good), kSharedBytes), "");
    const uint64_t bad = good ^ uint64_t{1} << c.bit;
    const std::string problem = descriptor_problem(operand_of(c.kind, bad), kSharedBytes);
    EXPECT_NE(problem.find(c.message), std::string::npos) << problem;
    EXPECT_NE(problem.find("got "), std::string::npos) << problem;
    EXPECT_NE(problem.find("expected "), std::string::npos) << problem;
  }
}

TEST(DescriptorProblem, SwizzleCodesOfSm100) {
  for (uint64_t code = 0; code < 8; ++code) {
    const uint64_t descriptor = umma_descriptor(1024, {64, Swizzle::k128B}, Major::kK);
    const uint64_t changed = (descriptor & ~(uint64_t{7} << 61)) | code << 61;
    const std::string problem =
        descriptor_problem(operand_of(DescriptorKind::kUmma, changed), kSharedBytes);
    EXPECT_EQ(problem.empty(), code % 2 == 0) << problem;
  }
}

TEST(DescriptorProblem, OperandBeyondTheAddressField) {
  const TileLayout tile{256, Swizzle::k128B};
  const SharedOperand operand{DescriptorKind::kUmma, umma_descriptor(0x3fc00, tile, Major::kK),
                              OperandMajor::kK, Half::kF16, 256};
  EXPECT_EQ(descriptor_problem(operand, kSharedBytes),
            "operand of 256 rows at shared-memory descriptor 0x4000404000013fc0: reaches byte "
            "0x47c00, expected at most 0x38c00, the size of shared memory");
}

TEST(FindElement, EveryElementAndNothingElse) {
  static constexpr uint16_t kPattern = 0x7fbd;
  const auto check = [](Swizzle swizzle, OperandMajor major) {
    const bool k_major = major == OperandMajor::kK;
    const TileLayout tile{k_major ? 64u : 32u, swizzle};
    const Major tile_major = k_major ? Major::kK : Major::kMN;
    const SharedOperand operand{DescriptorKind::kUmma, umma_descriptor(2048, tile, tile_major),
                                major, Half::kBF16, 64};
    std::vector<uint8_t> shared(32 << 10);
    uint32_t found = 0;
    int count = 0;
    for (uint32_t offset = 0; offset < shared.size(); offset += 2) {
      std::memcpy(&shared[offset], &kPattern, 2);
      if (find_element(operand, shared.data(), kPattern, &found)) {
        ++count;
        ASSERT_EQ(found, offset);
      }
      std::memset(&shared[offset], 0, 2);
    }
    EXPECT_EQ(count, 64 * kK);
  };
  for_each_combination(check, kSwizzles, std::array{OperandMajor::kK, OperandMajor::kMN});
}

// ---- Conversions --------------------------------------------------------------------------------

TEST(ReadOperand, EveryElementInEveryInstructionSet) {
  std::vector<uint8_t> shared(2 << 16);
  for (uint32_t i = 0; i < 1 << 16; ++i) {
    const auto element = static_cast<uint16_t>(i);
    std::memcpy(&shared[2 * i], &element, 2);
  }
  const auto check = [&](const TensorKernels* kernels, OperandMajor major, Half type, int part) {
    SCOPED_TRACE(kernels->name);
    OperandUnits units{kMaxOperandRows / 8, major, {}};
    const int count = 2 * kMaxOperandRows;
    for (int i = 0; i < count; ++i) units.unit[i] = 16 * (part * count + (i * 77 & (count - 1)));
    std::vector<float> read(kK * kMaxOperandRows);
    kernels->read_units(units, shared.data(), type, read.data(), kMaxOperandRows);
    std::vector<uint16_t> copy(kK * kMaxOperandRows);
    kernels->copy_units(units, shared.data(), copy.data());
    for (int k = 0; k < kK; ++k) {
      for (int row = 0; row < kMaxOperandRows; ++row) {
        const bool k_major = major == OperandMajor::kK;
        const uint32_t* matrix = units.unit + (2 * (row / 8) + k / 8) * 8;
        const uint32_t offset = k_major ? matrix[row % 8] + k % 8 * 2 : matrix[k % 8] + row % 8 * 2;
        const uint16_t want = element_at(shared, offset);
        ASSERT_EQ(copy[k * kMaxOperandRows + row], want);
        ASSERT_TRUE(same(read[k * kMaxOperandRows + row], float_of(want, type))) << want;
      }
    }
    const uint16_t last = element_at(shared, units.unit[count - 1] + 14);
    EXPECT_EQ(kernels->find_in_units(units, shared.data(), last), count - 1);
    EXPECT_EQ(kernels->find_in_units(units, shared.data(), static_cast<uint16_t>(last + 4096)), -1);
  };
  for_each_combination(check, kernels_of_this_machine(),
                       std::array{OperandMajor::kK, OperandMajor::kMN}, kTypes, from_to(0, 15));
}

TEST(ReadTmemOperand, PairsOfElementsInACell) {
  std::mt19937 random(1);
  constexpr size_t kColumnCells = 131;
  std::vector<uint32_t> cells(kColumnCells * kK / 2);
  for (uint32_t& cell : cells) cell = random();
  const auto check = [&](const TensorKernels* kernels, Half type, int rows) {
    SCOPED_TRACE(kernels->name);
    const size_t stride = rows + 5;
    std::vector<float> read(kK * stride, 12345.0f);
    kernels->read_tmem_operand(cells.data(), kColumnCells, rows, type, read.data(), stride);
    for (int k = 0; k < kK; ++k) {
      for (int row = 0; row < rows; ++row) {
        const uint32_t cell = cells[k / 2 * kColumnCells + row];
        const auto element = static_cast<uint16_t>(k % 2 == 0 ? cell : cell >> 16);
        ASSERT_TRUE(same(read[k * stride + row], float_of(element, type))) << row << " " << k;
      }
      for (size_t gap = rows; gap < stride; ++gap) ASSERT_EQ(read[k * stride + gap], 12345.0f);
    }
  };
  for_each_combination(check, kernels_of_this_machine(), kTypes, std::array{16, 64, 128});
}

TEST(ReadFragmentOperand, RegistersOfA) {
  std::mt19937 random(2);
  uint32_t lanes[4][32];
  for (auto& plane : lanes) {
    for (uint32_t& lane : plane) lane = random();
  }
  const uint32_t* planes[4] = {lanes[0], lanes[1], lanes[2], lanes[3]};
  const auto check = [&](const TensorKernels* kernels, Half type) {
    SCOPED_TRACE(kernels->name);
    float read[kK * 16];
    kernels->read_fragment_operand(planes, type, read);
    for (int plane = 0; plane < 4; ++plane) {
      for (int lane = 0; lane < 32; ++lane) {
        const int row = lane / 4 + 8 * (plane % 2);
        const int k = 2 * (lane % 4) + 8 * (plane / 2);
        const auto low = static_cast<uint16_t>(lanes[plane][lane]);
        const auto high = static_cast<uint16_t>(lanes[plane][lane] >> 16);
        ASSERT_TRUE(same(read[k * 16 + row], float_of(low, type))) << plane << " " << lane;
        ASSERT_TRUE(same(read[(k + 1) * 16 + row], float_of(high, type))) << plane << " " << lane;
      }
    }
  };
  for_each_combination(check, kernels_of_this_machine(), kTypes);
}

// ---- Products -----------------------------------------------------------------------------------

constexpr std::array kModes{Accumulate::kSequential, Accumulate::kExact};

/// One element of D; a[k] and b[k] are its row of A and its column of B.
float dot(float d, const std::vector<float>& a, const std::vector<float>& b, Accumulate mode) {
  for (size_t first = 0; first < a.size(); first += kK) {
    double exact = d;
    for (size_t k = first; k < first + kK; ++k) {
      d = std::fma(a[k], b[k], d);
      exact += static_cast<double>(a[k]) * b[k];
    }
    if (mode == Accumulate::kExact) d = static_cast<float>(exact);
  }
  return d;
}

/// Elements of 16-bit operands: mostly moderate, of very different magnitude, some special.
std::vector<float> operand_values(size_t count, uint32_t seed, bool special) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    const auto element = static_cast<uint16_t>(random());
    const uint16_t moderate = (element & 0x83ff) | (11 + random() % 8) << 10;
    value = float_of(special && random() % 64 == 0 ? element : moderate, Half::kF16);
  }
  return values;
}

struct Problem {
  int m, n, k;
  bool accumulate;
  bool special;
};

void expect_product(const TensorKernels& kernels, Accumulate mode, Problem p) {
  SCOPED_TRACE(testing::Message() << kernels.name << ", m " << p.m << ", n " << p.n << ", k " << p.k
                                  << ", mode " << int(mode));
  const size_t a_stride = p.m + 1, b_stride = p.n + 3, d_stride = p.m + 7;
  const std::vector<float> a = operand_values(a_stride * p.k, 3, p.special);
  const std::vector<float> b = operand_values(b_stride * p.k, 4, p.special);
  const std::vector<float> before = operand_values(d_stride * p.n, 5, p.special);
  std::vector<float> d = before;
  Product product{};
  product.d = d.data();
  product.d_stride = d_stride;
  product.a = a.data();
  product.a_stride = a_stride;
  product.b = b.data();
  product.b_stride = b_stride;
  product.m = p.m;
  product.n = p.n;
  product.k = p.k;
  product.accumulate = p.accumulate;
  kernels.multiply(product, mode);
  std::vector<float> row(p.k), column(p.k);
  for (int n = 0; n < p.n; ++n) {
    for (int k = 0; k < p.k; ++k) column[k] = b[k * b_stride + n];
    for (int m = 0; m < p.m; ++m) {
      for (int k = 0; k < p.k; ++k) row[k] = a[k * a_stride + m];
      const size_t cell = n * d_stride + m;
      const float want = dot(p.accumulate ? before[cell] : 0.0f, row, column, mode);
      ASSERT_TRUE(same(d[cell], want)) << m << " " << n << ": " << d[cell] << ", want " << want;
    }
    for (size_t gap = n * d_stride + p.m; gap < (n + 1) * d_stride; ++gap)
      ASSERT_TRUE(same(d[gap], before[gap])) << "written beyond column " << n;
  }
}

TEST(Multiply, EveryWidth) {
  const auto check = [](const TensorKernels* kernels, Accumulate mode, int n8, bool accumulate) {
    expect_product(*kernels, mode, {16, 8 * n8, 16, accumulate, false});
  };
  for_each_combination(check, kernels_of_this_machine(), kModes, from_to(1, 32),
                       std::array{false, true});
}

TEST(Multiply, EveryHeight) {
  const auto check = [](const TensorKernels* kernels, Accumulate mode, int m16) {
    expect_product(*kernels, mode, {16 * m16, 24, 32, true, false});
  };
  for_each_combination(check, kernels_of_this_machine(), kModes, from_to(1, 8));
}

TEST(Multiply, SeveralInstructionsAtOnce) {
  const auto check = [](const TensorKernels* kernels, Accumulate mode, int k, bool accumulate) {
    expect_product(*kernels, mode, {48, 40, k, accumulate, false});
  };
  for_each_combination(check, kernels_of_this_machine(), kModes,
                       std::array{16, 48, 128, 144, 256, 272}, std::array{false, true});
}

TEST(Multiply, InfinitiesNansDenormalsAndZeros) {
  const auto check = [](const TensorKernels* kernels, Accumulate mode, bool accumulate) {
    expect_product(*kernels, mode, {128, 64, 16, accumulate, true});
  };
  for_each_combination(check, kernels_of_this_machine(), kModes, std::array{false, true});
}

TEST(Multiply, RoundingModesDiffer) {
  const std::vector<float> ones(kK * 16, 1.0f);
  for (const TensorKernels* kernels : kernels_of_this_machine()) {
    for (Accumulate mode : kModes) {
      std::vector<float> d(16 * 8, 0x1p24f);  // the next float is 2 away
      Product product{d.data(), 16, ones.data(), 16, ones.data(), 16, 16, 8, kK, true};
      kernels->multiply(product, mode);
      const float want = mode == Accumulate::kExact ? 0x1p24f + 16 : 0x1p24f;
      for (float value : d) ASSERT_EQ(value, want) << kernels->name;
    }
  }
}

void expect_fragments(const TensorKernels& kernels, Accumulate mode, Problem p) {
  SCOPED_TRACE(testing::Message() << kernels.name << ", n " << p.n << ", mode " << int(mode));
  const std::vector<float> a = operand_values(kK * 16, 6, p.special);
  const std::vector<float> b = operand_values(kK * p.n, 7, p.special);
  const std::vector<float> before = operand_values(16 * p.n, 8, p.special);
  std::vector<float> d = before;
  std::vector<float*> planes(p.n / 2);
  // Planes in reverse, because registers of an accumulator need not be neighbours.
  for (int i = 0; i < p.n / 2; ++i) planes[i] = d.data() + 32 * (p.n / 2 - 1 - i);
  kernels.multiply_fragments(planes.data(), a.data(), b.data(), p.n, p.accumulate, mode);
  std::vector<float> row(kK), column(kK);
  for (int i = 0; i < p.n / 2; ++i) {
    for (int lane = 0; lane < 32; ++lane) {
      const int m = lane / 4 + 8 * (i / 2 % 2);
      const int n = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      for (int k = 0; k < kK; ++k) {
        row[k] = a[k * 16 + m];
        column[k] = b[k * p.n + n];
      }
      const float old = before[planes[i] - d.data() + lane];
      const float want = dot(p.accumulate ? old : 0.0f, row, column, mode);
      ASSERT_TRUE(same(planes[i][lane], want)) << "register " << i << ", lane " << lane;
    }
  }
}

TEST(MultiplyFragments, EveryWidth) {
  const auto check = [](const TensorKernels* kernels, Accumulate mode, int n8, bool accumulate,
                        bool special) {
    expect_fragments(*kernels, mode, {16, 8 * n8, kK, accumulate, special});
  };
  for_each_combination(check, kernels_of_this_machine(), kModes, from_to(1, 32),
                       std::array{false, true}, std::array{false, true});
}

// The functions of the contract pass their arguments on in order.
TEST(Dispatch, ToTheKernelsOfThisMachine) {
  const std::vector<float> a = operand_values(kK * 16, 9, false);
  const std::vector<float> b = operand_values(kK * 8, 10, false);
  for (Accumulate mode : kModes) {
    std::vector<float> got(16 * 8), want(16 * 8);
    multiply({got.data(), 16, a.data(), 16, b.data(), 8, 16, 8, kK, false}, mode);
    kTensorKernelsBaseline.multiply({want.data(), 16, a.data(), 16, b.data(), 8, 16, 8, kK, false},
                                    mode);
    EXPECT_EQ(got, want);

    float* got_planes[] = {&got[0], &got[32], &got[64], &got[96]};
    float* want_planes[] = {&want[0], &want[32], &want[64], &want[96]};
    multiply_fragments(got_planes, a.data(), b.data(), 8, true, mode);
    kTensorKernelsBaseline.multiply_fragments(want_planes, a.data(), b.data(), 8, true, mode);
    EXPECT_EQ(got, want);
  }
  uint32_t cells[8 * 32];
  for (int i = 0; i < 8 * 32; ++i) cells[i] = 0x3c003800u + i;
  std::vector<float> got(kK * 32), want(kK * 32);
  read_tmem_operand(cells, 32, 32, Half::kF16, got.data(), 32);
  kTensorKernelsBaseline.read_tmem_operand(cells, 32, 32, Half::kF16, want.data(), 32);
  EXPECT_EQ(got, want);
  const uint32_t* planes[] = {cells, cells + 32, cells + 64, cells + 96};
  read_fragment_operand(planes, Half::kF16, got.data());
  kTensorKernelsBaseline.read_fragment_operand(planes, Half::kF16, want.data());
  EXPECT_EQ(got, want);
}

// ---- Choice of the instruction set --------------------------------------------------------------

[[noreturn]] void exit_with_choice(const char* wish) {
  setenv("FA4_EMULATOR_ISA", wish, 1);
  std::exit(static_cast<int>(host_isa()));
}

TEST(IsaChoiceDeathTest, HonoursTheEnvironment) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process that has not chosen yet
  const auto at_most = [](Isa wish) {
    int widest = static_cast<int>(wish);
    while (!host_supports(static_cast<Isa>(widest))) --widest;
    return widest;
  };
  EXPECT_EXIT(exit_with_choice("baseline"), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(exit_with_choice("avx2"), testing::ExitedWithCode(at_most(Isa::kAvx2)), "");
  EXPECT_EXIT(exit_with_choice("avx512"), testing::ExitedWithCode(at_most(Isa::kAvx512)), "");
  EXPECT_EXIT(exit_with_choice(""), testing::ExitedWithCode(at_most(Isa::kAvx512)), "");
}

}  // namespace
}  // namespace fa4::emulator::test
