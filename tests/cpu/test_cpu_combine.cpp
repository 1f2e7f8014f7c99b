// Merge of partial results against the definition in double precision.
#include <gtest/gtest.h>

#include "tests/cpu/reference.h"

namespace fa4::test {
namespace {

struct CombineCase {
  DType partial = DType::kFloat32;
  DType out = DType::kFloat32;
  int64_t splits = 2, batch = 2, rows = 5, heads = 3, dim = 24;
  Layout layout = Layout::kRowMajor;
};

/// Partial results of random size; every third lse is -inf over a partial result of NaN, and one
/// row saw nothing at all.
struct CombineData {
  CombineCase spec;
  Tensor partial, lse_partial, out, lse;  // partial: splits are the outermost part of batch

  explicit CombineData(const CombineCase& c) : spec(c) {
    partial = Tensor(c.partial, c.splits * c.batch, c.rows, c.heads, c.dim, c.layout);
    lse_partial =
        Tensor(DType::kFloat32, c.splits * c.batch, c.rows, c.heads, 1, Layout::kHeadMajor);
    out = Tensor(c.out, c.batch, c.rows, c.heads, c.dim, c.layout);
    lse = Tensor(DType::kFloat32, c.batch, c.rows, c.heads, 1, Layout::kHeadMajor);
    std::mt19937 random(3);
    std::normal_distribution<double> normal;
    int count = 0;
    for (int64_t b = 0; b < partial.batch; ++b) {
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t h = 0; h < c.heads; ++h) {
          const bool empty = count++ % 3 == 1 || r == 2;
          lse_partial.set(b, r, h, 0, empty ? -kInfinity : 5.0 * normal(random) - 300.0);
          for (int64_t i = 0; i < c.dim && !empty; ++i) partial.set(b, r, h, i, normal(random));
        }
      }
    }
  }

  CombineParams params() {
    CombineParams p;
    p.num_splits = spec.splits, p.batch = spec.batch, p.rows = spec.rows, p.heads = spec.heads;
    p.head_dim_v = spec.dim;
    p.partial_dtype = spec.partial, p.out_dtype = spec.out;
    p.out_partial = partial.input(), p.lse_partial = lse_partial.input_f32();
    p.out_partial_split_stride = spec.batch * partial.stride.batch;
    p.lse_partial_split_stride = spec.batch * lse_partial.stride.batch;
    p.out = out.output(), p.lse = lse.output_f32();
    return p;
  }
};

void reference_combine(const CombineData& d, Array& out, Array& lse) {
  const CombineCase& c = d.spec;
  for (int64_t n = 0; n < c.batch * c.rows * c.heads; ++n) {
    const int64_t h = n % c.heads, r = n / c.heads % c.rows, b = n / c.heads / c.rows;
    double maximum = -kInfinity, sum = 0.0;
    for (int64_t s = 0; s < c.splits; ++s)
      maximum = std::max(maximum, d.lse_partial.get(s * c.batch + b, r, h));
    if (maximum == -kInfinity) continue;
    for (int64_t s = 0; s < c.splits; ++s)
      sum += std::exp(d.lse_partial.get(s * c.batch + b, r, h) - maximum);
    lse.at(b, r, h) = maximum + std::log(sum);
    for (int64_t s = 0; s < c.splits; ++s) {
      const double weight = std::exp(d.lse_partial.get(s * c.batch + b, r, h) - lse.at(b, r, h));
      for (int64_t i = 0; i < c.dim && weight > 0.0; ++i) {
        out.at(b, r, h, i) += weight * d.partial.get(s * c.batch + b, r, h, i);
      }
    }
  }
}

void check(const CombineCase& spec) {
  CombineData data(spec);
  const Status status = cpu::combine(data.params(), with_threads(3));
  ASSERT_TRUE(status.ok()) << status.message;
  Array out(data.out, 0.0), lse(data.lse, -kInfinity);
  reference_combine(data, out, lse);
  EXPECT_EQ(compare(data.out, out, 1e-6), "");
  EXPECT_EQ(compare(data.lse, lse, 1e-6), "");
}

TEST(Combine, MergesAnyNumberOfSplits) {
  for (int64_t splits : {1, 2, 3, 17, 256}) check({.splits = splits});
}

TEST(Combine, ConvertsBetweenTypes) {
  for (DType partial : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (DType out : {DType::kFloat32, DType::kFloat16, DType::kBFloat16})
      check({.partial = partial, .out = out});
  }
}

TEST(Combine, TakesStridesAndSizes) {
  check({.dim = 8, .layout = Layout::kGaps});
  check({.rows = 300, .dim = 256, .layout = Layout::kHeadMajor});
}

TEST(Combine, IgnoresSplitsWhoseWeightVanishes) {
  CombineData data({.splits = 2, .batch = 1, .rows = 1, .heads = 1, .dim = 8});
  data.lse_partial.set(0, 0, 0, 0, -500.0);
  data.lse_partial.set(1, 0, 0, 0, 100.0);
  for (int64_t i = 0; i < 8; ++i) {
    data.partial.set(0, 0, 0, i, std::nan(""));
    data.partial.set(1, 0, 0, i, 1.5);
  }
  ASSERT_TRUE(cpu::combine(data.params(), Context{}).ok());
  for (int64_t i = 0; i < 8; ++i) EXPECT_EQ(data.out.get(0, 0, 0, i), 1.5);
  EXPECT_EQ(data.lse.get(0, 0, 0), 100.0);
}

}  // namespace
}  // namespace fa4::test
