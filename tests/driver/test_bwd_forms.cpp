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

BwdParams call(int64_t head_dim, int64_t seqlen_k = 1000, int64_t head_dim_v = 0) {
  return dense({.batch = 2,
                .seqlen_q = 500,
                .seqlen_k = seqlen_k,
                .heads_q = 4,
                .heads_k = 2,
                .head_dim = head_dim,
                .head_dim_v = head_dim_v != 0 ? head_dim_v : head_dim});
}

int64_t bytes_of(const BwdParams& p, int ctas) {
  int64_t bytes = -1;
  const Status status = sm100::bwd_workspace_bytes(kernel_for(p, ctas), p, &bytes);
  EXPECT_TRUE(status.ok()) << status.message;
  return bytes;
}

}  // namespace

TEST(BwdForms, PairsAtHeadDim128) {
  EXPECT_STREQ(kernel_for(call(128)).name, "fa4_bwd_sm100_hd128_pair_bf16");
  EXPECT_STREQ(kernel_for(call(104)).name, "fa4_bwd_sm100_hd128_pair_bf16");
  EXPECT_STREQ(kernel_for(call(64)).name, "fa4_bwd_sm100_hd64_bf16") << "has no other form";
}

TEST(BwdForms, TheSecondCtaNeedsKeys) {
  EXPECT_EQ(kernel_for(call(128, 128)).ctas, 1);
  EXPECT_EQ(kernel_for(call(128, 129)).ctas, 2);
}

/// 300 keys are three tiles of one CTA and two pairs. Of eight heads that is one round of either, of
/// 70 it is two and two, of 48 one and two: four CTAs for the work of three.
TEST(BwdForms, EmptyKeysOfTheLastTileCount) {
  const auto ctas = [](int64_t heads) {
    BwdParams p = call(128, 300);
    p.batch = 1;
    p.heads_q = p.heads_k = heads;
    return kernel_for(p).ctas;
  };
  EXPECT_EQ(ctas(8), 2);
  EXPECT_EQ(ctas(48), 1);
  EXPECT_EQ(ctas(70), 2);
}

/// A tile of 256 keys passes a few more blocks of queries than its keys see: of four blocks three on
/// average instead of 2.5, of eight five instead of 4.5.
TEST(BwdForms, CausalCallsTakePairsToo) {
  const auto ctas = [](int64_t seqlen) {
    BwdParams p = call(128, seqlen);
    p.seqlen_q = seqlen;
    p.causal = true;
    return kernel_for(p).ctas;
  };
  EXPECT_EQ(ctas(512), 1);
  for (int64_t seqlen : {1024, 2048, 16384}) EXPECT_EQ(ctas(seqlen), 2) << seqlen;
  BwdParams narrow = call(128, 16384);
  narrow.seqlen_q = 16384;
  narrow.window_left = 50;
  narrow.window_right = 0;
  EXPECT_EQ(kernel_for(narrow).ctas, 1) << "three blocks for 256 keys instead of two for 128";
}

TEST(BwdForms, PackedSequencesCountWithTheirMeanLength) {
  const auto ctas = [](int64_t length) {
    const Shape shape{.batch = 8,
                      .seqlen_q = length,
                      .seqlen_k = length,
                      .heads_q = 16,
                      .heads_k = 16,
                      .head_dim = 128,
                      .head_dim_v = 128};
    return kernel_for(packed(shape, 8 * length, 8 * length)).ctas;
  };
  EXPECT_EQ(ctas(8192), 2);
  EXPECT_EQ(ctas(200), 1) << "many idle keys";
}

TEST(BwdForms, AFormCanBeAskedFor) {
  EXPECT_EQ(kernel_for(call(128), 1).ctas, 1);
  EXPECT_EQ(kernel_for(call(128), 2).ctas, 2);
  EXPECT_EQ(kernel_for(call(128, 1), 2).ctas, 2);
  EXPECT_EQ(kernel_for(call(64), 2).ctas, 1);
}

TEST(BwdForms, ClocksAreThoseOfTheDocument) {
  // A group of two heads, one round: 4 blocks of queries each.
  BwdParams p = call(128);
  p.batch = p.heads_k = 1;
  p.heads_q = 2;
  EXPECT_DOUBLE_EQ(gpu::clocks(kernel_for(p, 1), p, kB200), 2 * 4 * 3848.0);
  EXPECT_DOUBLE_EQ(gpu::clocks(kernel_for(p, 2), p, kB200), 2 * 4 * 3080.0 * 1.1);
}

/// Where a pair is the only form, every call takes it.
TEST(BwdForms, WideHeadsHavePairsAlone) {
  for (int ctas : {0, 1, 2}) {
    for (const auto& [head_dim, head_dim_v] : {std::pair{192, 128}, {136, 8}, {160, 40}}) {
      const BwdParams p = call(head_dim, 1000, head_dim_v);
      EXPECT_STREQ(kernel_for(p, ctas).name, "fa4_bwd_sm100_hd192_pair_bf16");
    }
  }
  EXPECT_STREQ(kernel_for(call(128, 1000, 64), 1).name, "fa4_bwd_sm100_hd128_bf16");
  for (const auto& [head_dim, head_dim_v] : {std::pair{192, 136}, {200, 128}, {128, 192}}) {
    const KernelRow* kernel = nullptr;
    const Request request = request_of(call(head_dim, 1000, head_dim_v));
    EXPECT_EQ(select_kernel(request, kB200, &kernel).code, Code::kUnsupported);
  }
}

/// Q in parts of 32 rows, whose order is that of the scores; the columns of Q and K that a CTA reads
/// across their rows, 96, in spans of 32.
TEST(BwdForms, WideHeadsHaveMapsOfTheirOwn) {
  BwdDriver fake;
  const BwdParams p = call(192, 1000, 128);
  Context context;
  context.device = {Device::kCuda, 1};
  const Status status = sm100::launch_bwd(kernel_for(p), p, context);
  ASSERT_TRUE(status.ok()) << status.message;
  ASSERT_EQ(launched.size(), 3u);
  const BwdArgs args = launched[1].as<BwdArgs>();
  EXPECT_EQ(state.maps.size(), 6u);
  const auto expect = [](const TensorMap& map, std::vector<uint32_t> box,
                         CUtensorMapSwizzle swizzle) {
    EXPECT_EQ(encoded(map).box, box);
    EXPECT_EQ(encoded(map).swizzle, swizzle);
  };
  expect(args.q, {64, 32, 1, 1}, CU_TENSOR_MAP_SWIZZLE_128B);
  expect(args.k, {64, 128, 1, 1}, CU_TENSOR_MAP_SWIZZLE_128B);
  expect(args.v, {64, 128, 1, 1}, CU_TENSOR_MAP_SWIZZLE_128B);
  expect(args.dout, {64, 64, 1, 1}, CU_TENSOR_MAP_SWIZZLE_128B);
  expect(args.qt, {32, 128, 1, 1}, CU_TENSOR_MAP_SWIZZLE_64B);
  expect(args.kt, {32, 128, 1, 1}, CU_TENSOR_MAP_SWIZZLE_64B);
  EXPECT_EQ(launched[0].as<BwdPrepareArgs>().acc_columns, 192);
  EXPECT_EQ(launched[0].as<BwdPrepareArgs>().head_dim_v, 128);
  EXPECT_EQ(launched[2].as<BwdFinishArgs>().acc_columns, 192);
  EXPECT_EQ(launched[1].config.gridDimX, 2u * 2 * 2 * 4);
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
