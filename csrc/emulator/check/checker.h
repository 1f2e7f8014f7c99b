// The happens-before checker of one cluster: csrc/emulator/README.md, "Ordering".
//
// Instruction handlers tell it what happens; it finds accesses that nothing orders, by the rules of
// the PTX memory model and not by what this schedule happened to do. It exists only while
// Options::check is on. A warp has one clock, of which a lane alone passes on less; which lane wrote
// a word is kept beside it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "csrc/emulator/check/clocks.h"
#include "csrc/emulator/check/shadow.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator::check {

/// A row of the plan and the place in its ring.
struct PlanPlace {
  const Plan::Barrier* row = nullptr;
  uint32_t stage = 0;
};

/// "k_full[1]" by the plan, the name that the options give, or "mbarrier 0x8400".
std::string barrier_name(const Options& options, const Code& code, uint32_t offset);

/// A commit or an arrival behind copies: what it hands over when it happens.
using Parcel = std::shared_ptr<Knowledge>;

/// Operands of a tcgen05.mma.
struct MmaOperands {
  struct Shared {
    Cta* cta;
    const uint32_t* units;  // offsets of units of 16 bytes
    uint32_t count;
  };
  struct Tensor {
    Cta* cta;
    uint32_t column, columns;
    uint8_t groups;  // bit per 16 lanes
  };
  std::vector<Shared> shared;
  std::vector<Tensor> a, d;
  bool reads_d = false;
  uint64_t shape = 0;  // equal numbers: same accumulator, shape and kind
};

class Checker {
 public:
  explicit Checker(Cluster& cluster);

  // ---- Threads (checker.cpp)
  void fence_proxy(Warp& w);
  void fence_mbarrier_init(Warp& w);
  /// bar.warp.sync.
  void warp_synced(Warp& w);
  /// griddepcontrol.wait.
  void grids_waited(Warp& w);
  /// An access to global memory, copies of tiles included.
  void global_access(Warp& w, const Op& op);
  void warp_exits(Warp& w);
  /// Throws what was found but not yet reported.
  void finish();
  /// The same as text; empty when there is nothing.
  std::string take_findings();

  // ---- Ordinary accesses (accesses.cpp): of `lanes`, `bytes` each, at the address in place kA
  void access(Warp& w, const Op& op, uint32_t lanes, uint32_t bytes, bool writes);
  /// By the warp as a whole.
  void write_shared(Warp& w, const Op& op, Cta& cta, uint32_t offset, uint32_t bytes);

  // ---- Copies (accesses.cpp)
  /// A copy into shared memory was issued. Returns its number among those of its mbarrier.
  uint32_t copy_in(Warp& w, const Op& op, Cta& to, uint32_t offset, uint32_t bytes,
                   Cta& barrier_cta, uint32_t barrier);
  /// The source of such a copy, where that is shared memory.
  void copy_source(Warp& w, const Op& op, Cta& from, uint32_t offset, uint32_t bytes,
                   Cta& barrier_cta, uint32_t barrier, uint32_t number);
  void copy_complete(Cta& barrier_cta, uint32_t barrier, uint32_t number);
  /// A copy of a bulk group reads shared memory. clipped: a part of it goes nowhere, and may hold
  /// nothing.
  void copy_out(Warp& w, const Op& op, Cta& from, uint32_t offset, uint32_t bytes, bool clipped);
  uint32_t last_bulk_copy(Warp& w);
  /// reads: of their sources alone.
  void bulk_waited(Warp& w, uint32_t number, bool reads);
  /// cp.async.
  void thread_copy(Warp& w, const Op& op, uint32_t address, uint32_t bytes);
  uint32_t last_thread_copy(Warp& w);
  void thread_copies_waited(Warp& w, uint32_t number);
  Parcel thread_copies_parcel(Warp& w);

  // ---- mbarriers (barriers.cpp)
  void mbarrier_init(Warp& w, const Op& op, Cta& cta, uint32_t offset, uint32_t count);
  void mbarrier_inval(Cta& cta, uint32_t offset);
  enum class Arrival : uint8_t { kThread, kThreadWithBytes, kBytes };
  void mbarrier_arrive(Warp& w, const Op& op, Cta& cta, uint32_t offset, Arrival kind);
  /// After all lanes of an instruction have arrived.
  void arrived(Warp& w);
  void mbarrier_waited(Warp& w, const Op& op, Cta& cta, uint32_t offset);
  /// Before the arrival of a commit or of cp.async.mbarrier.arrive.
  void deliver(Cta& cta, uint32_t offset, const Parcel& parcel);
  /// An operation that will arrive by itself was issued.
  void promise(Warp& w, const Op& op, Cta& cta, uint32_t offset, bool commit);
  void phase_complete(Cta& cta, uint32_t offset);

