// From BwdParams to the launches of an SM90 backward: what runs in which order, workspace, tiles,
// tensor maps, arguments, refusals.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "csrc/dispatch/gpu.h"
#include "csrc/sm90/bwd/launch.h"
#include "csrc/sm90/bwd/plan.h"
#include "flash_attn4/core/softmax.h"
#include "tests/driver/bwd_calls.h"

namespace fa4::sm90 {

namespace {

using namespace fa4::test;

template <int kHeadDim>
using Plan = BwdPlan<bwd_config(DType::kBFloat16, kHeadDim)>;

KernelRow kernel_for(const BwdParams& p) {
  return kernel_of(p.dtype, p.head_dim > 64 || p.head_dim_v > 64 ? 128 : 64);
}

Status run(const BwdParams& p) {
  Context context;
  context.device = {Device::kCuda, 1};
  return launch_bwd(kernel_for(p), p, context);
}

int64_t bytes_of(const BwdParams& p) {
  int64_t bytes = -1;
  const Status status = bwd_workspace_bytes(kernel_for(p), p, &bytes);
  EXPECT_TRUE(status.ok()) << status.message;
  return bytes;
}

/// The operations that the call launches.
std::vector<Op> ops_of(const BwdParams& p) {
  launched.clear();
  const Status status = run(p);
  EXPECT_TRUE(status.ok()) << status.message;
  std::vector<Op> ops;
  for (const Launched& launch : launched) ops.push_back(launch.op);
  return ops;
}
using Ops = std::vector<Op>;
const Ops kUsual = {Op::kBwdPrepare, Op::kBwd, Op::kBwdFinish};

/// The arguments of one launch of the usual three.
template <class Args>
Args args_of(const BwdParams& p, size_t launch) {
  EXPECT_EQ(ops_of(p), kUsual);
  return launched.at(launch).as<Args>();
}
BwdPrepareArgs prepare_of(const BwdParams& p) {
  return args_of<BwdPrepareArgs>(p, 0);
}
BwdArgs main_of(const BwdParams& p) {
  return args_of<BwdArgs>(p, 1);
}
BwdFinishArgs finish_of(const BwdParams& p) {
  return args_of<BwdFinishArgs>(p, 2);
}

}  // namespace

// ---- Launches -----------------------------------------------------------------------------------

template <int kHeadDim>
void expect_launches(DType dtype, int64_t head_dim) {
  BwdDriver fake;
  BwdParams p = dense({.heads_k = 2, .head_dim = head_dim, .head_dim_v = head_dim});
  p.dtype = dtype;
  ASSERT_EQ(ops_of(p), kUsual);
  constexpr int kM = Plan<kHeadDim>::kBlockM, kN = Plan<kHeadDim>::kBlockN;
  const unsigned blocks = 2 * 4 * ceil_div(1000, kM), tiles = 2 * 2 * ceil_div(500, kN);
  EXPECT_EQ(launched[0].config.gridDimX, blocks);
  EXPECT_EQ(launched[0].config.blockDimX, static_cast<unsigned>(kBwdRowThreads));
  EXPECT_EQ(launched[1].config.gridDimX, tiles);
  EXPECT_EQ(launched[1].config.blockDimX, static_cast<unsigned>(Plan<kHeadDim>::kThreads));
  EXPECT_EQ(launched[1].config.sharedMemBytes, Plan<kHeadDim>::kSharedBytes);
  EXPECT_EQ(launched[2].config.gridDimX, blocks);
  EXPECT_EQ(launched[2].config.blockDimX, static_cast<unsigned>(kBwdRowThreads));
  EXPECT_EQ(state.early_starts, (std::vector<int>{1, 1, 1}));
  EXPECT_EQ(state.launch_contexts, std::vector<CUcontext>(3, driver::test::context(1)));
  const std::string type = dtype == DType::kBFloat16 ? "bf16" : "fp16";
  EXPECT_EQ(state.kernels, (std::vector<std::string>{"fa4_bwd_prepare_sm90_" + type, "kernel",
                                                     "fa4_bwd_finish_sm90_" + type}));
  EXPECT_EQ(launched[1].as<BwdArgs>().tiling.order.count(), static_cast<int32_t>(tiles));
  EXPECT_EQ(launched[0].as<BwdPrepareArgs>().acc_columns, kHeadDim);
  EXPECT_EQ(launched[2].as<BwdFinishArgs>().acc_columns, kHeadDim);
  EXPECT_EQ(encoded(launched[1].as<BwdArgs>().q).type, dtype == DType::kFloat16
                                                           ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                           : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
}

TEST(BwdLaunch, ConfigurationsComeFromThePlans) {
  expect_launches<64>(DType::kBFloat16, 64);
  expect_launches<64>(DType::kFloat16, 40);
  expect_launches<128>(DType::kBFloat16, 96);
  expect_launches<128>(DType::kFloat16, 128);
}

TEST(BwdLaunch, DispatchFindsTheKernels) {
  BwdDriver fake;
  Context context;
  context.device = {Device::kCuda, 0};
  BwdParams p = dense({.heads_k = 2, .head_dim = 128, .head_dim_v = 72});
  p.causal = p.deterministic = true;
  p.sink = kSink;
  p.dsink = kDsink;
  int64_t bytes = 0;
  const Status sized = fa4::bwd_workspace_bytes(p, context, &bytes);
  ASSERT_TRUE(sized.ok()) << sized.message;
  EXPECT_EQ(bytes, bytes_of(p));
  p.workspace_bytes = bytes;
  const Status status = bwd(p, context);
  ASSERT_TRUE(status.ok()) << status.message;
  EXPECT_EQ(state.kernels,
            (std::vector<std::string>{"fa4_bwd_prepare_sm90_bf16", "fa4_bwd_sm90_hd128_bf16",
                                      "fa4_bwd_finish_sm90_bf16", "fa4_bwd_sink_sm90"}));
  p.head_dim = 136;
  EXPECT_EQ(bwd(p, context).code, Code::kUnsupported);
  EXPECT_EQ(fa4::bwd_workspace_bytes(p, context, &bytes).code, Code::kUnsupported);
}

TEST(BwdLaunch, ASinkNeedsOneMore) {
  BwdDriver fake;
  BwdParams p = dense({});
  p.sink = kSink;
  p.sink_dtype = DType::kFloat16;
  EXPECT_EQ(ops_of(p), kUsual) << "nobody asks for its gradient";
  p.dsink = kDsink;
  EXPECT_EQ(ops_of(p), (Ops{Op::kBwdPrepare, Op::kBwd, Op::kBwdFinish, Op::kBwdSink}));
  EXPECT_EQ(launched[3].config.gridDimX, 4u);
  EXPECT_EQ(launched[3].config.blockDimX, static_cast<unsigned>(kBwdSinkThreads));
  const BwdSinkArgs args = launched[3].as<BwdSinkArgs>();
  const BwdPrepareArgs prepared = launched[0].as<BwdPrepareArgs>();
  EXPECT_EQ(args.sink, kSink);
  EXPECT_EQ(args.sink_dtype, DType::kFloat16);
  EXPECT_EQ(args.dsink, kDsink);
  EXPECT_EQ(args.lse2, prepared.lse2);
  EXPECT_EQ(args.delta, prepared.delta);
  EXPECT_EQ(args.rows.acc_rows, prepared.rows.acc_rows);
}

// ---- Workspace ----------------------------------------------------------------------------------

TEST(BwdLaunch, PartsOfTheWorkspaceLieBehindEachOther) {
  BwdDriver fake;
  constexpr int64_t kM = Plan<64>::kBlockM;
  BwdParams p = dense({});
  p.deterministic = true;
  const BwdPrepareArgs args = prepare_of(p);
  const int64_t rows = 4 * 2 * ceil_div<int64_t>(1000, kM) * kM;
  EXPECT_EQ(args.rows.acc_rows * 4, rows);
  const auto offset = [](const void* part) {
    return static_cast<const char*>(part) - static_cast<char*>(kWorkspace);
  };
  EXPECT_EQ(offset(args.dq_accumulator), 0);
  EXPECT_EQ(offset(args.lse2), rows * 64 * 4);
  EXPECT_EQ(offset(args.delta), rows * 65 * 4);
  EXPECT_EQ(offset(args.turns), rows * 66 * 4);
  constexpr int kTurns = Plan<64>::kConsumers;
  EXPECT_EQ(args.turns_per_block, kTurns);
  const int64_t turns = rows / kM * kTurns * 4;
  EXPECT_EQ(bytes_of(p), rows * 66 * 4 + ceil_div<int64_t>(turns, 128) * 128);
  const BwdArgs main = launched[1].as<BwdArgs>();
  EXPECT_EQ(main.dq_accumulator, args.dq_accumulator);
  EXPECT_EQ(main.lse2, args.lse2);
  EXPECT_EQ(main.delta, args.delta);
  EXPECT_EQ(main.turns, args.turns);
  EXPECT_EQ(main.acc_rows, args.rows.acc_rows);
  EXPECT_EQ(launched[2].as<BwdFinishArgs>().dq_accumulator, args.dq_accumulator);
  p.deterministic = false;
  EXPECT_EQ(bytes_of(p), rows * 66 * 4);
  EXPECT_EQ(prepare_of(p).turns, nullptr);
  EXPECT_EQ(main_of(p).turns, nullptr);
}

TEST(BwdLaunch, PackedSequencesArePaddedToBlocks) {
  BwdDriver fake;
  constexpr int64_t kM = Plan<128>::kBlockM;
  const BwdParams p = packed({.batch = 3, .head_dim = 128, .head_dim_v = 128}, 2200, 700);
  const int64_t rows = (2200 / kM + 3) * kM;
  EXPECT_EQ(prepare_of(p).rows.acc_rows, rows);
  EXPECT_EQ(bytes_of(p), 4 * rows * 130 * 4);
}

TEST(BwdLaunch, TheWorkspaceIsLargerThan32BitsCount) {
  BwdDriver fake;
  const BwdParams p = dense({.batch = 1, .seqlen_q = 1 << 27, .head_dim = 128, .head_dim_v = 128});
  EXPECT_EQ(bytes_of(p), int64_t{4} * 130 * 4 << 27);
}

TEST(BwdLaunch, AWorkspaceThatIsMissingOrTooSmallIsRefused) {
  const auto expect = [](const BwdParams& p, const std::string& message) {
    BwdDriver fake;
    const Status status = run(p);
    EXPECT_EQ(status.code, Code::kInvalidValue);
    EXPECT_EQ(status.message, message);
    EXPECT_TRUE(launched.empty());
  };
  BwdParams p = dense({});
  const int64_t bytes = bytes_of(p);
  const std::string rule =
      "workspace: must have " + std::to_string(bytes) + " bytes (bwd_workspace_bytes), got ";
  p.workspace = nullptr;
  expect(p, rule + "null");
  p.workspace = kWorkspace;
  p.workspace_bytes = bytes - 1;
  expect(p, rule + std::to_string(bytes - 1));
  p.workspace_bytes = bytes;
  p.workspace = static_cast<char*>(kWorkspace) + 8;
  expect(p, "workspace: address must be a multiple of 16 bytes, got one 8 bytes behind");
  BwdDriver fake;
  p.workspace = static_cast<char*>(kWorkspace) + 16;
  EXPECT_EQ(ops_of(p), kUsual);
}

// ---- Tensor maps --------------------------------------------------------------------------------

TEST(BwdLaunch, MapsOfDenseTensors) {
  BwdDriver fake;
  constexpr uint32_t kM = Plan<128>::kBlockM, kN = Plan<128>::kBlockN;
  BwdParams p = dense({.heads_k = 2, .head_dim = 96, .head_dim_v = 40});
  p.k.stride = {500 * 2 * 104, 104, 500 * 104};  // heads outside rows, padded
  const BwdArgs args = main_of(p);
  expect_map(args.q, {kQ, {96, 1000, 4, 2}, {384, 96, 384000}, {64, kM, 1, 1}});
  expect_map(args.k, {kK, {96, 500, 2, 2}, {104, 52000, 104000}, {64, kN, 1, 1}});
  expect_map(args.v, {kV, {40, 500, 2, 2}, {80, 40, 40000}, {64, kN, 1, 1}});
  expect_map(args.dout, {kDout, {40, 1000, 4, 2}, {160, 40, 160000}, {64, kM, 1, 1}});
  EXPECT_EQ(state.maps.size(), 4u);
  for (const FakeMap& map : state.maps) {
    EXPECT_EQ(map.context, driver::test::context(1));
    EXPECT_EQ(map.swizzle, CU_TENSOR_MAP_SWIZZLE_128B);
  }
  EXPECT_EQ(encoded(args.q).l2, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  EXPECT_EQ(encoded(args.dout).l2, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

TEST(BwdLaunch, MapsOfPackedTensors) {
  BwdDriver fake;
  constexpr uint32_t kM = Plan<64>::kBlockM, kN = Plan<64>::kBlockN;
  const BwdArgs args = main_of(packed({.batch = 3}, 2200, 700));
  expect_map(args.q, {kQ, {64, 2200, 4, 1}, {256, 64, 2200 * 256}, {64, kM, 1, 1}});
  expect_map(args.k, {kK, {64, 700, 4, 1}, {256, 64, 700 * 256}, {64, kN, 1, 1}});
  expect_map(args.dout, {kDout, {64, 2200, 4, 1}, {256, 64, 2200 * 256}, {64, kM, 1, 1}});
}

// ---- Tiles --------------------------------------------------------------------------------------

TEST(BwdLaunch, PackedSequencesHaveSlots) {
  BwdDriver fake;
  BwdParams p = packed({.batch = 3, .seqlen_q = 2000, .seqlen_k = 300}, 2200, 700);
  p.seqused_q = p.seqused_k = kLengths;
  const BwdArgs args = main_of(p);
  EXPECT_EQ(args.tiling.order.tiles, 700 / Plan<64>::kBlockN + 3);
  EXPECT_EQ(args.tiling.order.heads, 4);
  EXPECT_EQ(args.tiling.order.batch, 1);
  EXPECT_EQ(args.tiling.batch, 3);
  EXPECT_EQ(args.tiling.total_k, 700);
  EXPECT_EQ(args.tiling.block_m, Plan<64>::kBlockM);
  EXPECT_EQ(args.tiling.block_n, Plan<64>::kBlockN);
  EXPECT_EQ(args.tiling.cu_seqlens_q, kLengths);
  EXPECT_EQ(args.tiling.cu_seqlens_k, kOtherLengths);
  EXPECT_EQ(args.tiling.seqused_q, kLengths);
  EXPECT_EQ(args.tiling.seqused_k, kLengths);
  const BwdRows rows = launched[0].as<BwdPrepareArgs>().rows;
  EXPECT_EQ(rows.cu_seqlens_q, kLengths);
  EXPECT_EQ(rows.seqused_q, kLengths);
  EXPECT_EQ(rows.batch, 3);
  EXPECT_EQ(rows.total_q, 2200);
  EXPECT_EQ(rows.heads, 4);
  EXPECT_EQ(rows.block_m, Plan<64>::kBlockM);
}

TEST(BwdLaunch, LongTilesComeFirst) {
  // Queries, gradients and accumulators of a head: 4096 * 64 * (2 + 2 + 4) bytes = 2 MiB.
  const Shape shape{.batch = 40, .seqlen_q = 4096, .seqlen_k = 4096, .heads_q = 8, .heads_k = 4};
  struct Case {
    int64_t left, right;
    bool deterministic, packed;
    int group;
    bool descending;
  };
  const Case cases[] = {
      {-1, -1, false, false, 1, false},  // all are equal: head after head
      {-1, 0, false, false, 4, false},   // 16 MiB of L2 for 2 heads each
      {-1, 0, true, false, 4, true},     // short ones first: their queries are done first
      {100, 0, false, false, 4, false}, {100, 0, true, false, 4, true},
      {100, -1, false, false, 4, true}, {100, -1, true, false, 4, false},
      {-1, -1, true, false, 4, false},  {-1, 0, false, true, 4, false},
  };
  for (const auto& [left, right, deterministic, is_packed, group, descending] : cases) {
    BwdDriver fake;
    BwdParams p = is_packed ? packed(shape, 40 * 4096, 40 * 4096) : dense(shape);
    p.window_left = left;
    p.window_right = right;
    p.deterministic = deterministic;
    const TileOrder order = main_of(p).tiling.order;
    EXPECT_EQ(order.group, group) << left << " " << right;
    EXPECT_EQ(order.descending, descending) << left << " " << right << " " << deterministic;
    EXPECT_FALSE(order.turning);
    EXPECT_EQ(order.heads, 4);
  }
}

TEST(BwdLaunch, GroupsAreNotLargerThanTheCall) {
  BwdDriver fake;
  BwdParams p = dense({.batch = 1, .seqlen_q = 1, .heads_q = 3, .heads_k = 3});
  p.causal = true;
  EXPECT_EQ(main_of(p).tiling.order.group, 3);
}

// ---- Arguments ----------------------------------------------------------------------------------

TEST(BwdLaunch, ScalesWithAndWithoutSoftcap) {
  BwdDriver fake;
  BwdParams p = dense({});
  p.softmax_scale = 0.125f;
  const BwdArgs plain = main_of(p);
  EXPECT_FALSE(plain.softcap);
  EXPECT_FLOAT_EQ(plain.scale_log2, 0.125f * kLog2e);
  EXPECT_EQ(plain.softmax_scale, 0.125f);
  EXPECT_EQ(finish_of(p).scale, 0.125f);
  p.softcap = 30.0f;
  const BwdArgs capped = main_of(p);
  EXPECT_TRUE(capped.softcap);
  EXPECT_FLOAT_EQ(capped.score_scale, 0.125f / 30.0f);
  EXPECT_FLOAT_EQ(capped.scale_log2, 30.0f * kLog2e);
  EXPECT_EQ(capped.softmax_scale, 0.125f);
  EXPECT_EQ(finish_of(p).scale, 0.125f);
}

TEST(BwdLaunch, AddressesAndStridesArePassedOn) {
  BwdDriver fake;
  const float dlse[1] = {};
  BwdParams p = dense({.heads_q = 12, .heads_k = 4, .head_dim = 56, .head_dim_v = 48});
  p.causal = true;
  p.window_left = 9;
  p.out.stride = {1, 2, 3};
  p.dout.stride = {8, 16, 24};
  p.lse.stride = {4, 5, 6};
  p.dlse = {dlse, {7, 8, 9}};
  p.dq.stride = {10, 11, 12};
  p.dk.stride = {13, 14, 15};
  p.dv.stride = {16, 17, 18};
  const auto numbers = [](const Strides& s) { return std::vector{s.batch, s.row, s.head}; };
  const BwdPrepareArgs prepare = prepare_of(p);
  EXPECT_EQ(prepare.out, kOut);
  EXPECT_EQ(prepare.dout, kDout);
  EXPECT_EQ(prepare.lse, kLse);
  EXPECT_EQ(prepare.dlse, dlse);
  EXPECT_EQ(numbers(prepare.out_stride), (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(numbers(prepare.dout_stride), (std::vector<int64_t>{8, 16, 24}));
  EXPECT_EQ(numbers(prepare.lse_stride), (std::vector<int64_t>{4, 5, 6}));
  EXPECT_EQ(numbers(prepare.dlse_stride), (std::vector<int64_t>{7, 8, 9}));
  EXPECT_EQ(prepare.head_dim_v, 48);
  EXPECT_EQ(prepare.rows.seqlen_q, 1000);
  EXPECT_EQ(prepare.rows.batch, 2);
  const BwdArgs main = launched[1].as<BwdArgs>();
  EXPECT_EQ(main.group, 3);
  EXPECT_EQ(main.dk, kDk);
  EXPECT_EQ(main.dv, kDv);
  EXPECT_EQ(numbers(main.dk_stride), (std::vector<int64_t>{13, 14, 15}));
  EXPECT_EQ(numbers(main.dv_stride), (std::vector<int64_t>{16, 17, 18}));
  EXPECT_EQ(main.head_dim, 56);
  EXPECT_EQ(main.head_dim_v, 48);
  EXPECT_EQ(main.tiling.seqlen_q, 1000);
  EXPECT_EQ(main.tiling.seqlen_k, 500);
  EXPECT_EQ(main.tiling.window.left, 9);
  EXPECT_EQ(main.tiling.window.right, 0);
  const BwdFinishArgs finish = launched[2].as<BwdFinishArgs>();
  EXPECT_EQ(finish.dq, kDq);
  EXPECT_EQ(numbers(finish.dq_stride), (std::vector<int64_t>{10, 11, 12}));
  EXPECT_EQ(finish.head_dim, 56);
  EXPECT_EQ(finish.rows.acc_rows, prepare.rows.acc_rows);
}

TEST(BwdLaunch, RowsAtOddPlacesArePassedElementByElement) {
  const auto expect = [](const BwdParams& p, bool out, bool dq, bool keys) {
    BwdDriver fake;
    ASSERT_EQ(ops_of(p), kUsual);
    EXPECT_EQ(launched[0].as<BwdPrepareArgs>().vector_loads, out);
    EXPECT_EQ(launched[1].as<BwdArgs>().vector_store, keys);
    EXPECT_EQ(launched[2].as<BwdFinishArgs>().vector_store, dq);
  };
  expect(dense({}), true, true, true);
  BwdParams p = dense({});
  p.out.stride.row += 4;
  expect(p, false, true, true);
  p = dense({});
  p.dq.data = static_cast<char*>(kDq) + 8;
  expect(p, true, false, true);
  p = dense({});
  p.dk.stride.head += 1;
  expect(p, true, true, false);
  p = packed({}, 1500, 900);
  p.dv.stride.row += 2;
  expect(p, true, true, false);
}

TEST(BwdLaunch, RowsPastAnEndAreCleared) {
  BwdDriver fake;
  const auto expect = [](const BwdParams& p, bool queries, bool keys) {
    const BwdArgs args = main_of(p);
    EXPECT_EQ(args.clear_query_tail, queries);
    EXPECT_EQ(args.clear_key_tail, keys);
  };
  BwdParams p = dense({});
  expect(p, false, false);
  p.seqused_k = kLengths;
  expect(p, false, true);
  p.seqused_k = nullptr;
  p.seqused_q = kLengths;
  expect(p, true, false);
  expect(packed({}, 1500, 900), true, true);
}

// ---- Little or nothing to do --------------------------------------------------------------------

/// What launches of the finish kernel alone set to 0.
void expect_zeros(const BwdParams& p, const std::vector<const void*>& gradients) {
  BwdDriver fake;
  EXPECT_EQ(bytes_of(p), 0);
  BwdParams without = p;
  without.workspace = nullptr;
  EXPECT_EQ(ops_of(without), Ops(gradients.size(), Op::kBwdFinish));
  for (size_t i = 0; i < gradients.size(); ++i) {
    const BwdFinishArgs args = launched.at(i).as<BwdFinishArgs>();
    EXPECT_EQ(args.dq, gradients[i]);
    EXPECT_EQ(args.dq_accumulator, nullptr);
    EXPECT_EQ(args.rows.cu_seqlens_q, nullptr);
    EXPECT_EQ(launched.at(i).config.gridDimX, args.rows.blocks() * args.rows.heads);
  }
  EXPECT_TRUE(state.maps.empty());
}

TEST(BwdLaunch, NothingToDoLaunchesNothing) {
  expect_zeros(dense({.batch = 0}), {});
  expect_zeros(dense({.seqlen_q = 0, .seqlen_k = 0}), {});
  expect_zeros(packed({}, 0, 0), {});
}

TEST(BwdLaunch, WithoutQueriesKeysHaveNoGradient) {
  expect_zeros(dense({.seqlen_q = 0, .head_dim_v = 40}), {kDk, kDv});
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().head_dim, 64);
  EXPECT_EQ(launched[1].as<BwdFinishArgs>().head_dim, 40);
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().rows.batch, 2);
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().rows.seqlen_q, 500);
  expect_zeros(packed({}, 0, 900), {kDk, kDv});
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().rows.batch, 1);
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().rows.seqlen_q, 900);
  expect_zeros(dense({.heads_q = 0}), {kDk, kDv});
  expect_zeros(packed({.batch = 0}, 1500, 900), {kDq, kDk, kDv});
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().rows.seqlen_q, 1500);
}

TEST(BwdLaunch, WithoutKeysQueriesHaveNoGradient) {
  BwdDriver fake;
  BwdParams p = dense({.seqlen_k = 0});
  p.k.data = p.v.data = nullptr;
  EXPECT_EQ(ops_of(p), Ops{Op::kBwdFinish});
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().dq, kDq);
  EXPECT_EQ(launched[0].as<BwdFinishArgs>().dq_accumulator, nullptr);
  p.sink = kSink;  // all of the weight: lse depends on it
  p.dsink = kDsink;
  EXPECT_EQ(ops_of(p), (Ops{Op::kBwdFinish, Op::kBwdPrepare, Op::kBwdSink}));
  p = dense({.seqlen_q = 0});
  p.sink = kSink;
  p.dsink = kDsink;
  EXPECT_EQ(ops_of(p), (Ops{Op::kBwdFinish, Op::kBwdFinish, Op::kBwdSink}));
  EXPECT_EQ(launched[2].as<BwdSinkArgs>().rows.acc_rows, 0);
}

