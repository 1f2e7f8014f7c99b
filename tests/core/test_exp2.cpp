// The exp2 polynomials against fp64: largest relative error, exact zeros, special values.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "flash_attn4/core/exp2.h"

namespace fa4 {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Errors {
  double degree3 = 0;
  double degree4 = 0;
  double degree5 = 0;
};

/// Raises `errors` to the relative errors at every `stride`-th float from +0 or -0 out to `end`.
void scan(float end, uint32_t stride, Errors& errors) {
  const uint32_t last = std::bit_cast<uint32_t>(end);
  for (uint64_t bits = last & 0x80000000u; bits <= last; bits += stride) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const double exact = std::exp2(double{x});
    const double scale = 1 / exact;
    errors.degree3 = std::max(errors.degree3, std::fabs(exp2_polynomial<3>(x) * scale - 1));
    errors.degree4 = std::max(errors.degree4, std::fabs(exp2_polynomial<4>(x) * scale - 1));
    errors.degree5 = std::max(errors.degree5, std::fabs(exp2_polynomial<5>(x) * scale - 1));
  }
}

Errors errors_of_every(uint32_t stride) {
  Errors errors;
  scan(8.5f, stride, errors);
  scan(-126.0f, stride, errors);
  return errors;
}

/// The stated bound holds, and it is no more than `slack` above what was found.
void expect_bounds(const Errors& errors, double slack) {
  const double found[] = {errors.degree3, errors.degree4, errors.degree5};
  for (int degree = 3; degree <= 5; ++degree) {
    EXPECT_LE(found[degree - 3], exp2_max_error(degree)) << "degree " << degree;
    EXPECT_GE(found[degree - 3] * slack, exp2_max_error(degree)) << "degree " << degree;
  }
}

TEST(Exp2, LargestErrorOfASample) {
  expect_bounds(errors_of_every(127), 1.05);
}

// Every float, about a minute: --gtest_also_run_disabled_tests --gtest_filter=*EveryFloat
TEST(Exp2, DISABLED_LargestErrorOfEveryFloat) {
  const Errors errors = errors_of_every(1);
  std::printf("degree 3: %.4e  degree 4: %.4e  degree 5: %.4e\n", errors.degree3, errors.degree4,
              errors.degree5);
  expect_bounds(errors, 1.05);
}

template <int kDegree>
void expect_special_values() {
  SCOPED_TRACE(testing::Message() << "degree " << kDegree);
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(exp2_polynomial<kDegree>(x)); };
  for (float x : {-127.0f, -127.5f, -128.0f, -1e4f, -3e38f, -kInfinity}) EXPECT_EQ(bits(x), 0u);
  EXPECT_EQ(bits(std::numeric_limits<float>::quiet_NaN()), 0u);
  EXPECT_EQ(bits(-std::numeric_limits<float>::quiet_NaN()), 0u);
  for (int n = -126; n <= 127; ++n)
    EXPECT_EQ(exp2_polynomial<kDegree>(static_cast<float>(n)), std::ldexp(1.0f, n)) << n;
  for (float x = -127.0f; x < -126.0f; x = std::nextafter(x, 0.0f) + 1e-4f) {
    EXPECT_GE(exp2_polynomial<kDegree>(x), 0.0f) << x;
    EXPECT_LT(exp2_polynomial<kDegree>(x), 1.2e-38f) << x;
  }
  const float below_limit = std::nextafter(128.0f, 0.0f);
  EXPECT_NEAR(exp2_polynomial<kDegree>(below_limit) / std::exp2(below_limit), 1.0,
              exp2_max_error(kDegree));
}

TEST(Exp2, SpecialValues) {
  expect_special_values<3>();
  expect_special_values<4>();
  expect_special_values<5>();
}

/// Each binade ends where the next begins: rounding the fraction up to 1 carries into the exponent.
TEST(Exp2, ContinuousAcrossIntegers) {
  for (int n = -125; n <= 8; ++n) {
    const float x = static_cast<float>(n);
    const float below = std::nextafter(x, -kInfinity);
    EXPECT_NEAR(exp2_polynomial<5>(below) / exp2_polynomial<5>(x), 1.0, 1e-5) << n;
  }
  EXPECT_NEAR(exp2_polynomial<3>(-1e-30f), 1.0f, 1e-4f);
}

/// The host takes the floor where the device rounds a sum down: both must give the same bits.
TEST(Exp2, FloorEqualsTheRoundedDownSum) {
  constexpr float kMagic = 12582912.0f;
  const auto rounded_down = [](float x, float magic) {
    volatile float addend = x;  // volatile: no addition before the rounding mode is set
    std::fesetround(FE_DOWNWARD);
    const volatile float sum = addend + magic;
    std::fesetround(FE_TONEAREST);
    return float{sum};
  };
  constexpr uint32_t kSign = 0x80000000u;
  for (uint32_t bits = 0; bits < std::bit_cast<uint32_t>(127.0f); bits += 10007)
    for (uint32_t signed_bits : {bits, bits | kSign}) {
      const float x = std::bit_cast<float>(signed_bits);
      ASSERT_EQ(detail::add_magic_down(x, kMagic), rounded_down(x, kMagic)) << x;
    }
  for (int n = -127; n < 128; ++n) {
    const float x = static_cast<float>(n);
    for (float near : {x, std::nextafter(x, kInfinity)})
      ASSERT_EQ(detail::add_magic_down(near, kMagic), rounded_down(near, kMagic)) << near;
  }
}

}  // namespace
}  // namespace fa4