  // ---- Barriers of CTA and cluster (barriers.cpp)
  /// waits: bar.sync and bar.red; bar.arrive does not.
  void barrier_arrive(Warp& w, const Op& op, uint32_t id, bool waits);
  void barrier_complete(Cta& cta, uint32_t id);
  void barrier_passed(Warp& w, uint32_t id);
  void cluster_arrive(Warp& w, bool relaxed);
  void cluster_complete();
  void cluster_passed(Warp& w);

  // ---- Tensor cores (tensor.cpp)
  void wgmma(Warp& w, const Op& op, const uint32_t* units, uint32_t count);
  void wgmma_commit(Warp& w);
  /// A use of registers of a wgmma that lacks a wait or a fence.
  void wgmma_hazard(Warp& w, const Op& op, const WgmmaHazard& hazard);
  /// The first `groups` groups that the four warps committed are complete.
  void wgmma_waited(Warp& w, uint64_t groups);
  void mma(Warp& w, const Op& op, const MmaOperands& operands);
  Parcel commit(Warp& w);
  void tensor_access(Warp& w, const Op& op, uint32_t column, uint32_t columns, uint8_t groups,
                     bool writes);
  void tensor_loads_waited(Warp& w);
  void tensor_stores_waited(Warp& w);
  /// A register that a tcgen05.ld writes was used: hardware has waited for the load.
  void tensor_loads_used(Warp& w, const Op& op);
  void tensor_fence_before(Warp& w);
  void tensor_fence_after(Warp& w);
  void tensor_alloc(Warp& w, const Op& op, uint32_t column, uint32_t columns);
  void tensor_dealloc(Warp& w, const Op& op, uint32_t column, uint32_t columns);

 private:
  // ---- Agents. Of a warp, in clocks of ordinary accesses; then one per mbarrier.
  // kLanes are accesses of a lane alone, which it may pass on by itself.
  enum AgentKind : uint32_t {
    kThreads,
    kMmas,
    kBulkCopies,
    kWgmmas,
    kThreadCopies,
    kLanes,
    kKinds
  };
  // In clocks of tensor memory.
  enum TensorAgentKind : uint32_t { kLoads, kStores, kTensorMmas };

  /// Asynchronous operations of one kind that a warp has issued, numbered from 1: the warp's time
  /// when it issued each, and when it saw (or let an mbarrier tell) that they are complete.
  struct Queue {
    std::vector<uint32_t> issued{0}, waited{0};
    uint32_t last() const { return static_cast<uint32_t>(issued.size() - 1); }
    uint32_t issue(uint32_t now) {
      issued.push_back(now);
      return last();
    }
    void wait(uint32_t upto, uint32_t now) {
      if (waited.size() <= upto) waited.resize(upto + 1, now);
    }
  };

  /// A warp.
  struct Party {
    Warp* warp = nullptr;
    uint32_t index = 0;
    Clock seen, proxied;  // see Knowledge
    // What one lane has learnt since the last barrier of its warp, and the others have not.
    Clock lane_seen, lane_proxied;
    // Accesses to tensor memory: that its own may rely on; that it has heard of and may rely on
    // after fence::after; that it may pass on, and that a lane alone may.
    Clock tensor, tensor_heard, tensor_told, tensor_together;
    Queue loads, stores;                  // tcgen05.ld, .st
    Queue queues[kKinds];                 // by AgentKind; of wgmma a number is a group
    std::vector<uint32_t> mma_shapes{0};  // by the MMA's number
    uint64_t cluster_barriers = 0;        // that it has passed, since the cluster began
    uint32_t wgmma_groups = 0;            // committed
    bool grids = false;                   // the grids before this one are over
    bool apart = false;                   // several lanes had accesses since their last barrier,
    uint32_t together = 0;                // which was at this time
    uint32_t met = 0;                     // accesses up to here all lanes have heard of from others
    uint32_t bulk_complete = 0;           // bulk copies that have also written
    std::vector<std::pair<uint32_t, uint32_t>> unfenced;  // mbarriers it initialised: CTA, offset
    // By barrier of the CTA: who arrived in the phase for which it arrived last and did not wait.
    std::array<std::shared_ptr<const Clock>, 16> unwaited;
    std::vector<uint8_t> writers;  // by word of shared memory: the lane that wrote it last
  };