// ---- Refusals -----------------------------------------------------------------------------------

constexpr int64_t kMaxRows = (int64_t{1} << 30) - 1024;

TEST(BwdLaunch, LongestSequencesAreLaunched) {
  BwdDriver fake;
  BwdParams p = dense({.batch = 1, .seqlen_q = kMaxRows, .seqlen_k = kMaxRows});
  EXPECT_EQ(main_of(p).tiling.seqlen_k, kMaxRows);
  EXPECT_EQ(main_of(packed({}, kMaxRows, kMaxRows)).tiling.total_k, kMaxRows);
}

TEST(BwdLaunch, RefusalsNameArgumentRuleAndValue) {
  const auto expect = [](const BwdParams& p, const std::string& message) {
    BwdDriver fake;
    const Status status = run(p);
    EXPECT_EQ(status.code, Code::kUnsupported);
    EXPECT_EQ(status.message, message);
    EXPECT_TRUE(launched.empty());
  };
  const std::string readable =
      ": strides must be multiples of 8 elements and the address of 16 bytes on this device, got "
      "strides of batch ";
  BwdParams p = dense({});
  p.k.stride.head = 65;
  expect(p, "k" + readable + "128000, row 256, head 65 and address 0x20000");
  p = dense({});
  p.q.data = static_cast<const char*>(kQ) + 2;
  expect(p, "q" + readable + "256000, row 256, head 64 and address 0x10002");
  p = packed({}, 1500, 900);
  p.v.stride.row = 260;
  expect(p, "v" + readable + "0, row 260, head 64 and address 0x30000");
  p = dense({});
  p.dout.stride.row = 257;
  expect(p, "dout" + readable + "256000, row 257, head 64 and address 0x150000");
  p = packed({}, 1500, 900);
  p.cu_seqlens_k = nullptr;
  expect(p, "cu_seqlens_k: must be given exactly when cu_seqlens_q is on this device, got None");
  p = dense({.batch = int64_t{1} << 31});
  expect(p, "q: batch: must be at most 2147483647 on this device, got 2147483648");
  p = dense({.seqlen_q = kMaxRows + 1});
  expect(p, "q: seqlen_q: must be at most 1073740800 on this device, got 1073740801");
  p = packed({}, 1500, kMaxRows + 1);
  expect(p, "k: total_k: must be at most 1073740800 on this device, got 1073740801");
  constexpr int64_t kM = Plan<64>::kBlockM;
  p = dense({.batch = 1 << 20, .seqlen_q = 1 << 20});
  expect(p, "q: rows of all sequences, each in whole blocks of " + std::to_string(kM) +
                ", must be at most 2147483647 on this device, got 1099511627776");
  p = dense({.batch = 1, .seqlen_q = 1 << 20, .heads_q = 1 << 20, .heads_k = 1});
  expect(p,
         "q: heads * blocks of queries must be at most 1073741824 on this device, got "
         "1048576 * " +
             std::to_string((1 << 20) / kM));
  p = dense({.batch = 1 << 20, .seqlen_q = 1, .seqlen_k = 1 << 20});
  expect(p,
         "k: heads of all sequences * blocks of keys must be at most 1073741824 on this device, "
         "got 4194304 * " +
             std::to_string((1 << 20) / min_of<int64_t>(kM, Plan<64>::kBlockN)));
}

