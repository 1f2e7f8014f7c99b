// The plan of the SM100 forward kernel against the hardware's limits and against itself, for every
// configuration that is built.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "csrc/sm100/fwd/plan.h"

namespace fa4::sm100 {
namespace {

constexpr uint32_t kSharedLimit = 232448;  // bytes that one block may have
constexpr int kRegistersPerSm = 65536;
constexpr int kWarpgroup = 128;           // threads
constexpr uint32_t kTensorColumns = 512;  // of 32 bits in each of 128 lanes
constexpr int kElement = 2;               // bytes

template <DType kDType, int kHeadDim, int kCtas = 1>
struct Built {
  static constexpr FwdConfig kConfig = fwd_config(kDType, kHeadDim, kCtas);
  using Plan = FwdPlan<kConfig>;
};

template <class Config>
struct PlanSm100 : testing::Test {
  using Plan = typename Config::Plan;
  static constexpr FwdConfig kConfig = Config::kConfig;

  static std::vector<RoleRow> roles() { return {std::begin(Plan::kRoles), std::end(Plan::kRoles)}; }

  static std::vector<RoleRow> roles_of(int warpgroup) {
    std::vector<RoleRow> found;
    for (const RoleRow& role : roles()) {
      const int last_warp = role.first_warp + role.warps - 1;
      if (role.first_warp / 4 <= warpgroup && warpgroup <= last_warp / 4) found.push_back(role);
    }
    return found;
  }

  /// Arrivals per phase of one role at one stage. A row of `stages` mbarriers is for everything
  /// (tiles, buffers), one per half, or one per warp of each half.
  static int arrivals_of(uint32_t role, const std::string& row, int stages) {
    const bool warps_apart = row.starts_with("stat_");
    if (role == kSoftmax) return warps_apart ? 1 : row == "tile_empty" ? 8 : 8 / stages;
    if (role == kCorrection) return warps_apart ? 1 : 4;
    return 1;  // one thread, or one lane of the only warp
  }

