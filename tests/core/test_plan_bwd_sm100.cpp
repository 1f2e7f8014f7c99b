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
                               Built<DType::kBFloat16, 128, 2>, Built<DType::kFloat16, 128, 2>,
                               Built<DType::kBFloat16, 192, 2>, Built<DType::kFloat16, 192, 2>>;
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
  const char* const names[] = {
      "q_full",   "q_empty",    "q_clean",     "dout_full", "dout_empty", "dout_clean", "qt_full",
      "qt_empty", "doutt_full", "doutt_empty", "stat_full", "landed",     "clean",      "s_full",
      "s_read",   "p_full",     "dp_full",     "ds_full",   "ds_landed",  "ds_whole",   "dq_full",
      "dq_empty", "dq_sent",    "dv_full",     "dk_full",   "dkv_empty"};
  ASSERT_EQ(std::size(names), std::size(rows));
  for (int bar = 0; bar < kBwdNumBars; ++bar) {
    EXPECT_STREQ(rows[bar].name, names[bar]);
    const std::string name = names[bar];
    int stages = 1;
    if (this->is_of(name, {"q_full", "q_empty"})) stages = Plan::kQStages;
    if (this->is_of(name, {"dout_full", "dout_empty"})) stages = Plan::kDoutStages;
    if (this->is_of(name, {"q_clean", "dout_clean", "dkv_empty"})) stages = Plan::kPair ? 0 : 1;
    if (this->is_of(name, {"qt_full", "qt_empty", "doutt_full", "landed", "clean", "s_read",
                           "ds_landed", "ds_whole"})) {
      stages = Plan::kPair ? 1 : 0;
    }
    if (name == "doutt_empty") stages = Plan::kPair && !Plan::kSerial ? 1 : 0;
    if (name == "dq_sent") stages = Plan::kSerial ? 1 : 0;  // doutt is free when it has been sent
    if (name == "stat_full") stages = Plan::kPair ? Plan::kStatStages : 0;
    EXPECT_EQ(rows[bar].stages, stages) << name;
  }
  EXPECT_EQ(Plan::kQStages, Plan::kPair ? 1 : 2) << "dk reads what scores read, a step later";
  EXPECT_EQ(Plan::kStatStages, Plan::kSerial ? 1 : 2) << "read ahead of the end of their step";
}

// ---- Memory ------------------------------------------------------------------------------------

