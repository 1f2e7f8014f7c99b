// From FwdParams to the launch of an SM90 forward kernel: tiles, tensor maps, arguments, refusals.
#include <gtest/gtest.h>

#include "csrc/dispatch/gpu.h"
#include "csrc/sm90/fwd/launch.h"
#include "csrc/sm90/fwd/plan.h"
#include "flash_attn4/core/softmax.h"
#include "tests/driver/fwd_calls.h"

namespace fa4::sm90 {

namespace {

using namespace fa4::test;

template <int kHeadDim>
using Plan = FwdPlan<fwd_config(DType::kBFloat16, kHeadDim)>;

Status run(const FwdParams& p) {
  const int head_dim = p.head_dim > 64 || p.head_dim_v > 64 ? 128 : 64;
  Context context;
  context.device = {Device::kCuda, 1};
  state.args_bytes = sizeof(FwdArgs);
  return launch_fwd(kernel_of(p.dtype, head_dim), p, context);
}

/// The arguments of the call's launch.
FwdArgs args_of(const FwdParams& p) {
  const Status status = run(p);
  EXPECT_TRUE(status.ok()) << status.message;
  return launched_args();
}

}  // namespace

// ---- The launch ---------------------------------------------------------------------------------

template <class KernelPlan>
void expect_launch(DType dtype, int64_t head_dim) {
  FakeDriver fake;
  FwdParams p = dense_call({.head_dim = head_dim, .head_dim_v = head_dim});
  p.dtype = dtype;
  ASSERT_TRUE(run(p).ok());
  const CUlaunchConfig& launch = state.launches.at(0);
  const int tiles = 2 * 4 * ceil_div(1000, KernelPlan::kBlockM);
  EXPECT_LT(tiles, kSms);
  EXPECT_EQ(launch.gridDimX, static_cast<unsigned>(tiles)) << "a block per tile, while SMs last";
  EXPECT_EQ(launch.blockDimX, static_cast<unsigned>(KernelPlan::kThreads));
  EXPECT_EQ(launch.sharedMemBytes, KernelPlan::kSharedBytes);
  EXPECT_EQ(state.shared_bytes, std::vector<int>{KernelPlan::kSharedBytes});
  EXPECT_EQ(launched_args().tiling.order.count(), tiles);
  EXPECT_EQ(launched_args().tiling.block_n, KernelPlan::kBlockN);
  EXPECT_EQ(state.kernels, std::vector<std::string>{"kernel"});
  EXPECT_EQ(encoded(launched_args().q).type, dtype == DType::kFloat16
                                                 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
}

TEST(FwdLaunch, ConfigurationsComeFromThePlans) {
  expect_launch<FwdPlan<fwd_config(DType::kBFloat16, 64)>>(DType::kBFloat16, 64);
  expect_launch<FwdPlan<fwd_config(DType::kFloat16, 64)>>(DType::kFloat16, 64);
  expect_launch<FwdPlan<fwd_config(DType::kBFloat16, 128)>>(DType::kBFloat16, 128);
  expect_launch<FwdPlan<fwd_config(DType::kFloat16, 128)>>(DType::kFloat16, 128);
  expect_launch<FwdPlan<fwd_config(DType::kBFloat16, 64)>>(DType::kBFloat16, 40);
  expect_launch<FwdPlan<fwd_config(DType::kBFloat16, 128)>>(DType::kBFloat16, 96);
}

TEST(FwdLaunch, ABlockPerSmWhenThereAreMoreTiles) {
  FakeDriver fake;
  const FwdArgs args = args_of(dense_call({.seqlen_q = 10000}));
  EXPECT_EQ(args.tiling.order.count(), 2 * 4 * ceil_div(10000, Plan<64>::kBlockM));
  EXPECT_EQ(state.launches.at(0).gridDimX, static_cast<unsigned>(kSms));
}

TEST(FwdLaunch, SharedMemoryIsAskedForOnce) {
  FakeDriver fake;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(run(dense_call({})).ok());
  EXPECT_EQ(state.shared_bytes.size(), 1u);
  EXPECT_EQ(state.loads, 1);
  EXPECT_EQ(state.launches.size(), 3u);
}

TEST(FwdLaunch, DispatchFindsTheKernel) {
  FakeDriver fake;
  Context context;
  context.device = {Device::kCuda, 0};
  FwdParams p = dense_call({.heads_k = 2, .head_dim = 128, .head_dim_v = 72});
  p.causal = true;
  p.num_splits = 0;  // one, on SM90
  const Status status = fwd(p, context);
  ASSERT_TRUE(status.ok()) << status.message;
  EXPECT_EQ(state.kernels, std::vector<std::string>{"fa4_fwd_sm90_hd128_bf16"});
  p.num_splits = 2;
  EXPECT_NE(fwd(p, context).message.find("fa4_fwd_sm90_hd128_bf16: no splits"), std::string::npos)
      << fwd(p, context).message;
}

// ---- Tensor maps --------------------------------------------------------------------------------

TEST(FwdLaunch, MapsOfDenseTensors) {
  FakeDriver fake;
  constexpr uint32_t kM = Plan<128>::kBlockM, kN = Plan<128>::kBlockN;
  FwdParams p = dense_call({.heads_k = 2, .head_dim = 96, .head_dim_v = 40});
  p.k.stride = {500 * 2 * 104, 104, 500 * 104};  // heads outside rows, padded
  const FwdArgs args = args_of(p);
  EXPECT_EQ(args.packed_heads, 1);
  expect_map(args.q, {kQ, {96, 1, 1000, 4, 2}, {96, 384, 96, 384000}, {64, 1, kM, 1, 1}});
  expect_map(args.k, {kK, {96, 500, 2, 2}, {104, 52000, 104000}, {64, kN, 1, 1}});
  expect_map(args.v, {kV, {40, 500, 2, 2}, {80, 40, 40000}, {64, kN, 1, 1}});
  expect_map(args.out, {kOut, {40, 1, 1000, 4, 2}, {40, 160, 40, 160000}, {64, 1, 64, 1, 1}});
  EXPECT_EQ(state.maps.size(), 4u);
  for (const FakeMap& map : state.maps) EXPECT_EQ(map.context, driver::test::context(1));
  EXPECT_EQ(state.launch_contexts.at(0), driver::test::context(1));
}

TEST(FwdLaunch, TheSameCallOnTheSameDeviceNeedsNoMapAnew) {
  FakeDriver fake;
  state.args_bytes = sizeof(FwdArgs);
  const KernelRow kernel = kernel_of(DType::kBFloat16, 64);
  Context context;
  std::vector<FwdArgs> args;
  for (int device : {0, 1, 0}) {
    context.device = {Device::kCuda, device};
    ASSERT_TRUE(sm90::launch_fwd(kernel, dense_call({}), context).ok());
    args.push_back(launched_args());
  }
  ASSERT_EQ(state.maps.size(), 8u);
  for (int map = 0; map < 8; ++map) {
    EXPECT_EQ(state.maps[map].context, driver::test::context(map / 4)) << "map " << map;
  }
  EXPECT_EQ(encoded(args[1].q).context, driver::test::context(1));
  EXPECT_EQ(std::memcmp(&args[0], &args[2], sizeof(FwdArgs)), 0);
}

TEST(FwdLaunch, MapsOfPackedTensors) {
  FakeDriver fake;
  constexpr uint32_t kM = Plan<64>::kBlockM, kN = Plan<64>::kBlockN;
  const FwdArgs args = args_of(packed_call({.batch = 3}, 2200, 700));
  expect_map(args.q, {kQ, {64, 1, 2200, 4, 1}, {64, 256, 64, 2200 * 256}, {64, 1, kM, 1, 1}});
  expect_map(args.k, {kK, {64, 700, 4, 1}, {256, 64, 700 * 256}, {64, kN, 1, 1}});
  EXPECT_EQ(state.maps.size(), 3u) << "tiles end inside out: no map for it";
}

TEST(FwdLaunch, RowsOf256BytesAreFetchedWhole) {
  FakeDriver fake;
  const FwdArgs args = args_of(dense_call({.head_dim = 128, .head_dim_v = 64}));
  EXPECT_EQ(encoded(args.q).l2, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  EXPECT_EQ(encoded(args.v).l2, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

// ---- Tiles --------------------------------------------------------------------------------------

TEST(FwdLaunch, FewQueriesOfAGroupShareATile) {
  FakeDriver fake;
  constexpr uint32_t kM = Plan<64>::kBlockM, kN = Plan<64>::kBlockN;
  const FwdArgs args = args_of(dense_call({.seqlen_q = 3, .heads_q = 16, .heads_k = 2}));
  EXPECT_EQ(args.packed_heads, 8);
  EXPECT_EQ(args.tiling.queries, int32_t{kM} / 8);
  EXPECT_EQ(args.box_queries, int32_t{kM} / 8);
  EXPECT_EQ(args.tiling.heads_per_kv, 1);
  EXPECT_EQ(args.tiling.order.heads, 2);
  EXPECT_EQ(args.tiling.order.count(), 2 * 2);
  expect_map(args.q, {kQ, {64, 8, 3, 2, 2}, {64, 1024, 512, 3072}, {64, 8, kM / 8, 1, 1}});
  expect_map(args.k, {kK, {64, 500, 2, 2}, {128, 64, 64000}, {64, kN, 1, 1}});
  expect_map(args.out, {kOut, {64, 8, 3, 2, 2}, {64, 1024, 512, 3072}, {64, 8, 8, 1, 1}});
}

TEST(FwdLaunch, PackingHasToSaveATenthOfTheTiles) {
  constexpr int64_t kM = Plan<64>::kBlockM;
  struct Case {
    int64_t queries, group;
    int packed;
  };
  const Case cases[] = {
      {1, 1, 1},                    // nothing to pack
      {1, 4, 4},                    // 1 tile for 4
      {kM, 4, 1},                   // 4 for 4
      {kM + 1, 4, 4},               // 5 for 8
      {2 * kM + 1, 2, 2},           // 5 for 6
      {5 * kM + 1, 2, 1},           // 11 for 12
      {4 * kM + kM / 2 + 1, 2, 1},  // 10 for 10
      {1, kM, static_cast<int>(kM)},
      {1, kM + 1, 1},  // the heads fill more than a tile
  };
  for (const auto& [queries, group, packed] : cases) {
    FakeDriver fake;
    const FwdArgs args =
        args_of(dense_call({.batch = 1, .seqlen_q = queries, .heads_q = group, .heads_k = 1}));
    EXPECT_EQ(args.packed_heads, packed) << queries << " queries, group " << group;
    EXPECT_EQ(args.tiling.heads_per_kv, group / packed);
    EXPECT_EQ(args.tiling.queries, kM / packed);
    EXPECT_EQ(args.box_queries, kM / packed) << "a tile is one box";
    EXPECT_EQ(args.tiling.order.count(), group / packed * ceil_div(queries, kM / packed));
  }
}

TEST(FwdLaunch, PackedSequencesCountWithTheirMeanLength) {
  constexpr int64_t kM = Plan<64>::kBlockM;
  const auto packed_heads = [](int64_t batch, int64_t total_q) {
    FakeDriver fake;
    return args_of(packed_call({.batch = batch, .seqlen_q = 4096, .heads_k = 1}, total_q, 500))
        .packed_heads;
  };
  EXPECT_EQ(packed_heads(8, 8 * 3), 4);
  EXPECT_EQ(packed_heads(8, 8 * kM), 1);
  EXPECT_EQ(packed_heads(8, 7), 4) << "less than one query";
}

TEST(FwdLaunch, PackedSequencesHaveSlots) {
  FakeDriver fake;
  constexpr int kM = Plan<64>::kBlockM;
  FwdParams p = packed_call({.batch = 3, .seqlen_q = 2000, .seqlen_k = 300}, 2200, 700);
  p.seqused_q = p.seqused_k = kLengths;
  p.causal = true;
  const FwdArgs args = args_of(p);
  EXPECT_EQ(args.tiling.order.tiles, 2200 / kM + 3);
  EXPECT_EQ(args.tiling.order.heads, 4);
  EXPECT_EQ(args.tiling.order.batch, 1);
  EXPECT_EQ(args.tiling.order.count(), 4 * (2200 / kM + 3));
  EXPECT_EQ(args.tiling.batch, 3);
  EXPECT_EQ(args.tiling.total_q, 2200);
  EXPECT_EQ(args.tiling.cu_seqlens_q, kLengths);
  EXPECT_EQ(args.tiling.cu_seqlens_k, kOtherLengths);
  EXPECT_EQ(args.tiling.seqused_q, kLengths);
  EXPECT_EQ(args.tiling.seqused_k, kLengths);
}

TEST(FwdLaunch, EqualTilesComeHeadByHead) {
  FakeDriver fake;
  const FwdArgs args = args_of(dense_call({}));
  EXPECT_EQ(args.tiling.order.group, 1);
  EXPECT_FALSE(args.tiling.order.descending);
  EXPECT_FALSE(args.tiling.order.turning);
  EXPECT_FALSE(args.tiling.window.bounded());
}

TEST(FwdLaunch, TilesUnderAWindowTurnInGroupsThatFitTheCache) {
  // Keys and values of a head: 4096 * 128 * 2 bytes = 1 MiB; of 8 heads: the budget.
  const Shape shape{.batch = 40, .seqlen_q = 4096, .seqlen_k = 4096, .heads_q = 8, .heads_k = 4};
  FakeDriver fake;
  FwdParams p = dense_call(shape);
  p.causal = true;
  p.window_left = 100;
  const FwdArgs causal = args_of(p);
  EXPECT_EQ(causal.tiling.order.group, 8 * 2);
  EXPECT_TRUE(causal.tiling.order.descending);
  EXPECT_TRUE(causal.tiling.order.turning);
  EXPECT_EQ(causal.tiling.window.left, 100);
  EXPECT_EQ(causal.tiling.window.right, 0);

  p.causal = false;  // to the left alone: the first rows see the most
  const FwdArgs left = args_of(p);
  EXPECT_EQ(left.tiling.order.group, 8 * 2);
  EXPECT_FALSE(left.tiling.order.descending);
  EXPECT_TRUE(left.tiling.order.turning);
}

TEST(FwdLaunch, AllHeadsPassWithASlot) {
  FakeDriver fake;
  FwdParams p = packed_call({.batch = 40, .seqlen_q = 4096, .seqlen_k = 4096}, 90000, 90000);
  p.causal = true;
  const FwdArgs args = args_of(p);
  EXPECT_TRUE(args.tiling.window.bounded());
  EXPECT_EQ(args.tiling.order.group, args.tiling.order.heads);
  EXPECT_FALSE(args.tiling.order.descending);
  EXPECT_FALSE(args.tiling.order.turning);
}

TEST(FwdLaunch, TilesAreCountedIn64Bits) {
  FakeDriver fake;
  // One tile per head and sequence, 2^30 in all.
  const Shape most{
      .batch = 1 << 15, .seqlen_q = 1, .seqlen_k = 1, .heads_q = 1 << 15, .heads_k = 1 << 15};
  FwdParams p = dense_call(most);
  p.causal = true;
  const FwdArgs args = args_of(p);
  EXPECT_EQ(args.tiling.order.count(), TileOrder::kMaxTiles);
  EXPECT_EQ(args.tiling.order.count(), TileOrder::kMaxTiles);
  EXPECT_GE(args.tiling.order.group, 1);
  EXPECT_LE(args.tiling.order.group, TileOrder::kMaxTiles);
  EXPECT_EQ(state.launches.at(0).gridDimX, static_cast<unsigned>(kSms));

  // 2^32 and 2^62 of them: none and none, counted in 32 bits.
  for (int log2 : {16, 31}) {
    Shape s = most;
    s.batch = s.heads_q = s.heads_k = int64_t{1} << log2;
    if (log2 == 31) --s.batch, --s.heads_q, --s.heads_k;
    EXPECT_EQ(run(dense_call(s)).message,
              "q: batch * heads * tiles of queries must be at most 1073741824 on this device, "
              "got " +
                  std::to_string(s.batch) + " * " + std::to_string(s.heads_q) + " * 1");
  }
  EXPECT_EQ(state.launches.size(), 1u);
}

// ---- Arguments ----------------------------------------------------------------------------------

TEST(FwdLaunch, ScalesWithAndWithoutSoftcap) {
  FakeDriver fake;
  FwdParams p = dense_call({});
  p.softmax_scale = 0.125f;
  const FwdArgs plain = args_of(p);
  EXPECT_FALSE(plain.softcap);
  EXPECT_FLOAT_EQ(plain.scale_log2, 0.125f * kLog2e);
  p.softcap = 30.0f;
  const FwdArgs capped = args_of(p);
  EXPECT_TRUE(capped.softcap);
  EXPECT_FLOAT_EQ(capped.score_scale, 0.125f / 30.0f);
  EXPECT_FLOAT_EQ(capped.scale_log2, 30.0f * kLog2e);
}

TEST(FwdLaunch, AddressesAndStridesArePassedOn) {
  FakeDriver fake;
  const float sink[4] = {};
  FwdParams p = dense_call({.head_dim_v = 48});
  p.sink = sink;
  p.sink_dtype = DType::kFloat16;
  p.lse.stride = {11, 12, 13};
  const FwdArgs args = args_of(p);
  EXPECT_EQ(args.sink, sink);
  EXPECT_EQ(args.sink_dtype, DType::kFloat16);
  EXPECT_EQ(args.out_data, kOut);
  EXPECT_EQ(args.out_stride.batch, 1000 * 4 * 48);
  EXPECT_EQ(args.out_stride.row, 4 * 48);
  EXPECT_EQ(args.out_stride.head, 48);
  EXPECT_EQ(args.lse_data, kLse);
  EXPECT_EQ(args.lse_stride.batch, 11);
  EXPECT_EQ(args.lse_stride.row, 12);
  EXPECT_EQ(args.lse_stride.head, 13);
  EXPECT_EQ(args.head_dim_v, 48);
  EXPECT_EQ(args.tiling.seqlen_q, 1000);
  EXPECT_EQ(args.tiling.seqlen_k, 500);
}

TEST(FwdLaunch, HowOutIsStored) {
  const auto expect = [](const FwdParams& p, bool tensor, bool vector, const char* what) {
    FakeDriver fake;  // one that has encoded no map yet
    const FwdArgs args = args_of(p);
    EXPECT_EQ(args.tensor_store, tensor) << what;
    EXPECT_EQ(args.vector_store, vector) << what;
    EXPECT_EQ(state.maps.size(), tensor ? 4u : 3u) << what;
  };
  FwdParams p = dense_call({});
  expect(p, true, true, "dense");
  p.seqused_q = kLengths;
  expect(p, false, true, "rows that do not count end inside out");
  p = dense_call({.seqlen_q = 1, .heads_q = 12});
  expect(p, false, true, "three heads in a tile");
  p = dense_call({});
  p.out.stride.row += 4;
  expect(p, false, false, "odd rows");
  p = dense_call({});
  p.out.data = static_cast<char*>(kOut) + 8;
  expect(p, false, false, "odd address");
  p = packed_call({}, 1500, 900);
  expect(p, false, true, "packed");
  p.out.stride.head = 68;
  expect(p, false, false, "packed, odd heads");
}

TEST(FwdLaunch, ValuesPastAnEndAreCleared) {
  FakeDriver fake;
  FwdParams p = dense_call({});
  EXPECT_FALSE(args_of(p).clear_value_tail);
  p.seqused_k = kLengths;
  EXPECT_TRUE(args_of(p).clear_value_tail);
  EXPECT_TRUE(args_of(packed_call({}, 1500, 900)).clear_value_tail);
}

// ---- Little or nothing to do --------------------------------------------------------------------

TEST(FwdLaunch, NoRowsNoLaunch) {
  FakeDriver fake;
  EXPECT_TRUE(run(dense_call({.batch = 0})).ok());
  EXPECT_TRUE(run(dense_call({.seqlen_q = 0})).ok());
  EXPECT_TRUE(run(dense_call({.heads_q = 0})).ok());
  EXPECT_TRUE(run(packed_call({}, 0, 900)).ok());
  EXPECT_TRUE(state.launches.empty());
  EXPECT_TRUE(state.maps.empty());
}

TEST(FwdLaunch, RowsWithoutKeysAreWritten) {
  FakeDriver fake;
  FwdParams p = dense_call({.seqlen_k = 0});
  p.k.data = p.v.data = nullptr;
  const FwdArgs args = args_of(p);
  EXPECT_EQ(args.tiling.seqlen_k, 0);
  expect_map(args.k, {kQ, {64, 1, 1, 1}, {64, 64, 64}, {64, Plan<64>::kBlockN, 1, 1}});
  EXPECT_EQ(encoded(args.v).base, kQ) << "an address of the device that is aligned";
  FwdParams packed = packed_call({}, 1500, 0);
  packed.k.data = packed.v.data = nullptr;
  EXPECT_EQ(encoded(args_of(packed).k).base, kQ);
}

TEST(FwdLaunch, RowsOfNoSequenceAreWritten) {
  FakeDriver fake;
  FwdParams p = packed_call({.batch = 0}, 1500, 900);
  p.sink = kQ;
  const FwdArgs args = args_of(p);
  EXPECT_EQ(args.tiling.cu_seqlens_q, nullptr) << "as one sequence that sees no key";
  EXPECT_EQ(args.tiling.batch, 1);
  EXPECT_EQ(args.tiling.seqlen_q, 1500);
  EXPECT_EQ(args.tiling.seqlen_k, 0);
  EXPECT_EQ(args.sink, nullptr);
  EXPECT_EQ(args.tiling.order.count(), 4 * ceil_div(1500, Plan<64>::kBlockM));
}

// ---- Refusals -----------------------------------------------------------------------------------

constexpr int64_t kMaxRows = (int64_t{1} << 30) - 1024;

TEST(FwdLaunch, LongestSequencesAreLaunched) {
  FakeDriver fake;
  FwdParams p = dense_call({.batch = 1, .seqlen_q = kMaxRows, .seqlen_k = kMaxRows});
  p.causal = true;
  EXPECT_EQ(args_of(p).tiling.seqlen_q, kMaxRows);
  EXPECT_EQ(args_of(packed_call({}, kMaxRows, kMaxRows)).tiling.total_q, kMaxRows);
}

TEST(FwdLaunch, RefusalsNameArgumentRuleAndValue) {
  const auto expect = [](const FwdParams& p, const std::string& message) {
    FakeDriver fake;
    const Status status = run(p);
    EXPECT_EQ(status.code, Code::kUnsupported);
    EXPECT_EQ(status.message, message);
    EXPECT_TRUE(state.launches.empty());
  };
  FwdParams p = dense_call({});
  p.k.stride.head = 65;
  expect(p,
         "k: strides must be multiples of 8 elements and the address of 16 bytes on this device, "
         "got strides of batch 128000, row 256, head 65 and address 0x20000");
  p = dense_call({});
  p.q.data = static_cast<const char*>(kQ) + 2;
  expect(p,
         "q: strides must be multiples of 8 elements and the address of 16 bytes on this device, "
         "got strides of batch 256000, row 256, head 64 and address 0x10002");
  p = packed_call({}, 1500, 900);
  p.v.stride.row = 260;
  expect(p,
         "v: strides must be multiples of 8 elements and the address of 16 bytes on this device, "
         "got strides of batch 0, row 260, head 64 and address 0x30000");
  p = packed_call({}, 1500, 900);
  p.cu_seqlens_k = nullptr;
  expect(p, "cu_seqlens_k: must be given exactly when cu_seqlens_q is on this device, got None");
  p.cu_seqlens_k = kLengths;
  p.cu_seqlens_q = nullptr;
  expect(p,
         "cu_seqlens_k: must be given exactly when cu_seqlens_q is on this device, got a tensor");
  p = dense_call({.batch = int64_t{1} << 31});
  expect(p, "q: batch: must be at most 2147483647 on this device, got 2147483648");
  p = dense_call({.seqlen_q = kMaxRows + 1});
  expect(p, "q: seqlen_q: must be at most 1073740800 on this device, got 1073740801");
  p = dense_call({.seqlen_k = kMaxRows + 1});
  expect(p, "k: seqlen_k: must be at most 1073740800 on this device, got 1073740801");
  p = packed_call({}, kMaxRows + 1, 900);
  expect(p, "q: total_q: must be at most 1073740800 on this device, got 1073740801");
  p = packed_call({}, 1500, kMaxRows + 1);
  expect(p, "k: total_k: must be at most 1073740800 on this device, got 1073740801");
  const int64_t tiles = ceil_div<int64_t>(1 << 20, Plan<64>::kBlockM);
  p = dense_call({.batch = 1 << 20, .seqlen_q = 1 << 20});
  expect(p,
         "q: batch * heads * tiles of queries must be at most 1073741824 on this device, got "
         "1048576 * 4 * " +
             std::to_string(tiles));
  p = packed_call({.batch = 1 << 28, .seqlen_q = 9}, 1500, 900);
  expect(p,
         "q: batch * heads * tiles of queries must be at most 1073741824 on this device, got "
         "1 * 4 * " +
             std::to_string((1 << 28) + 1500 / Plan<64>::kBlockM));
}

TEST(FwdLaunch, FailuresOfTheDriverAreReported) {
  FakeDriver fake;
  state.map_result = CUDA_ERROR_INVALID_VALUE;
  EXPECT_EQ(run(dense_call({})).message, "tensor map of q: CUDA_ERROR_FAKE (fake text)");
  EXPECT_TRUE(state.launches.empty());
  state.map_result = CUDA_SUCCESS;
  state.launch_result = CUDA_ERROR_INVALID_VALUE;
  EXPECT_EQ(run(dense_call({})).message, "launch of kernel: CUDA_ERROR_FAKE (fake text)");
}

TEST(FwdLaunch, KernelsThatNobodyCanLaunchAreNamed) {
  FakeDriver fake;
  const FwdParams p = dense_call({});
  Context context;
  context.device = {Device::kCuda, 0};
  const auto expect = [](const Status& status, const std::string& message) {
    EXPECT_EQ(status.code, Code::kRuntime);
    EXPECT_EQ(status.message, message);
    EXPECT_TRUE(state.launches.empty());
  };
  const std::string no_plan = "kernel: is listed without plan";
  KernelRow kernel = kernel_of(p.dtype, 96);
  expect(launch_fwd(kernel, p, context), no_plan);
  kernel = kernel_of(p.dtype, 128);
  kernel.head_dim_v.max = 64;
  expect(launch_fwd(kernel, p, context), no_plan);
  kernel = kernel_of(p.dtype, 64);
  kernel.target = Target::kCpu;
  expect(gpu::fwd(kernel, p, context), "kernel: is listed for cpu, which has no launcher");
  kernel.target = Target::kSm90a;
  EXPECT_TRUE(gpu::fwd(kernel, p, context).ok());
}

}  // namespace fa4::sm90
