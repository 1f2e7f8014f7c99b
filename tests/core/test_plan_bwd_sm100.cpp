// The plan of the SM100 backward kernel against the hardware's limits and against itself, for every
// configuration that is built.
#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "csrc/sm100/bwd/plan.h"

namespace fa4::sm100 {
namespace {

constexpr uint32_t kSharedLimit = 232448;  // bytes that one block may have
constexpr int kRegistersPerSm = 65536;
constexpr int kWarpgroup = 128;           // threads
constexpr uint32_t kTensorColumns = 512;  // of 32 bits in each of 128 lanes
constexpr uint32_t kElement = 2;          // bytes

template <DType kDType, int kHeadDim, int kCtas = 1>
struct Built {
  static constexpr BwdConfig kConfig = bwd_config(kDType, kHeadDim, kCtas);
  using Plan = BwdPlan<kConfig>;
};

template <class Config>
struct BwdPlanSm100 : testing::Test {
  using Plan = typename Config::Plan;
  static constexpr BwdConfig kConfig = Config::kConfig;

  static std::vector<RoleRow> roles() { return {std::begin(Plan::kRoles), std::end(Plan::kRoles)}; }

  /// Arrivals per phase: one per warp, or from the only thread.
  static int arrivals_of(uint32_t role) {
    return role == kBwdReduce ? 4 : role == kBwdCompute ? 8 : 1;
  }
  /// CTAs whose threads arrive at one mbarrier. Only the leader of a pair commits, and announces
  /// what both load; where both CTAs hold a barrier one of them signals.
  static int signalling_ctas(const BarrierRow& row) {
    return row.done == Done::kThreads && row.holder == Holder::kLeader ? Plan::kCtas : 1;
  }
  static bool is_of(const std::string& name, std::set<std::string> names) {
    return names.contains(name);
  }
};

using Configs = testing::Types<Built<DType::kBFloat16, 64>, Built<DType::kFloat16, 64>,
                               Built<DType::kBFloat16, 96>, Built<DType::kFloat16, 96>,
                               Built<DType::kBFloat16, 128>, Built<DType::kFloat16, 128>,
                               Built<DType::kBFloat16, 128, 2>, Built<DType::kFloat16, 128, 2>>;
TYPED_TEST_SUITE(BwdPlanSm100, Configs);

// ---- Roles -------------------------------------------------------------------------------------

TYPED_TEST(BwdPlanSm100, RolesShareTheWarps) {
  using Plan = typename TestFixture::Plan;
  std::set<int> warps;
  for (const RoleRow& role : this->roles()) {
    for (int warp = role.first_warp; warp < role.first_warp + role.warps; ++warp)
      EXPECT_TRUE(warps.insert(warp).second) << "warp " << warp << " has two roles";
  }
  EXPECT_EQ(*warps.begin(), 0);
  EXPECT_LT(*warps.rbegin(), Plan::kThreads / 32);
  EXPECT_EQ(Plan::kThreads % kWarpgroup, 0);
  const std::vector<RoleRow> roles = this->roles();
  ASSERT_EQ(roles.size(), 5u);
  EXPECT_EQ(roles[0].warps, Plan::kReduceWarps);
  EXPECT_EQ(roles[1].first_warp, Plan::kFirstComputeWarp);
  EXPECT_EQ(roles[1].warps, Plan::kComputeWarps);
  EXPECT_EQ(roles[2].first_warp, Plan::kMmaWarp);
  EXPECT_EQ(roles[3].first_warp, Plan::kLoadWarp);
  EXPECT_EQ(roles[4].first_warp, Plan::kRelayWarp);
  EXPECT_EQ(roles[4].warps, Plan::kPair ? 1 : 0);
}

TYPED_TEST(BwdPlanSm100, WarpsReachTheirLanesOfTensorMemory) {
  using Plan = typename TestFixture::Plan;
  // A warp reaches the 32 lanes of its place in its warpgroup: a lane is a key, or a query of dq.
  for (int role : {0, 1}) {
    EXPECT_EQ(Plan::kRoles[role].first_warp % 4, 0);
    EXPECT_EQ(Plan::kRoles[role].warps % 4, 0);
  }
  EXPECT_EQ(Plan::kBlockN, 128);
  EXPECT_EQ(Plan::kReduceWarps * 32, Plan::kBlockM);
  EXPECT_EQ(Plan::kReduceWarps * Plan::DqLayout::kSliceRows, Plan::kBlockM);
  EXPECT_EQ(Plan::kTurns * Plan::DqLayout::kSliceRows * Plan::kOwnColumns,
            Plan::kBlockM * Plan::kHeadDim)
      << "parts of dq that are added apart";
  EXPECT_EQ(Plan::kComputeWarps, 4 * Plan::kGroups);
  EXPECT_EQ(Plan::kGroups * Plan::kGroupQueries, Plan::kBlockM);
}

TYPED_TEST(BwdPlanSm100, RegistersFitTheLaunch) {
  using Plan = typename TestFixture::Plan;
  const int launched = kRegistersPerSm / Plan::kThreads / 8 * 8;
  const int warpgroups = Plan::kThreads / kWarpgroup;
  const int registers[] = {Plan::kReduceRegisters, Plan::kComputeRegisters, Plan::kComputeRegisters,
                           Plan::kOtherRegisters};
  ASSERT_EQ(warpgroups, 4);
  int asked = 0;
  for (int count : registers) {
    EXPECT_EQ(count % 8, 0);
    EXPECT_GE(count, 24);
    EXPECT_LE(count, 256);
    asked += count;
  }
  EXPECT_LE(asked, launched * warpgroups) << "an increase would never return";
  EXPECT_GT(Plan::kReduceRegisters, Plan::kOwnColumns) << "a row of dq is held";
}

// ---- Barriers ----------------------------------------------------------------------------------

TYPED_TEST(BwdPlanSm100, ArrivalsAreThoseOfTheRoles) {
  using Plan = typename TestFixture::Plan;
  constexpr uint32_t kAll = kBwdReduce | kBwdCompute | kBwdMma | kBwdLoad | kBwdRelay;
  for (const BarrierRow& row : Plan::kBarriers.row) {
    if (row.stages == 0) continue;
    SCOPED_TRACE(row.name);
    int arrivals = 0;
    for (uint32_t role : {kBwdReduce, kBwdCompute, kBwdMma, kBwdLoad, kBwdRelay})
      if ((row.signals & role) != 0) arrivals += this->arrivals_of(role);
    if (row.holder == Holder::kPeer) arrivals /= Plan::kGroups;  // the group that keeps its dS
    EXPECT_EQ(row.arrivals, arrivals * this->signalling_ctas(row));
    EXPECT_EQ(row.signals & row.waits, 0u) << "a role waits for itself";
    EXPECT_EQ((row.signals | row.waits) & ~kAll, 0u);
    EXPECT_TRUE(row.signals != 0 && row.waits != 0);
    EXPECT_EQ(row.done == Done::kTmaBytes, row.signals == kBwdLoad || row.holder == Holder::kPeer)
        << "copies are the loader's, or go to the other CTA";
    EXPECT_EQ(row.done == Done::kMmaCommit,
              row.signals == kBwdMma && std::string(row.name) != "landed")
        << "products are mma's";
    if (row.waits == kBwdMma && Plan::kPair) {
      EXPECT_EQ(row.holder, Holder::kLeader) << "the leader issues";
    }
    if (row.signals == kBwdMma && Plan::kPair) {
      EXPECT_EQ(row.holder, Holder::kBoth) << "products are of both";
    }
    if (!Plan::kPair) {
      EXPECT_EQ(row.holder, Holder::kOwn);
    }
  }
}

TYPED_TEST(BwdPlanSm100, BarriersHaveTheStagesOfTheirBuffers) {
  using Plan = typename TestFixture::Plan;
  const auto& rows = Plan::kBarriers.row;
  const char* const names[] = {"q_full",     "q_empty",  "q_clean",  "dout_full",  "dout_empty",
                               "dout_clean", "qt_full",  "qt_empty", "doutt_full", "doutt_empty",
                               "stat_full",  "landed",   "clean",    "s_full",     "s_read",
                               "p_full",     "dp_full",  "ds_full",  "ds_landed",  "ds_whole",
                               "dq_full",    "dq_empty", "dv_full",  "dk_full",    "dkv_empty"};
  ASSERT_EQ(std::size(names), std::size(rows));
  for (int bar = 0; bar < kBwdNumBars; ++bar) {
    EXPECT_STREQ(rows[bar].name, names[bar]);
    const std::string name = names[bar];
    int stages = 1;
    if (this->is_of(name, {"q_full", "q_empty"})) stages = Plan::kQStages;
    if (this->is_of(name, {"dout_full", "dout_empty"})) stages = Plan::kDoutStages;
    if (this->is_of(name, {"q_clean", "dout_clean", "dkv_empty"})) stages = Plan::kPair ? 0 : 1;
    if (this->is_of(name, {"qt_full", "qt_empty", "doutt_full", "doutt_empty", "landed", "clean",
                           "s_read", "ds_landed", "ds_whole"})) {
      stages = Plan::kPair ? 1 : 0;
    }
    if (name == "stat_full") stages = Plan::kPair ? Plan::kStatStages : 0;
    EXPECT_EQ(rows[bar].stages, stages) << name;
  }
  EXPECT_EQ(Plan::kQStages, Plan::kPair ? 1 : 2) << "dk reads what scores read, a step later";
}

// ---- Memory ------------------------------------------------------------------------------------

TYPED_TEST(BwdPlanSm100, SharedMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  struct Region {
    const char* name;
    uint32_t offset, bytes, alignment;
  };
  const uint32_t tile = 128 * Plan::kHeadDim * kElement;
  const uint32_t half = Plan::kPair ? tile / 2 : 0;  // what a pair has beside
  const uint32_t atom = atom_bytes(Plan::kSwizzle);
  const std::vector<Region> regions = {
      {"k", Plan::kKOffset, tile, atom},
      {"v", Plan::kVOffset, tile, atom},
      {"q", Plan::kQOffset, Plan::kQStages * tile / Plan::kCtas, atom},
      {"dout", Plan::kDoutOffset, Plan::kDoutStages * tile / Plan::kCtas, atom},
      {"qt", Plan::kQtOffset, half, atom},
      {"doutt", Plan::kDouttOffset, half, atom},
      {"kt", Plan::kKtOffset, 2 * half, atom},
      {"ds", Plan::kDsOffset, 128 * 128 * kElement, 1024},
      {"sent", Plan::kSentOffset, Plan::kPair ? 128 * 64 * kElement : 0, 1024},
      {"dq", Plan::kDqOffset, 128 * Plan::kDqColumns * uint32_t{sizeof(float)}, 16},
      {"lse2", Plan::kLseOffset, Plan::kStatStages * 128 * uint32_t{sizeof(float)}, 16},
      {"delta", Plan::kDeltaOffset, Plan::kStatStages * 128 * uint32_t{sizeof(float)}, 16},
      {"tile", Plan::kTileOffset, uint32_t{sizeof(KeyTile)}, 16},
      {"barriers", Plan::kBarOffset, 8 * uint32_t(Plan::kBarriers.count()), 8},
      {"address of tensor memory", Plan::kTmemOffset, 4, 4},
  };
  uint32_t end = 0;
  for (const Region& region : regions) {
    EXPECT_EQ(region.offset, end) << region.name << " begins where the one before ends";
    EXPECT_EQ(region.offset % region.alignment, 0u) << region.name;
    end = region.offset + region.bytes;
  }
  EXPECT_LE(end, Plan::kSharedBytes);
  EXPECT_LE(Plan::kSharedBytes, kSharedLimit);
  EXPECT_EQ(Plan::kOwnColumns % Plan::kDqColumns, 0) << "dq is added in whole parts";
  // Where dk and dv are staged no product reads any more: K and V of a pair, whose dQ reads kt.
  EXPECT_EQ(Plan::kDvStagedOffset, Plan::kPair ? Plan::kVOffset : Plan::kDoutOffset);
  EXPECT_EQ(Plan::kDkStagedOffset, Plan::kPair ? Plan::kKOffset : Plan::kQOffset);
  EXPECT_EQ(Plan::kDqColumns % Plan::DqLayout::kVectorColumns, 0);
}

/// What lies where in tensor memory, and who may lie over whom: P over S, dS over dP, a warpgroup's
/// over what it has read itself; dQ over dP, and over dS only where dK comes first; of a pair over
/// S, and not over P.
TYPED_TEST(BwdPlanSm100, TensorMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  std::vector<int> owner(kTensorColumns, 0);
  const auto take = [&](uint32_t first, uint32_t columns, int who) {
    ASSERT_LE(first + columns, kTensorColumns);
    for (uint32_t column = first; column < first + columns; ++column) {
      EXPECT_EQ(owner[column], 0) << "column " << column;
      owner[column] = who;
    }
  };
  enum { kFree, kDp, kDv, kS, kDk };
  take(Plan::tmem_dp(), Plan::kBlockM, kDp);
  take(Plan::tmem_dv(), Plan::kHeadDim, kDv);
  take(Plan::tmem_s(), Plan::kBlockM, kS);
  take(Plan::tmem_dk(), Plan::kHeadDim, kDk);
  std::set<uint32_t> ds, weights;
  for (int group = 0; group < Plan::kGroups; ++group) {
    // Read: a group's columns of S, or of dP; stored: over half of them.
    EXPECT_GE(Plan::tmem_p(group), Plan::tmem_scores(Plan::tmem_s(), group));
    EXPECT_LE(Plan::tmem_p(group) + Plan::kGroupQueries / 2,
              Plan::tmem_scores(Plan::tmem_s(), group) + Plan::kGroupQueries);
    // dS is stored while dP is read, from the lower columns on.
    EXPECT_EQ(Plan::tmem_ds(group), Plan::tmem_scores(Plan::tmem_dp(), group));
    for (int column = 0; column < Plan::kGroupQueries / 2; ++column) {
      ds.insert(Plan::tmem_ds(group) + column);
      weights.insert(Plan::tmem_p(group) + column);
    }
  }
  bool over_dp = false, over_ds = false;
  for (int column = 0; column < Plan::kOwnColumns; ++column) {
    const uint32_t at = Plan::tmem_dq() + column;
    ASSERT_LT(at, kTensorColumns);
    const int over = Plan::kPair ? kS : kDp;
    EXPECT_TRUE(owner[at] == kFree || owner[at] == over) << "dq over column " << at;
    EXPECT_FALSE(weights.contains(at)) << "dq over P in column " << at;
    over_dp |= owner[at] == kDp;
    over_ds |= ds.contains(at);
  }
  if (Plan::kPair) return;  // which issues dQ between dP and dV of the next step
  EXPECT_EQ(Plan::kDqFirst, !over_ds);
  EXPECT_EQ(Plan::kDqApart, !over_dp);
}

// ---- Products ----------------------------------------------------------------------------------

TYPED_TEST(BwdPlanSm100, TilesSuitTheTensorCore) {
  using Plan = typename TestFixture::Plan;
  const auto rows = [](uint32_t descriptor) { return (descriptor >> 24 & 31) * 16; };
  const auto columns = [](uint32_t descriptor) { return (descriptor >> 17 & 63) * 8; };
  const auto majors = [](uint32_t descriptor) { return descriptor >> 15 & 3; };  // A, B << 1
  const uint32_t type = this->kConfig.dtype == DType::kBFloat16 ? 1 : 0;
  for (uint32_t product : {Plan::score_product(), Plan::key_product(), Plan::query_product()}) {
    EXPECT_EQ(columns(product) % (16 * Plan::kCtas), 0u);
    EXPECT_EQ(product >> 7 & 7, type);
    EXPECT_EQ(product >> 10 & 7, type);
    EXPECT_EQ(product >> 4 & 3, 1u) << "accumulates in float32";
  }
  EXPECT_EQ(rows(Plan::score_product()), 128u * Plan::kCtas) << "all lanes of tensor memory";
  EXPECT_EQ(rows(Plan::key_product()), 128u * Plan::kCtas);
  EXPECT_EQ(rows(Plan::query_product()), 128u) << "queries; of a pair half of them in each CTA";
  EXPECT_EQ(columns(Plan::score_product()), uint32_t(Plan::kBlockM));
  EXPECT_EQ(columns(Plan::key_product()), uint32_t(Plan::kHeadDim));
  EXPECT_EQ(columns(Plan::query_product()), uint32_t(Plan::kHeadDim));
  EXPECT_EQ(majors(Plan::score_product()), 0u) << "both have the head dim innermost";
  EXPECT_EQ(majors(Plan::key_product()), 2u) << "queries are read across their rows";
  EXPECT_EQ(majors(Plan::query_product()), 3u) << "dS and keys are read across their rows";
  EXPECT_EQ(Plan::kHeadDim % Plan::kSpanColumns, 0) << "whole spans";
}

/// Instruction descriptors as FlashAttention-4 has them, for bf16 and 128 columns.
TEST(BwdPlanSm100Known, DescriptorsAreThoseOfOtherKernels) {
  using Plan = Built<DType::kBFloat16, 128>::Plan;
  EXPECT_EQ(Plan::score_product(), 0x08200490u);
  EXPECT_EQ(Plan::key_product(), 0x08210490u);
  EXPECT_EQ(Plan::query_product(), 0x08218490u);
  using Pair = Built<DType::kBFloat16, 128, 2>::Plan;
  EXPECT_EQ(Pair::score_product(), 0x10200490u);
  EXPECT_EQ(Pair::key_product(), 0x10210490u);
  EXPECT_EQ(Pair::query_product(), 0x08218490u);
}

}  // namespace
}  // namespace fa4::sm100
