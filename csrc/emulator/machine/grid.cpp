#include "csrc/emulator/machine/grid.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <thread>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/machine/mbarrier.h"

namespace fa4::emulator {

namespace {

/// Instructions of a cluster before its worker looks up: whether the launch has failed elsewhere.
constexpr uint64_t kSlice = 1'000'000;
/// CTAs that may be in progress at a time when clusters wait for each other: as many as a chip holds.
constexpr uint64_t kResidentCtas = 132;

std::vector<AddressRange> with_parameters(std::vector<AddressRange> regions,
                                          const std::vector<uint8_t>& parameters) {
  if (regions.empty()) return regions;
  const auto begin = reinterpret_cast<uint64_t>(parameters.data());
  regions.push_back({begin, begin + parameters.size()});
  return regions;
}

std::vector<uint8_t> padded(std::span<const uint8_t> parameters) {
  // Tensor maps in the block are 64-byte aligned on the device, and copies read whole maps.
  std::vector<uint8_t> copy(parameters.begin(), parameters.end());
  copy.resize((copy.size() + 127) / 128 * 128 + 128);
  return copy;
}

WarpTrace trace_of(const Cluster& cluster, const Warp& warp) {
  WarpTrace trace;
  trace.cluster = static_cast<uint32_t>(cluster.number);
  trace.cta = warp.cta->rank;
  trace.warp = warp.index;
  for (size_t i = 0; i < warp.class_counts.size(); ++i) {
    if (warp.class_counts[i] == 0) continue;
    trace.classes[op_class_name(static_cast<OpClass>(i))] = warp.class_counts[i];
  }
  trace.waits = warp.waits;
  return trace;
}

}  // namespace

Grid::Grid(const Code& code, const Launch& launch, const Options& options,
           std::vector<AddressRange> regions)
    : code(code),
      launch(launch),
      options(options),
      parameters(padded(launch.parameters)),
      memory(with_parameters(std::move(regions), parameters)) {
  clusters_ = launch.grid.count() / launch.cluster.count();
  if (options.order == Order::kAscending) return;
  order_.resize(clusters_);
  std::iota(order_.begin(), order_.end(), uint64_t{0});
  if (options.order == Order::kDescending) {
    std::reverse(order_.begin(), order_.end());
    return;
  }
  Random random(mix(options.seed + 2));
  for (size_t i = order_.size(); i > 1; --i) {
    std::swap(order_[i - 1], order_[random.below(static_cast<uint32_t>(i))]);
  }
}

std::optional<uint64_t> Grid::take_cluster() {
  const uint64_t position = next_.fetch_add(1, std::memory_order_relaxed);
  if (position >= clusters_) return std::nullopt;
  return order_.empty() ? position : order_[position];
}

std::array<uint32_t, 3> Grid::first_cta(uint64_t cluster) const {
  const uint64_t columns = launch.grid.x / launch.cluster.x,
                 rows = launch.grid.y / launch.cluster.y;
  return {static_cast<uint32_t>(cluster % columns) * launch.cluster.x,
          static_cast<uint32_t>(cluster / columns % rows) * launch.cluster.y,
          static_cast<uint32_t>(cluster / columns / rows) * launch.cluster.z};
}

void Grid::run(Result* result) {
  const auto begin = std::chrono::steady_clock::now();
  uint64_t workers = options.threads > 0 ? static_cast<uint64_t>(options.threads)
                                         : std::max(1u, std::thread::hardware_concurrency());
  workers = std::min(workers, clusters_);
  std::vector<std::thread> threads;
  for (uint64_t i = 1; i < workers; ++i) threads.emplace_back([this] { work(); });
  work();
  for (std::thread& thread : threads) thread.join();
  if (failed_) throw Fault(failure_);
  result_.statistics.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::sort(result_.trace.begin(), result_.trace.end(), [](const WarpTrace& a, const WarpTrace& b) {
    return std::tie(a.cluster, a.cta, a.warp) < std::tie(b.cluster, b.cta, b.warp);
  });
  *result = std::move(result_);
}

void Grid::work() {
  std::deque<std::unique_ptr<Cluster>> resident;
  while (!failed_) {
    if (resident.empty()) {
      const auto number = take_cluster();
      if (!number) return;
      resident.push_back(start(*number));
    }
    try {
      step_resident(resident);
    } catch (const Fault& fault) {
      fail(*resident.front(), fault.what());
    } catch (const std::exception& error) {
      fail(*resident.front(), std::string("emulator: ") + error.what());
    }
  }
}

/// Runs the first of the clusters in progress for a while.
void Grid::step_resident(std::deque<std::unique_ptr<Cluster>>& resident) {
  Cluster& cluster = *resident.front();
  const uint64_t steps = cluster.steps;
  const uint64_t before = progress.load(std::memory_order_relaxed);
  const Progress state = run_cluster(cluster, kSlice);
  const uint64_t total = steps_.fetch_add(cluster.steps - steps) + cluster.steps - steps;
  if (options.max_steps != 0 && total > options.max_steps) {
    throw Fault("more than max_steps = " + std::to_string(options.max_steps) +
                " warp instructions" + waiting_report(cluster));
  }
  if (progress.load(std::memory_order_relaxed) != before || state == Progress::kDone) {
    idle_steps_ = 0;
  } else if ((idle_steps_ += cluster.steps - steps) > options.stall_steps) {
    report_hung(cluster);
  }
  if (state == Progress::kDone) {
    finish(cluster);
    resident.pop_front();
    progress.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  if (state != Progress::kPolling) return;
  // It may wait for a cluster that has not started: start one more, as a chip with room would.
  std::rotate(resident.begin(), resident.begin() + 1, resident.end());
  const uint64_t limit = options.resident_clusters > 0
                             ? static_cast<uint64_t>(options.resident_clusters)
                             : std::max<uint64_t>(1, kResidentCtas / launch.cluster.count());
  if (resident.size() >= limit) return;
  if (const auto number = take_cluster()) resident.push_front(start(*number));
}

std::unique_ptr<Cluster> Grid::start(uint64_t number) {
  auto cluster = std::make_unique<Cluster>();
  cluster->grid = this;
  cluster->number = number;
  start_cluster(*cluster);
  return cluster;
}

void Grid::finish(Cluster& cluster) {
  if (cluster.checker != nullptr) cluster.checker->finish();
  for (Cta& cta : cluster.ctas) check_mbarriers_settled(cta);
  for (const Cta& cta : cluster.ctas) {
    if (cta.tmem.allocations.empty()) continue;
    throw Fault("tensor memory: CTA " + std::to_string(cta.rank) + " of cluster " +
                std::to_string(cluster.number) + " exited without tcgen05.dealloc of " +
                std::to_string(cta.tmem.allocations.front().second) + " columns in kernel " +
                code.info.name);
  }
  const std::lock_guard lock(mutex_);
  cluster.statistics.clusters = 1;
  result_.statistics += cluster.statistics;
  if (!options.trace) return;
  for (const Cta& cta : cluster.ctas) {
    for (const Warp& warp : cta.warps) result_.trace.push_back(trace_of(cluster, warp));
  }
}

void Grid::fail(const Cluster& cluster, std::string what) {
  const std::lock_guard lock(mutex_);
  if (failed_.exchange(true)) return;
  // What the checker has found comes before what it led to.
  const std::string findings = cluster.checker == nullptr ? "" : cluster.checker->take_findings();
  if (!findings.empty()) what = findings + "\n" + what;
  failure_ =
      what +
      (what.find("in kernel") == std::string::npos ? "\n  in kernel " + code.info.name : "") +
      "\n  cluster " + std::to_string(cluster.number) + " of " + std::to_string(clusters_);
}

}  // namespace fa4::emulator