TYPED_TEST(BwdPlanSm100, SharedMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  struct Region {
    const char* name;
    uint32_t offset, bytes, alignment;
  };
  const uint32_t keys = 128 * Plan::kHeadDim * kElement, values = 128 * Plan::kHeadDimV * kElement;
  const uint32_t qt = Plan::kPair ? keys / 2 : 0, doutt = Plan::kPair ? values / 2 : 0;
  const uint32_t sent = Plan::kPair ? 128 * 64 * kElement : 0;
  const uint32_t staged = 128 * Plan::kDqColumns * uint32_t{sizeof(float)};
  const uint32_t atom = atom_bytes(Plan::kSwizzle), across = atom_bytes(Plan::kAcrossSwizzle);
  const bool apart = !Plan::kSerial;  // else they lie over others: below
  const std::vector<Region> regions = {
      {"k", Plan::kKOffset, keys, atom},
      {"v", Plan::kVOffset, values, atom},
      {"q", Plan::kQOffset, Plan::kQStages * keys / Plan::kCtas, atom},
      {"dout", Plan::kDoutOffset, Plan::kDoutStages * values / Plan::kCtas, atom},
      {"qt", apart ? Plan::kQtOffset : Plan::kDouttOffset, apart ? qt : 0, across},
      {"doutt", Plan::kDouttOffset, apart ? doutt : max_of(doutt, staged), atom},
      {"kt", Plan::kKtOffset, 2 * qt, across},
      {"ds", Plan::kDsOffset, 128 * 128 * kElement, 1024},
      {"sent", apart ? Plan::kSentOffset : Plan::kLseOffset, apart ? sent : 0, 1024},
      {"dq", apart ? Plan::kDqOffset : Plan::kLseOffset, apart ? staged : 0, 16},
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
  if (!apart) {
    EXPECT_EQ(Plan::kQtOffset, Plan::kQOffset);
    EXPECT_EQ(Plan::kSentOffset, Plan::kDoutOffset);
    EXPECT_EQ(Plan::kDqOffset, Plan::kDouttOffset);
    EXPECT_LE(qt, keys / Plan::kCtas) << "qt over q";
    EXPECT_LE(sent, values / Plan::kCtas) << "what is sent of dS over dout";
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
/// S, and not over P. Serial: dP over S, dQ over both and over dS, and none of them over P.
TYPED_TEST(BwdPlanSm100, TensorMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  constexpr unsigned kDp = 1, kDv = 2, kS = 4, kDk = 8, kP = 16, kDs = 32;
  std::vector<unsigned> owners(kTensorColumns, 0);
  const auto take = [&](uint32_t first, uint32_t columns, unsigned who, unsigned over) {
    ASSERT_LE(first + columns, kTensorColumns);
    for (uint32_t column = first; column < first + columns; ++column) {
      EXPECT_EQ(owners[column] & ~over, 0u) << "column " << column;
      owners[column] |= who;
    }
  };
  take(Plan::tmem_dp(), Plan::kBlockM, kDp, 0);
  take(Plan::tmem_dv(), Plan::kHeadDimV, kDv, 0);
  take(Plan::tmem_s(), Plan::kBlockM, kS, Plan::kSerial ? unsigned{kDp} : 0u);
  take(Plan::tmem_dk(), Plan::kHeadDim, kDk, 0);
  std::set<uint32_t> scores;
  for (int group = 0; group < Plan::kGroups; ++group) {
    std::set<uint32_t> read;  // by a group, of S
    for (int query : {0, 32})
      for (uint32_t i = 0; i < 32; ++i) read.insert(Plan::tmem_s(group, query) + i);
    EXPECT_EQ(read.size(), size_t(Plan::kGroupQueries));
    EXPECT_GE(*read.begin(), Plan::tmem_s());
    EXPECT_LT(*read.rbegin(), Plan::tmem_s() + Plan::kBlockM);
    for (uint32_t i = 0; i < Plan::kGroupQueries / 2; ++i)
      EXPECT_TRUE(read.contains(Plan::tmem_p(group) + i)) << "P over what others read";
    take(Plan::tmem_p(group), Plan::kGroupQueries / 2, kP, kS);
    // dS is stored while dP is read, from the lower columns on.
    EXPECT_EQ(Plan::tmem_ds(group), Plan::tmem_dp(group));
    EXPECT_EQ(Plan::tmem_dp(group), Plan::tmem_dp() + Plan::kGroupQueries * uint32_t(group));
    take(Plan::tmem_ds(group), Plan::kGroupQueries / 2, kDs, Plan::kSerial ? kDp | kS : kDp);
    scores.merge(read);
  }
  EXPECT_EQ(scores.size(), size_t(Plan::kBlockM)) << "every query is read once";
  unsigned over = 0;
  for (uint32_t i = 0; i < uint32_t(Plan::kOwnColumns); ++i) {
    ASSERT_LT(Plan::tmem_dq() + i, kTensorColumns);
    over |= owners[Plan::tmem_dq() + i];
  }
  const unsigned may = Plan::kSerial ? kS | kDp | kDs : Plan::kPair ? kS : kDp | kDs;
  EXPECT_EQ(over & ~may, 0u);
  if (Plan::kPair) return;  // which issues dQ behind dK, of serial steps as the last product
  EXPECT_EQ(Plan::kDqFirst, (over & kDs) == 0);
  EXPECT_EQ(Plan::kDqApart, (over & kDp) == 0);
}

/// Rows of S's columns: the leader has the first 64 rows of B, the other CTA the others.
TYPED_TEST(BwdPlanSm100, ColumnsOfScoresAreQueriesInTheOrderOfQ) {
  using Plan = typename TestFixture::Plan;
  std::vector<int> query_of(Plan::kBlockM, -1);
  for (int rank = 0; rank < Plan::kCtas; ++rank)
    for (int row = 0; row < Plan::kOwnRows; ++row) {
      query_of[rank * Plan::kOwnRows + row] =
          Plan::q_part(rank, row / Plan::kQRows) + row % Plan::kQRows;
    }
  for (int group = 0; group < Plan::kGroups; ++group)
    for (int i = 0; i < Plan::kGroupQueries; ++i) {
      const uint32_t column = Plan::tmem_s(group, i / 32 * 32) + i % 32 - Plan::tmem_s();
      EXPECT_EQ(query_of.at(column), group * Plan::kGroupQueries + i);
    }
}

// ---- Products ----------------------------------------------------------------------------------

TYPED_TEST(BwdPlanSm100, TilesSuitTheTensorCore) {
  using Plan = typename TestFixture::Plan;
  const auto rows = [](uint32_t descriptor) { return (descriptor >> 24 & 31) * 16; };
  const auto columns = [](uint32_t descriptor) { return (descriptor >> 17 & 63) * 8; };
  const auto majors = [](uint32_t descriptor) { return descriptor >> 15 & 3; };  // A, B << 1
  const uint32_t type = this->kConfig.dtype == DType::kBFloat16 ? 1 : 0;
  for (uint32_t product :
       {Plan::score_product(), Plan::value_product(), Plan::key_product(), Plan::query_product()}) {
    EXPECT_EQ(columns(product) % (16 * Plan::kCtas), 0u);
    EXPECT_EQ(product >> 7 & 7, type);
    EXPECT_EQ(product >> 10 & 7, type);
    EXPECT_EQ(product >> 4 & 3, 1u) << "accumulates in float32";
  }
  EXPECT_EQ(rows(Plan::score_product()), 128u * Plan::kCtas) << "all lanes of tensor memory";
  EXPECT_EQ(rows(Plan::value_product()), 128u * Plan::kCtas);
  EXPECT_EQ(rows(Plan::key_product()), 128u * Plan::kCtas);
  EXPECT_EQ(rows(Plan::query_product()), 128u) << "queries; of a pair half of them in each CTA";
  EXPECT_EQ(columns(Plan::score_product()), uint32_t(Plan::kBlockM));
  EXPECT_EQ(columns(Plan::value_product()), uint32_t(Plan::kHeadDimV));
  EXPECT_EQ(columns(Plan::key_product()), uint32_t(Plan::kHeadDim));
  EXPECT_EQ(columns(Plan::query_product()), uint32_t(Plan::kHeadDim));
  EXPECT_EQ(majors(Plan::score_product()), 0u) << "both have the head dim innermost";
  EXPECT_EQ(majors(Plan::value_product()), 2u);
  EXPECT_EQ(majors(Plan::key_product()), 2u) << "queries are read across their rows";
  EXPECT_EQ(majors(Plan::query_product()), 3u) << "dS and keys are read across their rows";
  EXPECT_EQ(Plan::kHeadDim % Plan::kSpanColumns, 0) << "whole spans";
  EXPECT_EQ(Plan::kHeadDimV % Plan::kSpanColumns, 0);
  EXPECT_EQ(Plan::kOwnColumns % int(Plan::qt_layout().span_columns()), 0);
  EXPECT_EQ(Plan::kOwnValueColumns % int(Plan::doutt_layout().span_columns()), 0);
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
  using Wide = Built<DType::kBFloat16, 192, 2>::Plan;  // another N alone
  EXPECT_EQ(Wide::score_product(), 0x10200490u);
  EXPECT_EQ(Wide::value_product(), 0x10210490u);
  EXPECT_EQ(Wide::key_product(), 0x10310490u);
  EXPECT_EQ(Wide::query_product(), 0x08318490u);
}

}  // namespace
}  // namespace fa4::sm100
