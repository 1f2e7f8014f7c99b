// One launch: what all clusters of the grid share, and the host threads that run them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

class Grid {
 public:
  Grid(const Code& code, const Launch& launch, const Options& options,
       std::vector<AddressRange> memory);

  /// Runs every cluster. Throws Fault with the whole report.
  void run(Result* result);

  /// The next cluster that has not started, by its number; none when all have. Also what
  /// clusterlaunchcontrol.try_cancel takes over.
  std::optional<uint64_t> take_cluster();

  /// Index of a cluster's first CTA.
  std::array<uint32_t, 3> first_cta(uint64_t cluster) const;

  const Code& code;
  const Launch& launch;
  const Options& options;
  std::vector<uint8_t> parameters;  // padded copy; kernels may take addresses in it
  GlobalMemory memory;
  std::atomic<uint64_t> progress{0};  // events anywhere in the grid, coarsely

 private:
  void work();
  void step_resident(std::deque<std::unique_ptr<Cluster>>& resident);
  std::unique_ptr<Cluster> start(uint64_t number);
  void finish(Cluster& cluster);
  void fail(const Cluster& cluster, std::string what);

  uint64_t clusters_ = 0;
  std::vector<uint64_t> order_;  // empty: ascending
  std::atomic<uint64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::atomic<uint64_t> steps_{0};
  std::atomic<uint64_t> idle_steps_{0};  // of all clusters since anything happened in the grid
  std::mutex mutex_;                     // of what follows
  std::string failure_;
  Result result_;
};

}  // namespace fa4::emulator
