// The plan of the SM90 forward kernel against the hardware's limits and against itself, for every
// configuration that is built.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "csrc/sm90/fwd/plan.h"

namespace fa4::sm90 {
namespace {

constexpr uint32_t kSharedLimit = 232448;  // bytes that one block may have
constexpr int kRegistersPerSm = 65536;
constexpr int kWarpgroup = 128;  // threads

template <DType kDType, int kHeadDim>
struct Built {
  static constexpr FwdConfig kConfig = fwd_config(kDType, kHeadDim);
  using Plan = FwdPlan<kConfig>;
};

template <class Config>
struct PlanSm90 : testing::Test {
  using Plan = typename Config::Plan;
  static constexpr FwdConfig kConfig = Config::kConfig;

  static std::vector<RoleRow> roles() { return {std::begin(Plan::kRoles), std::end(Plan::kRoles)}; }

  /// Arrivals per phase of one role: one per consumer warp, one from the only thread of the others.
  static int arrivals_of(uint32_t role) { return role == kConsumer ? 4 * kConfig.consumers : 1; }
};

using Configs = testing::Types<Built<DType::kBFloat16, 64>, Built<DType::kFloat16, 64>,
                               Built<DType::kBFloat16, 128>, Built<DType::kFloat16, 128>>;
TYPED_TEST_SUITE(PlanSm90, Configs);

TYPED_TEST(PlanSm90, NamedBarriersAreDistinct) {
  std::vector<int> ids{0};  // __syncthreads
  for (int consumer = 0; consumer < this->kConfig.consumers; ++consumer) {
    ids.push_back(kOrder + consumer);
    ids.push_back(kStage + consumer);
  }
  ids.push_back(kTail);
  EXPECT_EQ(std::set<int>(ids.begin(), ids.end()).size(), ids.size())
      << testing::PrintToString(ids);
  EXPECT_LT(*std::max_element(ids.begin(), ids.end()), 16);
}

TYPED_TEST(PlanSm90, RolesShareTheWarps) {
  using Plan = typename TestFixture::Plan;
  std::set<int> warps;
  for (const RoleRow& role : this->roles()) {
    for (int warp = role.first_warp; warp < role.first_warp + role.warps; ++warp)
      EXPECT_TRUE(warps.insert(warp).second) << "warp " << warp << " has two roles";
    // setmaxnreg is for whole warpgroups: neighbours in one agree.
    for (const RoleRow& other : this->roles()) {
      const bool meet = role.first_warp / 4 <= (other.first_warp + other.warps - 1) / 4 &&
                        other.first_warp / 4 <= (role.first_warp + role.warps - 1) / 4;
      EXPECT_TRUE(!meet || role.registers == other.registers) << role.name << ", " << other.name;
    }
  }
  EXPECT_LT(*warps.rbegin(), Plan::kThreads / 32);
  EXPECT_EQ(Plan::kThreads % kWarpgroup, 0);
  EXPECT_LE(Plan::kThreads, 1024);
  const RoleRow consumer = this->roles()[0];
  EXPECT_EQ(consumer.first_warp % 4, 0) << "a wgmma is issued by an aligned warpgroup";
  EXPECT_EQ(consumer.warps, Plan::kBlockM / 16) << "a warp has 16 rows";
}

TYPED_TEST(PlanSm90, RegistersFitTheLaunch) {
  using Plan = typename TestFixture::Plan;
  // The launch hands out multiples of 8 per thread; setmaxnreg moves them between warpgroups.
  const int launched = kRegistersPerSm / Plan::kThreads / 8 * 8;
  const int warpgroups = Plan::kThreads / kWarpgroup;
  int asked = 0;
  for (int warpgroup = 0; warpgroup < warpgroups; ++warpgroup) {
    int registers = launched;
    for (const RoleRow& role : this->roles())
      if (role.first_warp / 4 <= warpgroup && warpgroup <= (role.first_warp + role.warps - 1) / 4)
        registers = role.registers;
    EXPECT_EQ(registers % 8, 0);
    EXPECT_GE(registers, 24);
    EXPECT_LE(registers, 256);
    asked += registers;
  }
  EXPECT_LE(asked, launched * warpgroups) << "an increase would never return";
  EXPECT_GE(Plan::kConsumerRegisters, launched) << "consumers increase";
  EXPECT_LE(Plan::kProducerRegisters, launched) << "producers decrease";
}

TYPED_TEST(PlanSm90, ArrivalsAreThoseOfTheRoles) {
  using Plan = typename TestFixture::Plan;
  for (const BarrierRow& row : Plan::kBarriers.row) {
    SCOPED_TRACE(row.name);
    int arrivals = 0;
    for (uint32_t role : {kConsumer, kLoad, kSchedule})
      if ((row.signals & role) != 0) arrivals += this->arrivals_of(role);
    EXPECT_EQ(row.arrivals, arrivals);
    EXPECT_EQ(row.signals & row.waits, 0u) << "a role waits for itself";
    EXPECT_EQ((row.signals | row.waits) & ~uint32_t{kConsumer | kLoad | kSchedule}, 0u);
    EXPECT_TRUE(row.signals != 0 && row.waits != 0);
    EXPECT_TRUE(row.done != Done::kTmaBytes || row.signals == kLoad) << "copies are the loader's";
    EXPECT_NE(row.done, Done::kMmaCommit) << "tensor cores of SM90 signal no mbarrier";
  }
}

TYPED_TEST(PlanSm90, FullAndEmptyArePairs) {
  using Plan = typename TestFixture::Plan;
  const auto& rows = Plan::kBarriers.row;
  ASSERT_EQ(std::size(rows) % 2, 0u);
  for (size_t i = 0; i < std::size(rows); i += 2) {
    const std::string full = rows[i].name;
    const std::string buffer = full.substr(0, full.rfind('_'));
    EXPECT_EQ(full, buffer + "_full");
    EXPECT_EQ(rows[i + 1].name, buffer + "_empty");
    EXPECT_EQ(rows[i].stages, rows[i + 1].stages) << buffer;
    EXPECT_EQ(rows[i].waits, rows[i + 1].signals) << buffer << ": who reads it gives it back";
    EXPECT_EQ(rows[i].signals, rows[i + 1].waits) << buffer;
  }
  EXPECT_EQ(rows[kTileFull].stages, Plan::kTileStages);
  EXPECT_EQ(rows[kQFull].stages, Plan::kQStages);
  EXPECT_EQ(rows[kKFull].stages, Plan::kKvStages);
  EXPECT_EQ(rows[kVFull].stages, Plan::kKvStages);
  EXPECT_STREQ(rows[kTileFull].name, "tile_full");
  EXPECT_STREQ(rows[kQFull].name, "q_full");
  EXPECT_STREQ(rows[kKFull].name, "k_full");
  EXPECT_STREQ(rows[kVFull].name, "v_full");
}

TYPED_TEST(PlanSm90, SharedMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  constexpr uint32_t kElement = 2;  // bytes
  struct Region {
    const char* name;
    uint32_t offset, bytes, alignment;
  };
  const uint32_t tile = Plan::kHeadDim * kElement;
  const int consumers = this->kConfig.consumers;
  const std::vector<Region> regions = {
      // Tiles with the 128-byte swizzle repeat every 1024 bytes: their stages begin at multiples.
      {"q", Plan::kQOffset, Plan::kQStages * Plan::kBlockM * tile, 1024},
      {"k", Plan::kKOffset, Plan::kKvStages * Plan::kBlockN * tile, 1024},
      {"v", Plan::kVOffset, Plan::kKvStages * Plan::kBlockN * tile, 1024},
      {"out", Plan::kOutOffset, consumers * 64 * tile, 1024},
      {"tiles", Plan::kTileOffset, Plan::kTileStages * uint32_t{sizeof(QueryTile)}, 16},
      {"barriers", Plan::kBarOffset, 8 * uint32_t(Plan::kBarriers.count()), 8},
  };
  uint32_t end = 0;
  for (const Region& region : regions) {
    EXPECT_GE(region.offset, end) << region.name << " overlaps what lies before it";
    EXPECT_EQ(region.offset % region.alignment, 0u) << region.name;
    end = region.offset + region.bytes;
  }
  EXPECT_LE(end, Plan::kSharedBytes);
  EXPECT_LE(Plan::kSharedBytes, kSharedLimit);
  for (uint32_t stage : {Plan::kQBytes, Plan::kKvBytes, Plan::kOutBytes})
    EXPECT_EQ(stage % 1024, 0u);
}

TYPED_TEST(PlanSm90, EveryBarrierHasItsPlace) {
  using Plan = typename TestFixture::Plan;
  std::set<int> places;
  int stages = 0;
  for (int bar = 0; bar < kNumBars; ++bar) {
    for (int stage = 0; stage < Plan::kBarriers.row[bar].stages; ++stage)
      EXPECT_TRUE(places.insert(Plan::kBarriers.first(bar) + stage).second);
    stages += Plan::kBarriers.row[bar].stages;
  }
  EXPECT_EQ(Plan::kBarriers.count(), stages);
  EXPECT_EQ(*places.begin(), 0);
  EXPECT_EQ(*places.rbegin(), stages - 1);
}

TYPED_TEST(PlanSm90, TilesSuitTheTensorCore) {
  using Plan = typename TestFixture::Plan;
  EXPECT_EQ(Plan::kBlockM, 64 * this->kConfig.consumers);
  EXPECT_EQ(Plan::kBlockN % 16, 0) << "keys are the K of the second product";
  EXPECT_EQ(Plan::kHeadDim % 64, 0) << "a chunk has 64 columns";
  EXPECT_LE(std::max(Plan::kBlockN, Plan::kHeadDim), 256) << "N of an instruction";
  EXPECT_LE(Plan::kBlockM, 256) << "rows of a box of the copy engine";
  EXPECT_LE(Plan::kBlockN, 256);
}

}  // namespace
}  // namespace fa4::sm90
