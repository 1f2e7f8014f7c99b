// Value checks: every rule, by the text that names argument, rule and value.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "csrc/dispatch/check.h"

namespace fa4 {

namespace {

template <class Params>
Params valid_problem() {
  Params p;
  p.batch = 2;
  p.seqlen_q = p.seqlen_k = 16;
  p.heads_q = 4;
  p.heads_k = 2;
  p.head_dim = p.head_dim_v = 64;
  return p;
}

struct Case {
  std::function<void(FwdParams&)> break_it;
  const char* message;
};

}  // namespace

TEST(Check, ValidCallsPass) {
  EXPECT_TRUE(check(valid_problem<FwdParams>()).ok());
  EXPECT_TRUE(check(valid_problem<BwdParams>()).ok());
}

TEST(Check, EveryForwardRuleNamesArgumentAndValue) {
  static const int32_t metadata[3] = {};
  const Case cases[] = {
      {[](FwdParams& p) { p.heads_k = 3; },
       "k: heads_k must be positive and divide heads_q, got heads_q=4, heads_k=3"},
      {[](FwdParams& p) { p.heads_k = 0; },
       "k: heads_k must be positive and divide heads_q, got heads_q=4, heads_k=0"},
      {[](FwdParams& p) { p.head_dim = 12; },
       "q: head_dim must be a positive multiple of 8, got 12"},
      {[](FwdParams& p) { p.head_dim_v = 0; },
       "v: head_dim must be a positive multiple of 8, got 0"},
      {[](FwdParams& p) { p.seqlen_q = int64_t{1} << 31; },
       "q: seqlen_q: must be within 0..2^31-1, got 2147483648"},
      {[](FwdParams& p) { p.seqlen_k = -1, p.cu_seqlens_k = metadata; },
       "max_seqlen_k: must be within 0..2^31-1, got -1"},
      {[](FwdParams& p) { p.total_q = int64_t{1} << 31, p.cu_seqlens_q = metadata; },
       "q: total_q: must be within 0..2^31-1, got 2147483648"},
      {[](FwdParams& p) { p.softmax_scale = 0.0f; },
       "softmax_scale: must be finite and > 0, got 0.000000"},
      {[](FwdParams& p) { p.softmax_scale = NAN; },
       "softmax_scale: must be finite and > 0, got nan"},
      {[](FwdParams& p) { p.softcap = -1.0f; },
       "softcap: must be finite and >= 0 (0 is off), got -1.000000"},
      {[](FwdParams& p) { p.window_left = -2; },
       "window_left: must be -1 (unbounded) or a number of tokens >= 0, got -2"},
      {[](FwdParams& p) { p.window_right = -7; },
       "window_right: must be -1 (unbounded) or a number of tokens >= 0, got -7"},
      {[](FwdParams& p) { p.num_splits = 257; },
       "num_splits: must be within 0 (automatic)..256, got 257"},
      {[](FwdParams& p) { p.num_splits = -1; },
       "num_splits: must be within 0 (automatic)..256, got -1"},
      {[](FwdParams& p) { p.page_table = metadata; },
       "seqused_k: must be given with page_table, got None"},
      {[](FwdParams& p) { p.page_table = p.seqused_k = p.cu_seqlens_k = metadata; },
       "cu_seqlens_k: must be None with page_table, got a tensor"},
  };
  for (const Case& c : cases) {
    FwdParams p = valid_problem<FwdParams>();
    c.break_it(p);
    const Status status = check(p);
    EXPECT_EQ(status.code, Code::kInvalidValue);
    EXPECT_EQ(status.message, c.message);
  }
}

TEST(Check, CombineRules) {
  CombineParams p;
  p.num_splits = 4;
  p.batch = p.rows = p.heads = 1;
  p.head_dim_v = 64;
  EXPECT_TRUE(check(p).ok());
  p.num_splits = 0;
  EXPECT_EQ(check(p).message, "out_partial: number of splits must be within 1..256, got 0");
  p.num_splits = 257;
  EXPECT_EQ(check(p).message, "out_partial: number of splits must be within 1..256, got 257");
  p.num_splits = 4;
  p.head_dim_v = 20;
  EXPECT_EQ(check(p).message, "out_partial: head_dim must be a positive multiple of 8, got 20");
}

}  // namespace fa4