TEST(BwdLaunch, SizesAloneTellTheWorkspace) {
  BwdParams p = dense({.seqlen_q = kMaxRows + 1});
  int64_t bytes = 0;
  EXPECT_EQ(bwd_workspace_bytes(kernel_for(p), p, &bytes).message,
            "q: seqlen_q: must be at most 1073740800 on this device, got 1073740801");
  p = dense({});
  const int64_t expected = bytes_of(p);
  for (Input* input : {&p.q, &p.k, &p.v, &p.out, &p.dout}) input->data = nullptr;
  p.workspace = nullptr;
  EXPECT_EQ(bytes_of(p), expected);
}

TEST(BwdLaunch, FailuresOfTheDriverAreReported) {
  BwdDriver fake;
  state.map_result = CUDA_ERROR_INVALID_VALUE;
  EXPECT_EQ(run(dense({})).message, "tensor map of q: CUDA_ERROR_FAKE (fake text)");
  EXPECT_TRUE(launched.empty());
  state.map_result = CUDA_SUCCESS;
  state.launch_result = CUDA_ERROR_INVALID_VALUE;
  EXPECT_EQ(run(dense({})).message,
            "launch of fa4_bwd_prepare_sm90_bf16: CUDA_ERROR_FAKE (fake text)");
  EXPECT_EQ(launched.size(), 1u) << "nothing goes on after a failure";
}

}  // namespace fa4::sm90
