#include "csrc/emulator/machine/special.h"

#include <algorithm>

#include "csrc/emulator/machine/grid.h"

namespace fa4::emulator {

namespace {

using ptx::Special;

/// One of three registers .x .y .z that stand next to each other in the enumeration.
uint32_t component(Special special, Special first, const std::array<uint32_t, 3>& values) {
  return values[static_cast<size_t>(special) - static_cast<size_t>(first)];
}

bool is_one_of(Special special, Special first) {
  return special >= first && static_cast<int>(special) < static_cast<int>(first) + 3;
}

std::array<uint32_t, 3> array_of(const Extent& extent) {
  return {extent.x, extent.y, extent.z};
}

std::array<uint32_t, 3> divided(const std::array<uint32_t, 3>& a,
                                const std::array<uint32_t, 3>& b) {
  return {a[0] / b[0], a[1] / b[1], a[2] / b[2]};
}

std::array<uint32_t, 3> thread_index(const Warp& w, uint32_t lane) {
  const Extent& block = w.cta->cluster->grid->launch.block;
  const uint32_t thread = w.index * kWarpLanes + lane;
  return {thread % block.x, thread / block.x % block.y, thread / block.x / block.y};
}

uint32_t lane_mask(Special special, uint32_t lane) {
  const uint32_t bit = 1u << lane;
  switch (special) {
    case Special::kLanemaskEq:
      return bit;
    case Special::kLanemaskLt:
      return bit - 1;
    case Special::kLanemaskLe:
      return bit | (bit - 1);
    case Special::kLanemaskGt:
      return ~(bit | (bit - 1));
    default:
      return ~(bit - 1);
  }
}

uint64_t scalar_value(const Warp& w, Special special, uint32_t lane) {
  const Cta& cta = *w.cta;
  const Grid& grid = *cta.cluster->grid;
  switch (special) {
    case Special::kClusterCtarank:
      return cta.rank;
    case Special::kClusterNctarank:
      return grid.launch.cluster.count();
    case Special::kIsExplicitCluster:
      return grid.launch.cluster.count() > 1;
    case Special::kLaneid:
      return lane;
    case Special::kWarpid:
      return w.index;
    case Special::kNwarpid:
      return 64;
    case Special::kSmid:
      return cta.cluster->number % 132;
    case Special::kNsmid:
      return 132;
    case Special::kGridid:
      return 1;
    case Special::kDynamicSmemSize:
      return grid.launch.dynamic_shared_bytes;
    case Special::kTotalSmemSize:
      return cta.shared.end() - SharedMemory::kBase;
    case Special::kAggrSmemSize:
      return cta.shared.end();
    default:
      return lane_mask(special, lane);
  }
}

}  // namespace

bool special_is_fixed(Special special) {
  switch (special) {
    case Special::kClock:
    case Special::kClockHi:
    case Special::kClock64:
    case Special::kGlobaltimer:
    case Special::kGlobaltimerLo:
    case Special::kGlobaltimerHi:
      return false;
    default:
      return true;
  }
}

uint64_t special_value(const Warp& w, Special special, uint32_t lane) {
  const Cta& cta = *w.cta;
  const Launch& launch = cta.cluster->grid->launch;
  const auto grid = array_of(launch.grid), cluster = array_of(launch.cluster);
  if (is_one_of(special, Special::kTidX))
    return component(special, Special::kTidX, thread_index(w, lane));
  if (is_one_of(special, Special::kNtidX))
    return component(special, Special::kNtidX, array_of(launch.block));
  if (is_one_of(special, Special::kCtaidX)) return component(special, Special::kCtaidX, cta.index);
  if (is_one_of(special, Special::kNctaidX)) return component(special, Special::kNctaidX, grid);
  if (is_one_of(special, Special::kClusteridX)) {
    return component(special, Special::kClusteridX, divided(cta.index, cluster));
  }
  if (is_one_of(special, Special::kNclusteridX)) {
    return component(special, Special::kNclusteridX, divided(grid, cluster));
  }
  if (is_one_of(special, Special::kClusterCtaidX)) {
    const auto first = cta.cluster->grid->first_cta(cta.cluster->number);
    return component(special, Special::kClusterCtaidX,
                     {cta.index[0] - first[0], cta.index[1] - first[1], cta.index[2] - first[2]});
  }
  if (is_one_of(special, Special::kClusterNctaidX)) {
    return component(special, Special::kClusterNctaidX, cluster);
  }
  return scalar_value(w, special, lane);
}

uint64_t fill_value(const Warp& w, const Fill& fill, uint32_t lane) {
  const uint64_t rank = uint64_t{w.cta->rank} << 24;
  switch (fill.kind) {
    case Fill::kSpecial:
      return special_value(w, static_cast<Special>(fill.value), lane);
    case Fill::kSharedAddress:
      return rank | fill.value;
    case Fill::kDynamicShared:
      return rank | (w.code->dynamic_shared_begin() + fill.value);
    case Fill::kParameter:
      return reinterpret_cast<uint64_t>(w.cta->cluster->grid->parameters.data()) + fill.value;
  }
  return 0;
}

bool polling(const Cluster& cluster) {
  return std::any_of(cluster.ctas.begin(), cluster.ctas.end(), [](const Cta& cta) {
    return std::any_of(cta.warps.begin(), cta.warps.end(), runnable);
  });
}

}  // namespace fa4::emulator
