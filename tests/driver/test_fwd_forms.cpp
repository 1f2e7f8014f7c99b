// Which form of an SM100 forward kernel a call takes: one CTA per tile, or a pair.
#include <gtest/gtest.h>

#include <cmath>

#include "csrc/dispatch/gpu.h"
#include "csrc/dispatch/select.h"
#include "tests/driver/fwd_calls.h"

namespace fa4 {

namespace {

using namespace fa4::test;

const Place kB200{false, 10, 0, "a B200", 148};

const KernelRow& kernel_for(const FwdParams& p, int ctas = 0) {
  Request request = request_of(p);
  request.ctas = ctas;
  const KernelRow* kernel = nullptr;
  const auto cost = [&](const KernelRow& row) { return gpu::clocks(row, p, kB200); };
  const Status status = select_kernel(request, kB200, cost, &kernel);
  EXPECT_TRUE(status.ok()) << status.message;
  return *kernel;
}

/// Of 32 heads in all: as many tiles as a GPU holds, or more.
FwdParams call(int64_t seqlen, int64_t head_dim = 128, bool causal = false) {
  FwdParams p = dense_call({.batch = 2,
                            .seqlen_q = seqlen,
                            .seqlen_k = seqlen,
                            .heads_q = 16,
                            .heads_k = 16,
                            .head_dim = head_dim,
                            .head_dim_v = head_dim == 64 ? 64 : 128});
  p.causal = causal;
  return p;
}

}  // namespace

TEST(FwdForms, PairsWhereTheyPay) {
  EXPECT_STREQ(kernel_for(call(8192)).name, "fa4_fwd_sm100_hd128_pair_bf16");
  EXPECT_STREQ(kernel_for(call(8192, 192)).name, "fa4_fwd_sm100_hd192_pair_bf16");
  EXPECT_STREQ(kernel_for(call(8192, 112)).name, "fa4_fwd_sm100_hd128_pair_bf16");
}

TEST(FwdForms, OneCtaWhereThereIsNoPair) {
  EXPECT_STREQ(kernel_for(call(8192, 64)).name, "fa4_fwd_sm100_hd64_bf16");
  EXPECT_STREQ(kernel_for(call(8192, 64), 2).name, "fa4_fwd_sm100_hd64_bf16");
}

/// A tile of 512 rows has blocks that many of them do not see, and twice as many with a mask. Where
/// tiles have a hundred others that is little.
TEST(FwdForms, CausalCallsOfOrdinaryLengthStayWithOneCta) {
  for (int64_t seqlen : {1024, 2048, 4096, 8192})
    EXPECT_EQ(kernel_for(call(seqlen, 128, true)).ctas, 1) << seqlen;
  EXPECT_EQ(kernel_for(call(65536, 128, true)).ctas, 2);
  FwdParams window = call(16384);
  window.window_left = 500;
  window.window_right = 100;
  EXPECT_EQ(kernel_for(window).ctas, 1);
}

TEST(FwdForms, TheSecondCtaNeedsRows) {
  EXPECT_EQ(kernel_for(call(256)).ctas, 1);
  FwdParams decoding = call(8192);
  decoding.seqlen_q = 1;
  EXPECT_EQ(kernel_for(decoding).ctas, 1);
  // Packed heads are rows as well: 100 queries of eight heads are 800.
  decoding.seqlen_q = 100;
  decoding.heads_k = 2;
  EXPECT_EQ(kernel_for(decoding).ctas, 2);
}

/// 513 queries are three tiles of one CTA, 240 in two rounds, and two pairs, 160 in three.
TEST(FwdForms, EmptyRowsOfTheLastTileCount) {
  FwdParams p = call(513);
  p.heads_q = p.heads_k = 40;
  EXPECT_EQ(kernel_for(p).ctas, 1);
  p.seqlen_q = 1024;
  EXPECT_EQ(kernel_for(p).ctas, 2);
}

TEST(FwdForms, PackedSequencesCountWithTheirMeanLength) {
  const Shape shape{.batch = 8,
                    .seqlen_q = 8192,
                    .seqlen_k = 8192,
                    .heads_q = 16,
                    .heads_k = 16,
                    .head_dim = 128,
                    .head_dim_v = 128};
  EXPECT_EQ(kernel_for(packed_call(shape, 8 * 8192, 8 * 8192)).ctas, 2);
  EXPECT_EQ(kernel_for(packed_call(shape, 8 * 300, 8 * 300)).ctas, 1) << "many idle rows";
}

TEST(FwdForms, AFormCanBeAskedFor) {
  EXPECT_EQ(kernel_for(call(8192), 1).ctas, 1);
  EXPECT_EQ(kernel_for(call(8192), 2).ctas, 2);
  EXPECT_EQ(kernel_for(call(8192, 128, true), 2).ctas, 2);
  EXPECT_EQ(kernel_for(call(100), 2).ctas, 2);
}

TEST(FwdForms, ClocksAreThoseOfTheDocument) {
  // One head, as many keys as queries, one round: 64 steps of one CTA and of a pair.
  FwdParams p = call(8192);
  p.batch = p.heads_q = p.heads_k = 1;
  EXPECT_DOUBLE_EQ(gpu::clocks(kernel_for(p, 1), p, kB200), 64 * 2432.0);
  EXPECT_DOUBLE_EQ(gpu::clocks(kernel_for(p, 2), p, kB200), 64 * 2164.0 * 1.1);
  p.head_dim = 192;
  EXPECT_DOUBLE_EQ(gpu::clocks(kernel_for(p, 1), p, kB200), 64 * 3072.0);
  EXPECT_DOUBLE_EQ(gpu::clocks(kernel_for(p, 2), p, kB200), 64 * 2688.0 * 1.1);
}

}  // namespace fa4