  /// The swizzle repeats after this many bytes; shared memory itself is aligned to 1024.
  static uint32_t alignment() { return span_bytes(Plan::kSwizzle) == 128 ? 1024 : 512; }
};

using Configs = testing::Types<Built<DType::kBFloat16, 64>, Built<DType::kFloat16, 64>,
                               Built<DType::kBFloat16, 96>, Built<DType::kFloat16, 96>,
                               Built<DType::kBFloat16, 128>, Built<DType::kFloat16, 128>,
                               Built<DType::kBFloat16, 192>, Built<DType::kFloat16, 192>,
                               Built<DType::kBFloat16, 128, 2>, Built<DType::kFloat16, 128, 2>,
                               Built<DType::kBFloat16, 192, 2>, Built<DType::kFloat16, 192, 2>>;
TYPED_TEST_SUITE(PlanSm100, Configs);

// ---- Roles -------------------------------------------------------------------------------------

TYPED_TEST(PlanSm100, RolesShareTheWarps) {
  using Plan = typename TestFixture::Plan;
  std::set<int> warps;
  for (const RoleRow& role : this->roles()) {
    for (int warp = role.first_warp; warp < role.first_warp + role.warps; ++warp)
      EXPECT_TRUE(warps.insert(warp).second) << "warp " << warp << " has two roles";
  }
  EXPECT_EQ(*warps.begin(), 0);
  EXPECT_EQ(*warps.rbegin(), Plan::kThreads / 32 - 1);
  EXPECT_EQ(warps.size(), size_t{Plan::kThreads / 32}) << "no warp without role";
  EXPECT_EQ(Plan::kThreads % kWarpgroup, 0);
  EXPECT_LE(Plan::kThreads, 1024);
}

TYPED_TEST(PlanSm100, WarpsReachTheirLanesOfTensorMemory) {
  using Plan = typename TestFixture::Plan;
  const RoleRow softmax = this->roles()[0], correction = this->roles()[1];
  ASSERT_STREQ(softmax.name, "softmax");
  ASSERT_STREQ(correction.name, "correction");
  // A warp reaches the 32 lanes of its place in its warpgroup, and a lane is a row of a half.
  EXPECT_EQ(softmax.first_warp % 4, 0);
  EXPECT_EQ(correction.first_warp % 4, 0);
  EXPECT_EQ(softmax.warps, Plan::kHalves * Plan::kHalfRows / 32);
  EXPECT_EQ(correction.warps, Plan::kHalfRows / 32) << "has both halves in turn";
  EXPECT_EQ(correction.first_warp, Plan::kFirstCorrectionWarp);
}

TYPED_TEST(PlanSm100, SingleWarpsAreWhereTheKernelLooksForThem) {
  using Plan = typename TestFixture::Plan;
  const std::vector<RoleRow> roles = this->roles();
  ASSERT_EQ(roles.size(), 6u);
  const int places[] = {Plan::kMmaWarp, Plan::kLoadWarp, Plan::kStoreWarp, Plan::kScheduleWarp};
  const char* const names[] = {"mma", "load", "store", "schedule"};
  for (int i = 0; i < 4; ++i) {
    EXPECT_STREQ(roles[2 + i].name, names[i]);
    EXPECT_EQ(roles[2 + i].first_warp, places[i]) << names[i];
    EXPECT_EQ(roles[2 + i].warps, 1) << names[i];
  }
  EXPECT_EQ(Plan::kWorkerWarps, Plan::kThreads / 32 - 1) << "all but the one that finds tiles";
}

TYPED_TEST(PlanSm100, RegistersFitTheLaunch) {
  using Plan = typename TestFixture::Plan;
  // The launch hands out multiples of 8 per thread; setmaxnreg moves them between warpgroups.
  const int launched = kRegistersPerSm / Plan::kThreads / 8 * 8;
  const int warpgroups = Plan::kThreads / kWarpgroup;
  int asked = 0;
  for (int warpgroup = 0; warpgroup < warpgroups; ++warpgroup) {
    const std::vector<RoleRow> roles = this->roles_of(warpgroup);
    ASSERT_FALSE(roles.empty());
    const int registers = roles[0].registers;
    for (const RoleRow& role : roles)
      EXPECT_EQ(role.registers, registers) << role.name << ": setmaxnreg is for whole warpgroups";
    EXPECT_EQ(registers % 8, 0);
    EXPECT_GE(registers, 24);
    EXPECT_LE(registers, 256);
    asked += registers;
  }
  EXPECT_LE(asked, launched * warpgroups) << "an increase would never return";
  EXPECT_GE(Plan::kSoftmaxRegisters, launched) << "softmax increases";
  EXPECT_LE(Plan::kCorrectionRegisters, launched) << "correction decreases";
  EXPECT_LE(Plan::kOtherRegisters, launched) << "others decrease";
}

// ---- Barriers ----------------------------------------------------------------------------------

TYPED_TEST(PlanSm100, ArrivalsAreThoseOfTheRoles) {
  using Plan = typename TestFixture::Plan;
  for (const BarrierRow& row : Plan::kBarriers.row) {
    SCOPED_TRACE(row.name);
    if (row.stages == 0) continue;
    int arrivals = 0;
    for (uint32_t role : {kSoftmax, kCorrection, kMma, kLoad, kStore, kSchedule})
      if ((row.signals & role) != 0) arrivals += this->arrivals_of(role, row.name, row.stages);
    // What a pair's leader holds is for the threads of both; copies and products count once.
    const bool from_both = row.holder == Holder::kLeader && row.done == Done::kThreads;
    EXPECT_EQ(row.arrivals, arrivals * (from_both ? 2 : 1));
    EXPECT_EQ(row.signals & row.waits, 0u) << "a role waits for itself";
    EXPECT_EQ((row.signals | row.waits) & ~uint32_t{kWorkers | kSchedule}, 0u);
    EXPECT_TRUE(row.signals != 0 && row.waits != 0);
    EXPECT_EQ(row.done == Done::kTmaBytes, row.signals == kLoad) << "copies are the loader's";
    if (std::string(row.name) != "v_landed") {
      EXPECT_EQ(row.done == Done::kMmaCommit, row.signals == kMma) << "products are mma's";
    }
  }
}

/// Only the leader of a pair issues products: mma waits there for what both CTAs do, and says in
/// both what is done. All else stays in its CTA.
TYPED_TEST(PlanSm100, ALeaderHoldsWhatMmaWaitsFor) {
  using Plan = typename TestFixture::Plan;
  for (const BarrierRow& row : Plan::kBarriers.row) {
    const std::string name = row.name;
    const Holder expected = Plan::kCtas == 1 || name.starts_with("tile_") ? Holder::kOwn
                            : row.waits == kMma                           ? Holder::kLeader
                            : row.signals == kMma                         ? Holder::kBoth
                                                                          : Holder::kOwn;
    EXPECT_EQ(row.holder, expected) << name;
  }
}

/// Buffers that are filled and given back. Values: the correction cleans what it has waited for,
/// and mma, which waits for that, gives them back for both.
TYPED_TEST(PlanSm100, FullAndEmptyArePairs) {
  using Plan = typename TestFixture::Plan;
  const auto& rows = Plan::kBarriers.row;
  std::set<std::string> buffers, alone;
  for (size_t i = 0; i < std::size(rows); ++i) {
    const std::string name = rows[i].name;
    const std::string buffer = name.substr(0, name.rfind('_'));
    if (name.ends_with("_empty")) continue;
    if (i + 1 == std::size(rows) || rows[i + 1].name != buffer + "_empty") {
      alone.insert(name);
      continue;
    }
    EXPECT_EQ(name, buffer + "_full");
    buffers.insert(buffer);
    EXPECT_EQ(rows[i].stages, rows[i + 1].stages) << buffer;
    const uint32_t cleaner = buffer == "v" && Plan::kCtas == 1 ? uint32_t{kCorrection} : 0;
    EXPECT_EQ(rows[i].waits, rows[i + 1].signals | cleaner)
        << buffer << ": who reads it returns it";
    EXPECT_EQ(rows[i].signals, rows[i + 1].waits) << buffer;
  }
  EXPECT_EQ(buffers, (std::set<std::string>{"tile", "q", "k", "v", "stat", "o", "out"}));
  EXPECT_EQ(alone, (std::set<std::string>{"v_landed", "v_clean", "s_full", "p_early", "p_late",
                                          "o_rescaled"}));
}

/// What has no empty barrier is handed back by another row of the table.
TYPED_TEST(PlanSm100, BuffersWithoutEmptyComeBackAnotherWay) {
  using Plan = typename TestFixture::Plan;
  const auto& rows = Plan::kBarriers.row;
  for (int weights : {kPEarly, kPLate}) {
    EXPECT_EQ(rows[kSFull].signals, rows[weights].waits) << "weights lie over the scores";
    EXPECT_EQ(rows[kSFull].waits, rows[weights].signals);
    EXPECT_EQ(rows[kSFull].stages, rows[weights].stages);
  }
  EXPECT_EQ(rows[kStatFull].waits, rows[kORescaled].signals) << "it rescales by what it is told";
  EXPECT_EQ(rows[kORescaled].waits, rows[kOFull].signals) << "it rescales what mma goes on with";
  EXPECT_EQ(rows[kORescaled].stages, rows[kOFull].stages);
  const int landed = Plan::kCtas == 1 ? kVFull : kVLanded;
  EXPECT_NE(rows[landed].waits & rows[kVClean].signals, 0u) << "it cleans values that are there";
  EXPECT_NE(rows[kVFull].waits & rows[kVClean].waits, 0u);
}

TYPED_TEST(PlanSm100, BarriersHaveTheStagesOfTheirBuffers) {
  using Plan = typename TestFixture::Plan;
  const auto& rows = Plan::kBarriers.row;
  struct Expected {
    Bar bar;
    const char* name;
    int stages;
  };
  for (const Expected& expected :
       {Expected{kTileFull, "tile_full", Plan::kTileStages},
        Expected{kQFull, "q_full", Plan::kHalves}, Expected{kKFull, "k_full", Plan::kKStages},
        Expected{kVFull, "v_full", Plan::kVStages}, Expected{kVLanded, "v_landed", Plan::kCtas - 1},
        Expected{kVClean, "v_clean", 1}, Expected{kSFull, "s_full", Plan::kHalves},
        Expected{kPEarly, "p_early", Plan::kHalves}, Expected{kPLate, "p_late", Plan::kHalves},
        Expected{kStatFull, "stat_full", 4 * Plan::kHalves},
        Expected{kORescaled, "o_rescaled", Plan::kHalves},
        Expected{kOFull, "o_full", Plan::kHalves},
        Expected{kOutFull, "out_full", Plan::kOutStages}}) {
    EXPECT_STREQ(rows[expected.bar].name, expected.name);
    EXPECT_EQ(rows[expected.bar].stages, expected.stages) << expected.name;
  }
  EXPECT_GE(Plan::kVStages, Plan::kValueParts) << "both halves go through all parts of a step";
  EXPECT_GE(Plan::kKStages, 1);
}

TYPED_TEST(PlanSm100, EveryBarrierHasItsPlace) {
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

// ---- Memory ------------------------------------------------------------------------------------

TYPED_TEST(PlanSm100, SharedMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  struct Region {
    const char* name;
    uint32_t offset, bytes, alignment;
  };
  const uint32_t row = Plan::kHeadDim * kElement, row_v = Plan::kHeadDimV * kElement / Plan::kCtas;
  const uint32_t span = span_bytes(Plan::kSwizzle);
  const uint32_t atom = this->alignment();
  const std::vector<Region> regions = {
      {"q", Plan::kQOffset, 256 * row, atom},
      {"k", Plan::kKOffset, Plan::kKStages * Plan::kBlockN / Plan::kCtas * row, atom},
      {"v", Plan::kVOffset, Plan::kVStages * Plan::kValueRows * row_v, atom},
      {"out", Plan::kOutOffset, Plan::kOutStages * 128 * span, atom},  // a span of columns each
      {"stat", Plan::kStatOffset, 256 * 2 * uint32_t{sizeof(float)}, 8},
      {"tiles", Plan::kTileOffset, Plan::kTileStages * uint32_t{sizeof(QueryTile)}, 16},
      {"barriers", Plan::kBarOffset, 8 * uint32_t(Plan::kBarriers.count()), 8},
      {"address of tensor memory", Plan::kTmemOffset, 4, 4},
  };
  uint32_t end = 0;
  for (const Region& region : regions) {
    EXPECT_GE(region.offset, end) << region.name << " overlaps what lies before it";
    EXPECT_LT(region.offset, end + 16) << region.name << ": a gap before it";
    EXPECT_EQ(region.offset % region.alignment, 0u) << region.name;
    end = region.offset + region.bytes;
  }
  EXPECT_LE(end, Plan::kSharedBytes);
  EXPECT_LE(Plan::kSharedBytes, kSharedLimit);
}

TYPED_TEST(PlanSm100, StagesKeepTheSwizzle) {
  using Plan = typename TestFixture::Plan;
  for (uint32_t stage : {Plan::kQBytes, Plan::kKBytes, Plan::kVBytes, Plan::kOutBytes})
    EXPECT_EQ(stage % this->alignment(), 0u);
  EXPECT_EQ(atom_bytes(Plan::kSwizzle), this->alignment());
  EXPECT_EQ(span_bytes(Plan::kSwizzle), Plan::kHeadDim == 96 ? 64u : 128u);
  EXPECT_EQ(Plan::kSpanColumns * kElement, static_cast<int>(span_bytes(Plan::kSwizzle)));
  EXPECT_EQ(Plan::kHeadDim % Plan::kSpanColumns, 0) << "whole spans";
  EXPECT_EQ(Plan::kHeadDimV / Plan::kCtas % Plan::kSpanColumns, 0) << "whole spans";
}

/// Every 16 bytes of a tile have a place of their own within the bytes of a stage.
TYPED_TEST(PlanSm100, TilesFillTheirStages) {
  using Plan = typename TestFixture::Plan;
  struct Stored {
    const char* name;
    TileLayout layout;
    int columns;
    uint32_t bytes;
  };
  for (const Stored& tile :
       {Stored{"q", Plan::q_layout(), Plan::kHeadDim, Plan::kQBytes},
        Stored{"k", Plan::k_layout(), Plan::kHeadDim, Plan::kKBytes},
        Stored{"v", Plan::v_layout(), Plan::kHeadDimV / Plan::kCtas, Plan::kVBytes},
        Stored{"out", Plan::out_layout(), Plan::kSpanColumns, Plan::kOutBytes}}) {
    std::set<uint32_t> places;
    for (uint32_t row = 0; row < tile.layout.rows; ++row)
      for (int column = 0; column < tile.columns; column += 8)
        places.insert(tile.layout.offset(row, column));
    EXPECT_EQ(places.size(), tile.bytes / 16) << tile.name;
    EXPECT_EQ(*places.rbegin(), tile.bytes - 16) << tile.name;
  }
}

TYPED_TEST(PlanSm100, TensorMemoryHoldsEverythingOnce) {
  using Plan = typename TestFixture::Plan;
  std::vector<int> owner(kTensorColumns, 0);
  const auto take = [&](uint32_t first, uint32_t columns, int who) {
    ASSERT_LE(first + columns, kTensorColumns);
    for (uint32_t column = first; column < first + columns; ++column) {
      EXPECT_EQ(owner[column], 0) << "column " << column;
      owner[column] = who;
    }
  };
  for (int half = 0; half < Plan::kHalves; ++half) {
    take(Plan::tmem_s(half), Plan::kBlockN, 1 + half);
    take(Plan::tmem_o(half), Plan::kHeadDimV, 3 + half);
    // Two weights per column: they fill exactly the upper half of their scores.
    EXPECT_EQ(Plan::tmem_p(half), Plan::tmem_s(half) + 64);
    for (uint32_t column = 0; column < Plan::kBlockN / 2; ++column)
      EXPECT_EQ(owner[Plan::tmem_p(half) + column], 1 + half);
  }
}

// ---- Traffic -----------------------------------------------------------------------------------

/// The figures of docs/kernels/fwd_sm100.md, in clocks of 128 bytes.
TYPED_TEST(PlanSm100, AStepReadsAndCopiesWhatTheRooflineSays) {
  using Plan = typename TestFixture::Plan;
  const uint32_t d = Plan::kHeadDim, dv = Plan::kHeadDimV;
  const bool pair = Plan::kCtas == 2;
  EXPECT_EQ(Plan::kOperandBytes / 128, pair ? 6 * d + 2 * dv : 8 * d + 4 * dv);
  EXPECT_EQ(Plan::kCopyBytes / 128, pair ? d + dv : 2 * d + 2 * dv);
}

// ---- Products and arithmetic -------------------------------------------------------------------

TYPED_TEST(PlanSm100, TilesSuitTheTensorCore) {
  using Plan = typename TestFixture::Plan;
  const auto rows = [](uint32_t descriptor) { return (descriptor >> 24 & 31) * 16; };
  const auto columns = [](uint32_t descriptor) { return (descriptor >> 17 & 63) * 8; };
  const uint32_t type = this->kConfig.dtype == DType::kBFloat16 ? 1 : 0;
  for (uint32_t product : {Plan::score_product(), Plan::output_product()}) {
    EXPECT_EQ(rows(product), 128u * Plan::kCtas) << "all lanes of tensor memory";
    EXPECT_EQ(columns(product) % 16, 0u);
    EXPECT_EQ(product >> 7 & 7, type);
    EXPECT_EQ(product >> 10 & 7, type);
    EXPECT_EQ(product >> 4 & 3, 1u) << "accumulates in float32";
    EXPECT_EQ(product >> 15 & 1, 0u) << "A has its K innermost";
  }
  EXPECT_EQ(columns(Plan::score_product()), uint32_t(Plan::kBlockN));
  EXPECT_EQ(columns(Plan::output_product()), uint32_t(Plan::kHeadDimV));
  EXPECT_EQ(Plan::score_product() >> 16 & 1, 0u) << "keys have their columns innermost";
  EXPECT_EQ(Plan::output_product() >> 16 & 1, 1u) << "values are read across their rows";
  EXPECT_EQ(Plan::kHeadDim % 16, 0) << "K of the first product";
  EXPECT_EQ(Plan::kValueRows % 16, 0) << "K of the second product";
  EXPECT_EQ(Plan::kValueRows * Plan::kValueParts, Plan::kBlockN);
  EXPECT_LE(std::max(Plan::kHalfRows, Plan::kBlockN), 256) << "rows of a box of the copy engine";
}

TYPED_TEST(PlanSm100, WeightsAreWhatTheKernelCanDo) {
  const FwdConfig& config = this->kConfig;
  EXPECT_GE(config.emulation.pairs, 0);
  EXPECT_LE(config.emulation.pairs, 16) << "pairs of a fragment";
  EXPECT_GE(config.emulation.first, 0);
  EXPECT_LE(config.emulation.first, 3);
  EXPECT_GE(config.emulation.degree, 3);
  EXPECT_LE(config.emulation.degree, 5);
  EXPECT_TRUE(config.early_fragments == 3 || config.early_fragments == 4) << "of four";
  EXPECT_GE(config.slack_log2, 0);
  EXPECT_LT(config.slack_log2, 16) << "float16 ends at 2^16";
}

}  // namespace
}  // namespace fa4::sm100
