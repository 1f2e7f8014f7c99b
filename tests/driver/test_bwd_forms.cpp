// Forms of an SM100 backward kernel: which one a call takes, and how a pair of CTAs per tile is
// launched.
#include <gtest/gtest.h>

#include "csrc/dispatch/gpu.h"
#include "csrc/dispatch/select.h"
#include "csrc/sm100/bwd/launch.h"
#include "csrc/sm100/bwd/plan.h"
#include "tests/driver/bwd_calls.h"

namespace fa4 {

namespace {

using namespace fa4::test;

const Place kB200{false, 10, 0, "a B200", 148};

const KernelRow& kernel_for(const BwdParams& p, int ctas = 0) {
  Request request = request_of(p);
  request.ctas = ctas;
  const KernelRow* kernel = nullptr;
  const auto cost = [&](const KernelRow& row) { return gpu::clocks(row, p, kB200); };
  const Status status = select_kernel(request, kB200, cost, &kernel);
  EXPECT_TRUE(status.ok()) << status.message;
  return *kernel;
}

BwdParams call(int64_t head_dim, int64_t seqlen_k = 1000) {
  return dense({.batch = 2,
                .seqlen_q = 500,
                .seqlen_k = seqlen_k,
                .heads_q = 4,
                .heads_k = 2,
                .head_dim = head_dim,
                .head_dim_v = head_dim});
}

int64_t bytes_of(const BwdParams& p, int ctas) {
  int64_t bytes = -1;
  const Status status = sm100::bwd_workspace_bytes(kernel_for(p, ctas), p, &bytes);
  EXPECT_TRUE(status.ok()) << status.message;
  return bytes;
}

}  // namespace

TEST(BwdForms, OneCtaUnlessPairsAreAskedFor) {
  EXPECT_STREQ(kernel_for(call(128)).name, "fa4_bwd_sm100_hd128_bf16");
  EXPECT_STREQ(kernel_for(call(128), 1).name, "fa4_bwd_sm100_hd128_bf16");
  EXPECT_STREQ(kernel_for(call(128), 2).name, "fa4_bwd_sm100_hd128_pair_bf16");
  EXPECT_STREQ(kernel_for(call(104), 2).name, "fa4_bwd_sm100_hd128_pair_bf16");
  EXPECT_STREQ(kernel_for(call(64), 2).name, "fa4_bwd_sm100_hd64_bf16") << "has no other form";
}

/// A tile of 256 keys for two CTAs; boxes for one of them.
TEST(BwdForms, PairsShareTiles) {
  for (int64_t seqlen_k : {1000, 256, 1}) {
    BwdDriver fake;
    const BwdParams p = call(128, seqlen_k);
    Context context;
    context.device = {Device::kCuda, 1};
    const Status status = sm100::launch_bwd(kernel_for(p, 2), p, context);
    ASSERT_TRUE(status.ok()) << status.message;
    ASSERT_EQ(launched.size(), 3u);
    const BwdArgs args = launched[1].as<BwdArgs>();
    const auto tiles = static_cast<int32_t>(2 * 2 * ceil_div<int64_t>(seqlen_k, 256));
    EXPECT_EQ(args.tiling.block_m, 128);
    EXPECT_EQ(args.tiling.block_n, 256);
    EXPECT_EQ(args.tiling.order.count(), tiles);
    EXPECT_EQ(launched[1].config.gridDimX, 2u * tiles);
    EXPECT_EQ(encoded(args.q).box, (std::vector<uint32_t>{64, 64, 1, 1}));
    EXPECT_EQ(encoded(args.dout).box, (std::vector<uint32_t>{64, 64, 1, 1}));
    EXPECT_EQ(encoded(args.k).box, (std::vector<uint32_t>{64, 128, 1, 1}));
    EXPECT_EQ(encoded(args.v).box, (std::vector<uint32_t>{64, 128, 1, 1}));
  }
}

/// Of each block of queries, a counter for each part of dq that is added apart: for eight warps.
TEST(BwdForms, PairsCountTurnsOfEightWarps) {
  BwdParams p = call(128);
  const int64_t plain = bytes_of(p, 1);
  EXPECT_EQ(bytes_of(p, 2), plain);
  p.deterministic = true;
  const int64_t blocks = 2 * 4 * 4;  // sequences, heads, blocks of queries
  EXPECT_EQ(bytes_of(p, 1) - plain, blocks * 4 * 4);
  EXPECT_EQ(bytes_of(p, 2) - plain, blocks * 8 * 4);
}

}  // namespace fa4
