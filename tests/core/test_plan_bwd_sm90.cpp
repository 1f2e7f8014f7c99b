// The plan of the SM90 backward kernel against the hardware's limits and against itself, for every
// configuration that is built.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "csrc/sm90/bwd/plan.h"

namespace fa4::sm90 {
namespace {

constexpr uint32_t kSharedLimit = 232448;  // bytes that one block may have
constexpr int kRegistersPerSm = 65536;
constexpr int kWarpgroup = 128;   // threads
constexpr uint32_t kElement = 2;  // bytes of bf16 and fp16

template <DType kDType, int kHeadDim>
struct Built {
  static constexpr BwdConfig kConfig = bwd_config(kDType, kHeadDim);
  using Plan = BwdPlan<kConfig>;
};

template <class Config>
struct PlanBwdSm90 : testing::Test {
  using Plan = typename Config::Plan;
  static constexpr BwdConfig kConfig = Config::kConfig;

  static std::vector<RoleRow> roles() { return {std::begin(Plan::kRoles), std::end(Plan::kRoles)}; }
  static std::vector<BarrierRow> barriers() {
    return {std::begin(Plan::kBarriers.row), std::end(Plan::kBarriers.row)};
  }
  static const BarrierRow* find_barrier(const std::string& name) {
    for (const BarrierRow& row : Plan::kBarriers.row)
      if (row.name == name) return &row;
    return nullptr;
  }
};

using Configs = testing::Types<Built<DType::kBFloat16, 64>, Built<DType::kFloat16, 64>,
                               Built<DType::kBFloat16, 128>, Built<DType::kFloat16, 128>>;
TYPED_TEST_SUITE(PlanBwdSm90, Configs);

/// The rows that hand over the turn to add a dq: a ring has one mbarrier of each consumer.
bool per_consumer(const BarrierRow& row) {
  return std::string(row.name).rfind("dq_", 0) == 0;
}

// ---- Threads and registers ---------------------------------------------------------------------

TYPED_TEST(PlanBwdSm90, NamedBarriersAreDistinct) {
  using Plan = typename TestFixture::Plan;
  std::vector<int> ids{0};  // __syncthreads
  for (int consumer = 0; consumer < Plan::kConsumers; ++consumer) {
    ids.push_back(kBwdTurn + consumer);
    ids.push_back(kBwdGroup + consumer);
  }
  ids.push_back(kBwdBoth);
  EXPECT_EQ(std::set<int>(ids.begin(), ids.end()).size(), ids.size())
      << testing::PrintToString(ids);
  EXPECT_LT(*std::max_element(ids.begin(), ids.end()), 16);
}

TYPED_TEST(PlanBwdSm90, RolesShareTheWarps) {
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
  EXPECT_STREQ(consumer.name, "consumer");
  EXPECT_EQ(consumer.first_warp, 0) << "consumers number their threads from 0";
  EXPECT_EQ(consumer.warps, Plan::kConsumerWarps);
  EXPECT_EQ(consumer.warps, 4 * Plan::kConsumers) << "a wgmma is issued by a warpgroup";
  EXPECT_EQ(consumer.warps, Plan::kBlockN / 16) << "a warp has 16 keys";
}

TYPED_TEST(PlanBwdSm90, RegistersFitTheLaunch) {
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

TYPED_TEST(PlanBwdSm90, AccumulatorsFitTheRegisters) {
  using Plan = typename TestFixture::Plan;
  // A warpgroup holds a product of 64 rows in N / 2 registers per thread.
  const int dk = Plan::kHeadDim / 2, dv = Plan::kHeadDim / 2;
  const int scores = Plan::kBlockM / 2, dp = Plan::kBlockM / 2;
  const int weights = Plan::kBlockM / 4;  // in pairs
  const int dq = Plan::kDqColumns / 2 * Plan::kDqRows / 64;
  if (Plan::kScoresFirst) {
    // S in flight beside the products of the step before; dq lies over dP.
    EXPECT_EQ(dq, dp);
    EXPECT_LT(dk + dv + scores + dp + weights, Plan::kConsumerRegisters);
  } else {
    EXPECT_LT(dk + dv + scores + dp, Plan::kConsumerRegisters);
    EXPECT_LT(dk + dv + weights + dq, Plan::kConsumerRegisters);
  }
}

// ---- Barriers ----------------------------------------------------------------------------------

TYPED_TEST(PlanBwdSm90, ArrivalsAreThoseOfTheRoles) {
  using Plan = typename TestFixture::Plan;
  const uint32_t all = kBwdConsumer | kBwdLoad | kBwdOrder;
  for (const BarrierRow& row : Plan::kBarriers.row) {
    SCOPED_TRACE(row.name);
    EXPECT_EQ(row.signals & row.waits, 0u) << "a role waits for itself";
    EXPECT_EQ((row.signals | row.waits) & ~all, 0u);
    EXPECT_TRUE(row.signals != 0 && row.waits != 0);
    // One per warp of the consumers, or of the one whose mbarrier it is; else one thread.
    const int consumer_warps = per_consumer(row) ? 4 : Plan::kConsumerWarps;
    EXPECT_EQ(row.arrivals, row.signals == kBwdConsumer ? consumer_warps : 1);
    EXPECT_TRUE(row.done != Done::kTmaBytes || row.signals == kBwdLoad)
        << "copies are the loader's";
    EXPECT_TRUE(row.signals != kBwdLoad || row.done == Done::kTmaBytes) << "it does nothing else";
    EXPECT_NE(row.done, Done::kMmaCommit) << "tensor cores of SM90 signal no mbarrier";
  }
}

TYPED_TEST(PlanBwdSm90, WhoReadsABufferGivesItBack) {
  using Plan = typename TestFixture::Plan;
  for (const BarrierRow& row : this->barriers()) {
    const std::string name = row.name, buffer = name.substr(0, name.rfind('_'));
    SCOPED_TRACE(name);
    std::string back = buffer + "_empty";
    if (name == buffer + "_turn") back = buffer + "_added";
    if (name != buffer + "_full" && name != buffer + "_turn") continue;
    const BarrierRow* empty = this->find_barrier(back);
    if (empty == nullptr) {
      EXPECT_EQ(row.stages, 1) << "what is not given back is filled once";
      continue;
    }
    EXPECT_EQ(row.stages, empty->stages);
    EXPECT_EQ(row.waits, empty->signals);
    EXPECT_EQ(row.signals, empty->waits);
    EXPECT_EQ(row.stages, per_consumer(row) ? Plan::kConsumers : Plan::kStages);
  }
}

TYPED_TEST(PlanBwdSm90, EveryBarrierIsAFirstOrASecondHalf) {
  for (const BarrierRow& row : this->barriers()) {
    const std::string name = row.name, buffer = name.substr(0, name.rfind('_'));
    SCOPED_TRACE(name);
    const std::map<std::string, std::string> first = {
        {"full", "full"}, {"empty", "full"}, {"turn", "turn"}, {"added", "turn"}};
    const auto state = first.find(name.substr(buffer.size() + 1));
    ASSERT_NE(state, first.end());
    EXPECT_NE(this->find_barrier(buffer + "_" + state->second), nullptr);
  }
}

TYPED_TEST(PlanBwdSm90, EveryBarrierHasItsPlace) {
  using Plan = typename TestFixture::Plan;
  std::set<int> places;
  std::set<std::string> names;
  int stages = 0;
  for (int bar = 0; bar < kBwdNumBars; ++bar) {
    const BarrierRow& row = Plan::kBarriers.row[bar];
    EXPECT_TRUE(names.insert(row.name).second) << row.name << " stands twice";
    for (int stage = 0; stage < row.stages; ++stage)
      EXPECT_TRUE(places.insert(Plan::kBarriers.first(bar) + stage).second);
    stages += row.stages;
  }
  EXPECT_EQ(Plan::kBarriers.count(), stages);
  EXPECT_EQ(*places.begin(), 0);
  EXPECT_EQ(*places.rbegin(), stages - 1);
  EXPECT_STREQ(Plan::kBarriers.row[kBwdKvFull].name, "kv_full");
  EXPECT_STREQ(Plan::kBarriers.row[kBwdQueriesFull].name, "queries_full");
  EXPECT_STREQ(Plan::kBarriers.row[kBwdQueriesEmpty].name, "queries_empty");
  EXPECT_STREQ(Plan::kBarriers.row[kBwdDqTurn].name, "dq_turn");
  EXPECT_STREQ(Plan::kBarriers.row[kBwdDqAdded].name, "dq_added");
}

// ---- Shared memory -----------------------------------------------------------------------------

TYPED_TEST(PlanBwdSm90, SharedMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  struct Region {
    const char* name;
    uint32_t offset, bytes, alignment;
  };
  const uint32_t row = Plan::kHeadDim * kElement;
  const uint32_t stats = Plan::kStages * Plan::kBlockM * uint32_t{sizeof(float)};
  const std::vector<Region> regions = {
      // Tiles with the 128-byte swizzle repeat every 1024 bytes: their stages begin at multiples.
      {"k", Plan::kKOffset, Plan::kBlockN * row, 1024},
      {"v", Plan::kVOffset, Plan::kBlockN * row, 1024},
      {"q", Plan::kQOffset, Plan::kStages * Plan::kBlockM * row, 1024},
      {"dout", Plan::kDoutOffset, Plan::kStages * Plan::kBlockM * row, 1024},
      {"ds", Plan::kDsOffset, Plan::kDsStages * Plan::kBlockN * Plan::kBlockM * kElement, 1024},
      // Bulk copies write multiples of 16 bytes to multiples of 16.
      {"lse2", Plan::kLseOffset, stats, 16},
      {"delta", Plan::kDeltaOffset, stats, 16},
      {"tile", Plan::kTileOffset, sizeof(KeyTile), alignof(KeyTile)},
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
  for (uint32_t stage : {Plan::kKeyBytes, Plan::kQueryBytes, Plan::kDsBytes})
    EXPECT_EQ(stage % 1024, 0u);
  EXPECT_EQ(Plan::kStatBytes % 16, 0u);
}

TYPED_TEST(PlanBwdSm90, LayoutsFillTheirTiles) {
  using Plan = typename TestFixture::Plan;
  const auto end_of = [](TileLayout tile, int rows, int columns) {
    return tile.unswizzled_offset(rows - 1, columns - 1) + kElement;
  };
  EXPECT_EQ(end_of(Plan::key_layout(), Plan::kBlockN, Plan::kHeadDim), Plan::kKeyBytes);
  EXPECT_EQ(end_of(Plan::query_layout(), Plan::kBlockM, Plan::kHeadDim), Plan::kQueryBytes);
  EXPECT_EQ(end_of(Plan::ds_layout(), Plan::kBlockN, Plan::kBlockM), Plan::kDsBytes);
}

TYPED_TEST(PlanBwdSm90, BytesOfAStepAreThoseOfItsCopies) {
  using Plan = typename TestFixture::Plan;
  const uint32_t copied = 2 * Plan::kBlockM * (Plan::kHeadDim * kElement + sizeof(float));
  EXPECT_EQ(Plan::kStepBytes, copied) << "Q and dO, lse2 and delta";
  EXPECT_LT(2 * Plan::kKeyBytes, 1u << 20) << "what an mbarrier counts";
}

TYPED_TEST(PlanBwdSm90, DsHasABufferForEveryTurnThatReadsIt) {
  using Plan = typename TestFixture::Plan;
  // One is written; the turn of each consumer may still read an older one, and one more where a
  // turn is passed on before its products have been waited for.
  EXPECT_GE(Plan::kDsStages, 1 + Plan::kConsumers + (Plan::kScoresFirst ? 0 : 1));
}

// ---- Products ----------------------------------------------------------------------------------

TYPED_TEST(PlanBwdSm90, TilesSuitTheTensorCore) {
  using Plan = typename TestFixture::Plan;
  EXPECT_EQ(Plan::kBlockN, 64 * Plan::kConsumers) << "M of an instruction is 64";
  for (int k : {Plan::kHeadDim, Plan::kBlockM, Plan::kBlockN}) EXPECT_EQ(k % 16, 0);
  for (int n : {Plan::kBlockM, Plan::kHeadDim, Plan::kDqColumns}) {
    EXPECT_EQ(n % 8, 0);
    EXPECT_LE(n, 256);
  }
  EXPECT_EQ(Plan::kHeadDim % 64, 0) << "a chunk has 64 columns";
  EXPECT_LE(Plan::kBlockM, 256) << "rows of a box of the copy engine";
  EXPECT_LE(Plan::kBlockN, 256);
  EXPECT_LE(this->kConfig.head_dim, Plan::kHeadDim);
}

/// Clocks of a wgmma m64nNk16 with 16-bit operands. The tensor cores of an SM do 2048 multiplications
/// per clock; shared memory gives 128 bytes, of B always, of A unless it is in registers.
int clocks(int n, bool a_in_registers) {
  const int products = 64 * n * 16 / 2048;
  const int bytes = 16 * 2 * (n + (a_in_registers ? 0 : 64));
  return std::max(products, bytes / 128);
}

TYPED_TEST(PlanBwdSm90, ProductsRunNearTheTensorCoresRate) {
  using Plan = typename TestFixture::Plan;
  const int m = Plan::kBlockM, d = Plan::kHeadDim, keys = Plan::kBlockN;
  // Of one consumer and step; dq in as many instructions of 64 rows as it has.
  const int scores = 2 * clocks(m, false) * (d / 16);
  const int dv = clocks(d, true) * (m / 16), dk = clocks(d, false) * (m / 16);
  const int dq = clocks(Plan::kDqColumns, false) * (keys / 16) * (Plan::kDqRows / 64);
  const int all = Plan::kConsumers * (scores + dv + dk + dq);
  const int least = 5 * m * keys * d / 2048;
  EXPECT_GE(all, least);
  EXPECT_LE(all, least + least / 10) << "shared memory, not the tensor cores, bounds the step";
}

TYPED_TEST(PlanBwdSm90, ConsumersAddEveryElementOfDqOnce) {
  using Plan = typename TestFixture::Plan;
  using Layout = typename Plan::DqLayout;
  EXPECT_EQ(Plan::kDqRows * Plan::kDqColumns * Plan::kConsumers, Plan::kBlockM * Plan::kHeadDim);
  EXPECT_EQ(Layout::slices(Plan::kBlockM, Plan::kHeadDim) * Layout::kSliceFloats,
            Plan::kBlockM * Plan::kHeadDim);
  std::vector<int> added(Plan::kBlockM * Plan::kHeadDim);
  for (int consumer = 0; consumer < Plan::kConsumers; ++consumer) {
    const int first_row = Plan::kDqByRows ? Plan::kDqRows * consumer : 0;
    const int first_column = Plan::kDqByRows ? 0 : Plan::kDqColumns * consumer;
    for (int row = first_row; row < first_row + Plan::kDqRows; ++row) {
      for (int column = first_column; column < first_column + Plan::kDqColumns; ++column) {
        ++added[Layout::offset(row, column, Plan::kHeadDim)];
        EXPECT_EQ(Layout::slice(row, column, Plan::kHeadDim), consumer) << "whose slice it is";
      }
    }
    EXPECT_EQ(Plan::kDqColumns / 2 % 4, 0) << "a thread adds four registers at a time";
  }
  EXPECT_EQ(std::count(added.begin(), added.end(), 1), static_cast<int64_t>(added.size()));
}

}  // namespace
}  // namespace fa4::sm90
