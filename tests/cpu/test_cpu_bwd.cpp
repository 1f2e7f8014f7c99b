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

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return info.param.name + "_" + std::to_string(info.index);
}

INSTANTIATE_TEST_SUITE_P(Cases, Bwd, testing::ValuesIn(shared_cases()), case_name);

}  // namespace
}  // namespace fa4::test
