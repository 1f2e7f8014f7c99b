// Forward of the CPU backend against the definition in double precision.
#include <gtest/gtest.h>

#include "tests/cpu/cases.h"

namespace fa4::test {
namespace {

std::vector<Case> forward_cases() {
  std::vector<Case> cases = shared_cases();
  for (int64_t page : {1, 3, 16, 64, 100}) {
    cases.push_back({.name = "paged",
                     .batch = 3,
                     .seqlen_q = 5,
                     .seqlen_k = 3 * page * (page < 16 ? 20 : 1),
                     .heads_q = 4,
                     .heads_k = 2,
                     .head_dim = 32,
                     .head_dim_v = 40,
                     .causal = true,
                     .used_k = {static_cast<int32_t>(page + 1), 0, static_cast<int32_t>(3 * page)},
                     .page_size = page,
                     .layout = page == 16 ? Layout::kGaps : Layout::kRowMajor});
  }
  cases.push_back({.name = "paged_packed_bf16",
                   .dtype = DType::kBFloat16,
                   .batch = 3,
                   .seqlen_q = 20,
                   .seqlen_k = 96,
                   .heads_q = 2,
                   .heads_k = 2,
                   .lengths_q = {20, 0, 7},
                   .used_k = {33, 96, 50},
                   .page_size = 16});
  cases.push_back(
      {.name = "paged_all_used", .batch = 2, .seqlen_q = 3, .seqlen_k = 64, .page_size = 32});
  for (int64_t splits : {0, 2, 3, 7, 200}) {
    cases.push_back({.name = "splits",
                     .batch = 2,
                     .seqlen_q = 20,
                     .seqlen_k = 333,
                     .heads_q = 4,
                     .heads_k = 2,
                     .causal = true,
                     .sink = true,
                     .num_splits = splits});
    cases.push_back({.name = "splits_empty_rows",
                     .dtype = DType::kFloat16,
                     .batch = 2,
                     .seqlen_q = 200,
                     .seqlen_k = 100,
                     .heads_q = 2,
                     .causal = true,
                     .num_splits = splits});
    cases.push_back({.name = "splits_decode",
                     .dtype = DType::kBFloat16,
                     .batch = 2,
                     .seqlen_q = 1,
                     .seqlen_k = 1500,
                     .heads_q = 8,
                     .heads_k = 2,
                     .head_dim = 64,
                     .head_dim_v = 64,
                     .used_k = {1500, 3},
                     .num_splits = splits});
    cases.push_back({.name = "splits_packed_window",
                     .batch = 3,
                     .seqlen_q = 90,
                     .seqlen_k = 260,
                     .heads_q = 2,
                     .window_left = 60,
                     .window_right = 10,
                     .softcap = 3.0f,
                     .lengths_q = {4, 90, 0},
                     .lengths_k = {260, 100, 30},
                     .num_splits = splits});
  }
  return cases;
}

class Fwd : public testing::TestWithParam<Case> {};

TEST_P(Fwd, MatchesTheDefinition) {
  Data data(GetParam());
  const Status status = cpu::fwd(data.fwd_params(), with_threads(2));
  ASSERT_TRUE(status.ok()) << status.message;
  const FwdResult expected = reference_fwd(data);
  EXPECT_EQ(compare(data.out, expected.out, arithmetic_error(data.spec)), "") << "out";
  EXPECT_EQ(compare(data.lse, expected.lse, arithmetic_error(data.spec)), "") << "lse";
}

TEST_P(Fwd, SameBitsForAnyNumberOfThreads) {
  Data data(GetParam());
  ASSERT_TRUE(cpu::fwd(data.fwd_params(), with_threads(1)).ok());
  const auto expected = bytes({&data.out, &data.lse});
  for (int threads : {2, 3, 4}) {
    Data again(GetParam());
    ASSERT_TRUE(cpu::fwd(again.fwd_params(), with_threads(threads)).ok());
    EXPECT_EQ(bytes({&again.out, &again.lse}), expected) << threads << " threads";
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return info.param.name + "_" + std::to_string(info.index);
}

INSTANTIATE_TEST_SUITE_P(Cases, Fwd, testing::ValuesIn(forward_cases()), case_name);

}  // namespace
}  // namespace fa4::test
