// The asynchronous engines of a cluster: copies, tensor cores, and what they signal.
//
// An operation has two steps: it reads its source, later its effect becomes visible. When each happens
// is the launch's policy: at once (eager), when nothing else in the cluster can go on (lazy), or at
// random moments. Whatever a program may not rely on differs between them.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "csrc/emulator/machine/op.h"
#include "csrc/emulator/machine/random.h"
#include "flash_attn4/emulator.h"

namespace fa4::emulator {

struct Cluster;

class Operation {
 public:
  virtual ~Operation() = default;
  virtual void read() {}
  virtual void write() = 0;
  /// Takes over the work of the operation issued right after this one, where both can be done as one.
  virtual bool absorb(Operation&) { return false; }
  /// For reports: "cp.async.bulk.tensor".
  virtual std::string name() const = 0;

  uint32_t line = 0;  // of the PTX
};

/// Operations of one pipe happen in the order of their issue. Pipes 0 and up: the tensor pipes of the
/// CTAs (of a pair: the leader's); those after them: cp.async of the warps.
constexpr int kNoPipe = -1;

class Agents {
 public:
  void reset(Policy policy, uint64_t seed);

  /// Operations without a pipe run in any order.
  void submit(std::unique_ptr<Operation> operation, int pipe = kNoPipe);

  /// Eager policy: finishes what was held back to be absorbed. Called before another warp runs.
  void settle();

  /// One step of the oldest operation; false where there is none. Called when no warp can go on.
  bool step_oldest();

  /// Random policy: now and then one step of any operation that may make one.
  bool step_random();

  bool empty() const { return loose_.empty() && pipes_empty(); }
  /// Names and lines of pending operations, for reports.
  std::vector<std::string> pending() const;

 private:
  struct Entry {
    std::unique_ptr<Operation> operation;
    bool was_read = false;
    uint64_t number = 0;  // order of issue
  };
  bool pipes_empty() const;
  /// Advances the entry by one step; true when it is finished.
  static bool advance(Entry& entry);
  void finish(Entry& entry);

  Policy policy_ = Policy::kEager;
  Random random_;
  uint64_t issued_ = 0;
  std::list<Entry> loose_;
  std::vector<std::deque<Entry>> pipes_;
};

/// tcgen05.ld whose registers are not written yet.
struct PendingLoad {
  uint32_t line = 0;
  std::vector<PlaneRef> planes;
  std::vector<uint32_t> values;  // empty: tensor memory is read when the load completes
  uint32_t exec = 0;
  uint32_t address = 0;
  uint8_t shape = 0;
  uint32_t split = 0;  // columns between the halves of shape 16x32bx2
};

/// tcgen05.st whose cells are not written yet.
struct PendingStore {
  uint32_t line = 0;
  std::vector<uint32_t> values;  // plane after plane
  uint32_t address = 0;
  uint8_t shape = 0;
  uint32_t split = 0;
};

/// The shared-memory operands of a wgmma: they must not change before its group is waited for.
struct PendingWgmma {
  struct Operand {
    uint64_t descriptor = 0;
    int rows = 0;
    bool mn_major = false;
    bool bf16 = false;
    std::vector<uint16_t> elements;  // as they were when it was issued
  };
  uint32_t line = 0;
  std::vector<Operand> operands;
};

}  // namespace fa4::emulator