  struct Mbarrier {
    Epoch init;
    bool fenced = false;     // ready for copies, commits and other CTAs
    uint64_t fenced_at = 0;  // cluster barriers that its init cannot have reached behind its fence
    Knowledge arriving, done;
    uint32_t agent = 0;  // of the copies that complete on it
    uint32_t copies = 0;
    std::vector<uint32_t> pending;              // numbers of copies under way, ascending
    uint32_t teller = UINT32_MAX, told_at = 0;  // who joined `arriving` last, and when
    uint64_t phases = 0;                        // complete
    Epoch arrival;                              // the latest instruction that arrived,
    uint64_t arrival_phases = 0;                // and the phases before it
    struct Wait {
      uint32_t pc = 0;
      uint64_t phases = 0;  // complete when it passed
      bool any = false;
    };
    std::vector<Wait> waits;       // the latest of each party, for reports
    bool bytes_announced = false;  // in the running phase
    PlanPlace plan;
  };

  struct Meeting {
    Knowledge arriving, done;
    std::shared_ptr<Clock> members;  // who has arrived in the running phase, and when
  };

  struct CtaState {
    explicit CtaState(size_t shared_end) : shared(shared_end) {}
    SharedShadow shared;
    TensorShadow tensor;
    std::unordered_map<uint32_t, Mbarrier> mbarriers;
    std::array<Meeting, 16> barriers;
    std::vector<Epoch> users;  // by agent: the latest operation that needs this CTA's shared memory
    Clock exit;                // what its warps knew when they left
    uint32_t live_warps = 0;
    bool exited = false;
  };

  /// One instruction's access while it goes over cells. The latest answers are kept: neighbouring
  /// cells mostly have the same history.
  struct Access {
    Party* by = nullptr;
    Epoch epoch;
    bool writes = false;
    bool async = false;          // by a copy engine or tensor core
    bool alone = false;          // one lane's
    bool tensor = false;         // tensor memory
    bool reads = true;           // a write that accumulates reads too
    bool unmet = false;          // it reads what its own warp has written, see Checker::unmet
    bool unconditional = false;  // synchronous on tensor memory: needs no fence::after
    uint32_t shape = 0;          // of an MMA
    Epoch known_write;
    SetNumber known_readers = 0;
    SetNumber from = UINT32_MAX, to = UINT32_MAX;
  };
  struct Location {
    uint32_t rank = 0, offset = 0;   // shared memory
    uint32_t column = 0, group = 0;  // tensor memory
  };

  Party& party(const Warp& w) { return parties_[w.cta->rank * warps_ + w.index]; }
  CtaState& state(const Cta& cta) { return ctas_[cta.rank]; }
  uint32_t agent(AgentKind kind, const Party& p) const {
    return kind * static_cast<uint32_t>(parties_.size()) + p.index;
  }
  uint32_t tensor_agent(TensorAgentKind kind, const Party& p) const {
    return kind * static_cast<uint32_t>(parties_.size()) + p.index;
  }
  uint32_t time(const Party& p) const { return p.seen.at(p.index); }
  void tick(Party& p) {
    p.seen.raise(p.index, time(p) + 1);
    p.seen.raise(agent(kLanes, p), time(p));
  }
  static bool is_alone(uint32_t lanes) { return (lanes & (lanes - 1)) == 0; }
  static uint32_t pc_of(const Warp& w, const Op& op) {
    return static_cast<uint32_t>(&op - w.code->ops.data());
  }
  void tell(Party& p, Knowledge* to, bool alone = false);
  void hear(Party& p, const Knowledge& from, bool alone = false);
  /// Copies, wgmma or cp.async of the party are known to be complete up to a number.
  void learn(Party& p, AgentKind kind, uint32_t number, bool alone);
  static bool knows(const Party& p, Epoch epoch, bool alone) {
    return p.seen.knows(epoch) || (alone && p.lane_seen.knows(epoch));
  }
  static uint32_t heard(const Access& x, uint32_t agent) {
    return std::max(x.by->seen.at(agent), x.alone ? x.by->lane_seen.at(agent) : 0);
  }

