// What a kernel's plan decides about its launch: tiles of two boxes, sizes of boxes, swizzle.
#include <gtest/gtest.h>

#include "csrc/common/fwd_launch.h"
#include "tests/driver/fwd_calls.h"

namespace fa4 {

namespace {

using namespace fa4::test;

/// Two boxes of 128 rows, values in halves of a step.
constexpr FwdPlanRow kTwoBoxes = {.dtype = DType::kBFloat16,
                                  .head_dim = 128,
                                  .head_dim_v = 128,
                                  .boxes = 2,
                                  .box_rows = 128,
                                  .out_rows = 128,
                                  .block_n = 128,
                                  .value_rows = 64,
                                  .swizzle = Swizzle::k128B,
                                  .threads = 512,
                                  .shared_bytes = 200000,
                                  .l2_budget = int64_t{8} << 20};

Status run(const FwdPlanRow& plan, const FwdParams& p) {
  Context context;
  context.device = {Device::kCuda, 1};
  state.args_bytes = sizeof(FwdArgs);
  return launch_fwd(kernel_of(plan.dtype, plan.head_dim), plan, p, context);
}

/// The arguments of the call's launch.
FwdArgs args_of(const FwdPlanRow& plan, const FwdParams& p) {
  const Status status = run(plan, p);
  EXPECT_TRUE(status.ok()) << status.message;
  return launched_args();
}

}  // namespace

TEST(FwdPlans, TilesHoldTheQueriesOfAllBoxes) {
  FakeDriver fake;
  const FwdArgs args = args_of(kTwoBoxes, dense_call({}));
  EXPECT_EQ(args.packed_heads, 1);
  EXPECT_EQ(args.box_queries, 128);
  EXPECT_EQ(args.tiling.queries, 256);
  EXPECT_EQ(args.tiling.block_n, 128);
  EXPECT_EQ(args.tiling.order.count(), 2 * 4 * 4) << "of 1000 queries";
  const CUlaunchConfig& launch = state.launches.at(0);
  EXPECT_EQ(launch.gridDimX, 32u);
  EXPECT_EQ(launch.blockDimX, 512u);
  EXPECT_EQ(launch.sharedMemBytes, 200000u);
  EXPECT_EQ(state.early_starts, std::vector<int>{1});
}

TEST(FwdPlans, MapsHaveTheBoxesOfThePlan) {
  FakeDriver fake;
  const FwdArgs args = args_of(kTwoBoxes, dense_call({.heads_k = 2}));
  EXPECT_EQ(args.packed_heads, 1);
  expect_map(args.q, {kQ, {64, 1, 1000, 4, 2}, {64, 256, 64, 256000}, {64, 1, 128, 1, 1}});
  expect_map(args.k, {kK, {64, 500, 2, 2}, {128, 64, 64000}, {64, 128, 1, 1}});
  expect_map(args.v, {kV, {64, 500, 2, 2}, {128, 64, 64000}, {64, 64, 1, 1}});
  expect_map(args.out, {kOut, {64, 1, 1000, 4, 2}, {64, 256, 64, 256000}, {64, 1, 128, 1, 1}});
  for (const FakeMap& map : state.maps) EXPECT_EQ(map.swizzle, CU_TENSOR_MAP_SWIZZLE_128B);
}

TEST(FwdPlans, NarrowSwizzlesHaveNarrowBoxes) {
  FakeDriver fake;
  FwdPlanRow plan = kTwoBoxes;
  plan.swizzle = Swizzle::k64B;
  const FwdArgs args = args_of(plan, dense_call({.head_dim = 128, .head_dim_v = 96}));
  for (const TensorMap* map : {&args.q, &args.k, &args.v, &args.out}) {
    EXPECT_EQ(encoded(*map).box.at(0), 32u) << "columns: 64 bytes";
    EXPECT_EQ(encoded(*map).swizzle, CU_TENSOR_MAP_SWIZZLE_64B);
  }
  EXPECT_EQ(encoded(args.q).sizes.at(0), 128u) << "the tensor is as wide as ever";
  EXPECT_EQ(encoded(args.v).sizes.at(0), 96u);
}

TEST(FwdPlans, EveryBoxStartsWithAQuery) {
  FakeDriver fake;
  // 10 queries of 12 heads fill 120 of the 128 rows of a box; 256 rows in one would hold 21.
  const FwdArgs args =
      args_of(kTwoBoxes, dense_call({.seqlen_q = 21, .heads_q = 24, .heads_k = 2}));
  EXPECT_EQ(args.packed_heads, 12);
  EXPECT_EQ(args.box_queries, 10);
  EXPECT_EQ(args.tiling.queries, 20);
  EXPECT_EQ(args.tiling.heads_per_kv, 1);
  EXPECT_EQ(args.tiling.order.count(), 2 * 2 * 2);
  expect_map(args.q, {kQ, {64, 12, 21, 2, 2}, {64, 1536, 768, 32256}, {64, 12, 10, 1, 1}});
  EXPECT_FALSE(args.tensor_store) << "a box of out would hold 10 2/3 queries";
  EXPECT_TRUE(args.vector_store);
  EXPECT_EQ(state.maps.size(), 3u);
}

TEST(FwdPlans, GroupsThatDivideABoxOfOutAreStoredByIt) {
  FakeDriver fake;
  const Shape shape{.seqlen_q = 3, .heads_q = 16, .heads_k = 1};
  const FwdArgs args = args_of(kTwoBoxes, dense_call(shape));
  EXPECT_EQ(args.packed_heads, 16);
  EXPECT_EQ(args.tiling.queries, 16);
  EXPECT_TRUE(args.tensor_store);
  EXPECT_EQ(encoded(args.q).box, (std::vector<uint32_t>{64, 16, 8, 1, 1}));
  EXPECT_EQ(encoded(args.out).box, (std::vector<uint32_t>{64, 16, 8, 1, 1}));

  FwdPlanRow plan = kTwoBoxes;
  plan.out_rows = 32;
  EXPECT_EQ(encoded(args_of(plan, dense_call(shape)).out).box,
            (std::vector<uint32_t>{64, 16, 2, 1, 1}));
  plan.out_rows = 8;
  EXPECT_FALSE(args_of(plan, dense_call(shape)).tensor_store);
}

TEST(FwdPlans, KernelsWithoutTensorStoreGetNoMapOfOut) {
  FakeDriver fake;
  FwdPlanRow plan = kTwoBoxes;
  plan.out_rows = 0;
  const FwdArgs args = args_of(plan, dense_call({}));
  EXPECT_FALSE(args.tensor_store);
  EXPECT_TRUE(args.vector_store);
  EXPECT_EQ(state.maps.size(), 3u);
}

TEST(FwdPlans, PackingCountsTilesAndMustFitABox) {
  struct Case {
    int64_t queries, group;
    int packed;
  };
  const Case cases[] = {
      {256, 4, 1},      // 4 tiles for 4
      {257, 4, 4},      // 5 for 8
      {250, 12, 1},     // 13 for 12
      {1, 128, 128},    // a query per box
      {1, 129, 1},      // would fit the tile, and fits no box
      {2 * 3, 43, 43},  // 2 queries per box, 86 of its rows: 2 tiles
  };
  for (const auto& [queries, group, packed] : cases) {
    FakeDriver fake;
    const FwdArgs args = args_of(
        kTwoBoxes, dense_call({.batch = 1, .seqlen_q = queries, .heads_q = group, .heads_k = 1}));
    EXPECT_EQ(args.packed_heads, packed) << queries << " queries, group " << group;
    EXPECT_EQ(args.box_queries, 128 / packed);
    EXPECT_EQ(args.tiling.queries, 2 * (128 / packed));
    EXPECT_EQ(args.tiling.order.count(),
              group / packed * ceil_div(queries, int64_t{2} * (128 / packed)));
  }
}

TEST(FwdPlans, SlotsOfPackedSequencesAreTilesOfAllBoxes) {
  FakeDriver fake;
  const FwdArgs args = args_of(kTwoBoxes, packed_call({.batch = 3, .seqlen_q = 2000}, 2200, 700));
  EXPECT_EQ(args.tiling.order.tiles, 2200 / 256 + 3);
}

TEST(FwdPlans, GroupsOfHeadsFitTheBudgetOfThePlan) {
  // Keys and values of a head: 4096 * 128 * 2 bytes = 1 MiB.
  const Shape shape{.batch = 40, .seqlen_q = 4096, .seqlen_k = 4096, .heads_q = 8, .heads_k = 4};
  FakeDriver fake;
  FwdParams p = dense_call(shape);
  p.causal = true;
  FwdPlanRow plan = kTwoBoxes;
  EXPECT_EQ(args_of(plan, p).tiling.order.group, 8 * 2);
  plan.l2_budget *= 2;
  EXPECT_EQ(args_of(plan, p).tiling.order.group, 16 * 2);
}

TEST(FwdPlans, RefusalsCountTilesOfAllBoxes) {
  FakeDriver fake;
  EXPECT_EQ(run(kTwoBoxes, dense_call({.batch = 1 << 20, .seqlen_q = 1 << 20})).message,
            "q: batch * heads * tiles of queries must be at most 1073741824 on this device, got "
            "1048576 * 4 * 4096");
  EXPECT_TRUE(state.launches.empty());
}

/// A pair's tile is four boxes; a box of k is for one of its CTAs, and clusters are whole.
TEST(FwdPlans, PairsShareTilesAndKeys) {
  FakeDriver fake;
  FwdPlanRow plan = kTwoBoxes;
  plan.boxes = 4;
  plan.value_rows = 128;
  plan.ctas = 2;
  const FwdArgs args = args_of(plan, dense_call({.batch = 50}));
  EXPECT_EQ(args.tiling.queries, 512);
  EXPECT_EQ(args.tiling.block_n, 128);
  EXPECT_EQ(args.tiling.order.count(), 50 * 4 * 2);
  EXPECT_EQ(encoded(args.q).box, (std::vector<uint32_t>{64, 1, 128, 1, 1}));
  EXPECT_EQ(encoded(args.k).box, (std::vector<uint32_t>{64, 64, 1, 1}));
  EXPECT_EQ(encoded(args.v).box, (std::vector<uint32_t>{64, 128, 1, 1}));
  EXPECT_EQ(state.launches.at(0).gridDimX, unsigned(kSms / 2 * 2));
  args_of(plan, dense_call({.batch = 1}));
  EXPECT_EQ(state.launches.at(1).gridDimX, 2u * 4 * 2) << "two CTAs for each of 8 tiles";
}

TEST(FwdPlans, TwoTilesFitTheFreeRows) {
  FwdPlanRow plans[] = {kTwoBoxes, kTwoBoxes};
  EXPECT_TRUE(fits_free_rows(plans));
  plans[1].box_rows = 257;
  EXPECT_FALSE(fits_free_rows(plans));
  plans[1].boxes = 1;
  EXPECT_TRUE(fits_free_rows(plans));
}

}  // namespace fa4
