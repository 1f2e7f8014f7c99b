// Backward of the CPU backend against the definition in double precision, and once against
// differences of its own forward.
#include <gtest/gtest.h>

#include "tests/cpu/cases.h"

namespace fa4::test {
namespace {

class Bwd : public testing::TestWithParam<Case> {};

/// Forward, then backward, of a case.
Status run(Data& data, const Context& context) {
  Status status = cpu::fwd(data.fwd_params(), context);
  return status.ok() ? cpu::bwd(data.bwd_params(), context) : status;
}

TEST_P(Bwd, MatchesTheDefinition) {
  Data data(GetParam());
  const Status status = run(data, with_threads(2));
  ASSERT_TRUE(status.ok()) << status.message;
  const BwdResult expected = reference_bwd(data);
  const double arithmetic = 2 * arithmetic_error(data.spec);
  EXPECT_EQ(compare(data.dq, expected.dq, arithmetic), "") << "dq";
  EXPECT_EQ(compare(data.dk, expected.dk, arithmetic), "") << "dk";
  EXPECT_EQ(compare(data.dv, expected.dv, arithmetic), "") << "dv";
  for (int64_t head = 0; data.spec.sink && head < data.spec.heads_q; ++head) {
    const double got = read(data.spec.sink_dtype, data.dsink.data(), head);
    const double bound =
        rounding_error(data.spec.sink_dtype) * std::fabs(expected.dsink[head]) + 2e-5;
    EXPECT_NEAR(got, expected.dsink[head], bound) << "dsink of head " << head;
  }
}

TEST_P(Bwd, SameBitsForAnyNumberOfThreads) {
  Data data(GetParam());
  ASSERT_TRUE(run(data, with_threads(1)).ok());
  const auto expected = bytes({&data.dq, &data.dk, &data.dv});
  for (int threads : {2, 3, 4}) {
    Data again(GetParam());
    ASSERT_TRUE(run(again, with_threads(threads)).ok());
    EXPECT_EQ(bytes({&again.dq, &again.dk, &again.dv}), expected) << threads << " threads";
    EXPECT_EQ(again.dsink, data.dsink) << threads << " threads";
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Bwd, testing::ValuesIn(shared_cases()),
                         case_name<testing::TestParamInfo<Case>>);

/// Sum of dout * out and dlse * lse: the scalar whose gradients the backward computes.
double loss(const Data& data) {
  FwdResult result = reference_fwd(data);
  double sum = 0.0;
  for (int64_t r = 0; r < data.out.rows; ++r) {
    for (int64_t h = 0; h < data.out.heads; ++h) {
      for (int64_t i = 0; i < data.out.dim; ++i) {
        sum += data.dout.get(0, r, h, i) * result.out.at(0, r, h, i);
      }
      sum += data.dlse.get(0, r, h) * result.lse.at(0, r, h);
    }
  }
  return sum;
}

/// Derivative of the loss with respect to one element, from two forwards of the definition.
double slope(Data& data, Tensor& tensor, int64_t row, int64_t head, int64_t i) {
  constexpr double kStep = 0x1p-6;
  const double value = tensor.get(0, row, head, i);
  tensor.set(0, row, head, i, value + kStep);
  const double above = loss(data);
  tensor.set(0, row, head, i, value - kStep);
  const double below = loss(data);
  tensor.set(0, row, head, i, value);
  return (above - below) / (2 * kStep);
}

TEST(BwdDifferences, MatchDifferencesOfTheForward) {
  Data data({.seqlen_q = 6,
             .seqlen_k = 9,
             .heads_q = 4,
             .heads_k = 2,
             .head_dim = 8,
             .head_dim_v = 16,
             .causal = true,
             .window_left = 4,
             .softcap = 1.5f,
             .sink = true,
             .dlse = true});
  ASSERT_TRUE(run(data, Context{}).ok());
  constexpr double kBound = 1e-3;  // of the differences: step^2 times a third derivative
  for (int64_t row = 0; row < 6; ++row) {
    EXPECT_NEAR(data.dq.get(0, row, row % 4, 5), slope(data, data.q, row, row % 4, 5), kBound);
  }
  for (int64_t key = 0; key < 9; ++key) {
    EXPECT_NEAR(data.dk.get(0, key, key % 2, 3), slope(data, data.k, key, key % 2, 3), kBound);
    EXPECT_NEAR(data.dv.get(0, key, key % 2, 9), slope(data, data.v, key, key % 2, 9), kBound);
  }
  for (int64_t head = 0; head < 4; ++head) {
    constexpr float kStep = 0x1p-6f;
    const float value = data.sink_values[head];
    data.sink_values[head] = value + kStep;
    const double above = loss(data);
    data.sink_values[head] = value - kStep;
    const double below = loss(data);
    data.sink_values[head] = value;
    EXPECT_NEAR(read(kF32, data.dsink.data(), head), (above - below) / (2 * kStep), kBound);
  }
}

/// Rows of a gradient that hold NaN in any element.
std::vector<bool> rows_with_nan(const Tensor& gradient) {
  std::vector<bool> rows;
  for (int64_t r = 0; r < gradient.rows; ++r) {
    bool any = false;
    for (int64_t i = 0; i < gradient.dim; ++i) any = any || std::isnan(gradient.get(0, r, 0, i));
    rows.push_back(any);
  }
  return rows;
}

TEST(BwdNaN, InUsedRowsReachesOnlyWhoSeesIt) {
  constexpr int64_t kRows = 200, kBad = 70;
  const Case spec{.seqlen_q = kRows, .seqlen_k = kRows, .causal = true};
  Data q(spec), k(spec);
  q.q.set(0, kBad, 0, 3, std::nan(""));
  k.k.set(0, kBad, 0, 3, std::nan(""));
  ASSERT_TRUE(run(q, Context{}).ok());
  ASSERT_TRUE(run(k, Context{}).ok());
  std::vector<bool> row(kRows), rows_from(kRows), keys_to(kRows);
  row[kBad] = true;
  for (int64_t r = 0; r < kRows; ++r) rows_from[r] = r >= kBad, keys_to[r] = r <= kBad;
  EXPECT_EQ(rows_with_nan(q.dq), row);
  EXPECT_EQ(rows_with_nan(q.dk), keys_to);
  EXPECT_EQ(rows_with_nan(q.dv), keys_to);
  EXPECT_EQ(rows_with_nan(k.dq), rows_from);
}

TEST(BwdNaN, InGradientsOfRowsWithoutKeysIsNotRead) {
  Data data({.seqlen_q = 20, .seqlen_k = 10, .causal = true});
  for (int64_t i = 0; i < 16; ++i) data.dout.set(0, 4, 0, i, std::nan(""));
  ASSERT_TRUE(run(data, Context{}).ok());
  const std::vector<bool> none(20, false);
  EXPECT_EQ(rows_with_nan(data.dq), none);
  EXPECT_EQ(rows_with_nan(data.dk), std::vector<bool>(10, false));
  EXPECT_EQ(rows_with_nan(data.dv), std::vector<bool>(10, false));
}

TEST(BwdThreads, OwnThreadsGiveTheSameBits) {
  const Case spec{.batch = 3, .seqlen_q = 300, .seqlen_k = 300, .heads_q = 2, .causal = true};
  Data data(spec), again(spec);
  ASSERT_TRUE(run(data, with_threads(1)).ok());
  Context context;
  context.num_threads = 3;
  ASSERT_TRUE(run(again, context).ok());
  EXPECT_EQ(bytes({&again.dq, &again.dk, &again.dv}), bytes({&data.dq, &data.dk, &data.dv}));
}

TEST(BwdErrors, ContentsAreCheckedBeforeAnythingIsWritten) {
  Data data({.batch = 2, .seqlen_q = 5, .seqlen_k = 5, .lengths_q = {3, 5}, .lengths_k = {4, 5}});
  ASSERT_TRUE(cpu::fwd(data.fwd_params(), Context{}).ok());
  const auto before = bytes({&data.dq, &data.dk, &data.dv});
  data.cu_k[2] = 2;
  const Status status = cpu::bwd(data.bwd_params(), Context{});
  EXPECT_EQ(status.code, Code::kInvalidValue);
  EXPECT_EQ(status.message, "cu_seqlens_k: must not decrease from 4, got 2 at index 2");
  EXPECT_EQ(bytes({&data.dq, &data.dk, &data.dv}), before);
}

}  // namespace
}  // namespace fa4::test