  Access ordinary(Warp& w, const Op& op, bool writes);
  void over_shared(Access& x, Cta& cta, uint32_t offset, uint32_t bytes);
  void over_units(Access& x, Cta& cta, const uint32_t* units, uint32_t count);
  void over_tensor(Access& x, Cta& cta, uint32_t column, uint32_t columns, uint8_t groups);
  void touch(Cell& cell, Access& x, const Location& at);
  bool ordered(const Access& x, Epoch earlier, bool earlier_writes);
  bool shared_ordered(const Access& x, Epoch earlier, bool earlier_writes);
  bool tensor_ordered(const Access& x, Epoch earlier, bool earlier_writes);
  void use(Cta& cta, Epoch epoch, const Warp& w, const Op& op);
  void compact_readers();

  // ---- Lanes of a warp (lanes.cpp)
  bool unmet(const Party& p, Epoch write) const;
  uint8_t lane_of(uint32_t pc, uint32_t lane) const;
  void lanes_write(Warp& w, const Op& op, uint32_t lanes, uint32_t bytes);
  void lanes_read(Warp& w, const Op& op, uint32_t lanes, uint32_t bytes);
  void lane_race(const Party& p, const Op& op, Epoch write, uint32_t offset, uint32_t lane);

  void synchronize(Warp& w, const Op& op, uint32_t lanes, bool acquires, bool releases);

  Mbarrier* find(Cta& cta, uint32_t offset);
  void check_ready(Warp& w, const Op& op, Cta& cta, uint32_t offset, Mbarrier& b, bool async);
  void check_release(Warp& w, const Op& op);
  void check_arrival(Warp& w, const Op& op, Cta& cta, uint32_t offset, Mbarrier& b);
  uint32_t agent_of(Mbarrier& b, const Cta& cta, uint32_t offset);
  void check_barrier_arrival(const Party& p, const Op& op, uint32_t id, const Meeting& meeting);

  // ---- Plan (plan.cpp)
  void load_plan();
  PlanPlace plan_place(uint32_t offset) const;
  const std::string& role_of(const Warp& w) const;
  void check_planned_init(Warp& w, const Op& op, uint32_t offset, const Mbarrier& b,
                          uint32_t count);
  void check_planned_signal(Warp& w, const Op& op, const Cta& cta, const Mbarrier& b,
                            Plan::Done how, Arrival kind);  // cta: holds the mbarrier
  void check_planned_wait(Warp& w, const Op& op, const Mbarrier& b);

  // ---- Facts about instructions, looked up once each
  enum : uint8_t {
    kLooked = 1,
    kSynchronizes = 2,
    kAcquires = 4,
    kReleases = 8,
    kNarrow = 16,
    kAllocates = 32,
    kFrees = 64,
    kReduces = 128
  };
  uint8_t facts(uint32_t pc);

  // ---- Reports (report.cpp)
  void found(const std::string& key, const std::string& text);
  void unwritten(const Access& x, const Location& at);
  std::string location_text(const Access& x, const Location& at) const;
  void race(const Access& x, Epoch earlier, bool earlier_writes, const Location& at);
  std::string warp_text(const Party& p) const;
  std::string name_of(uint32_t rank, uint32_t offset) const;
  std::string line_text(uint32_t pc) const;
  std::string quote(const char* what, uint32_t pc) const;
  std::string actor(Epoch epoch, bool tensor) const;
  std::string missing(const Access& x, Epoch earlier, bool earlier_writes) const;
  std::string missing_shared(const Access& x, Epoch earlier, bool earlier_writes) const;
  std::string last_wait(const Party& p, uint32_t rank, uint32_t offset) const;
  std::string missing_commit(const Access& x, Epoch earlier) const;
  std::string missing_tensor(const Access& x, Epoch earlier) const;
  std::string missing_wait(const Access& x, Epoch earlier, const Queue& queue, const char* wait,
                           const char* what) const;
  const Party& party_of(Epoch epoch) const { return parties_[epoch.agent() % parties_.size()]; }

  Cluster& cluster_;
  const Code& code_;
  const bool strict_;
  uint32_t warps_;  // per CTA
  std::vector<Party> parties_;
  std::vector<CtaState> ctas_;
  ReaderSets readers_;
  Meeting cluster_barrier_;
  std::unordered_map<uint32_t, Knowledge> flags_;  // shared addresses that atomics synchronise on
  std::vector<std::pair<uint32_t, uint32_t>> barrier_agents_;  // CTA and offset, by agent
  std::map<uint64_t, uint32_t> shapes_;
  const Plan* plan_ = nullptr;
  std::unordered_map<uint32_t, PlanPlace> plan_places_;
  std::vector<std::string> roles_;  // by warp of a CTA
  std::vector<uint8_t> facts_;
  std::set<std::string> keys_;
  std::vector<std::string> findings_;
};

}  // namespace fa4::emulator::check
