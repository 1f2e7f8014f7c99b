// cp.async, the copies of single threads, and cluster launch control.
#include <cstring>
#include <utility>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/machine/grid.h"
#include "csrc/emulator/machine/mbarrier.h"

namespace fa4::emulator {

using ptx::Operand;

namespace {

/// The copies of a warp and what waits for them keep their order.
int copy_pipe(const Warp& w) {
  const Cluster& cluster = *w.cta->cluster;
  const auto warps = static_cast<uint32_t>(cluster.ctas[0].warps.size());
  return static_cast<int>(cluster.ctas.size() + w.cta->rank * warps + w.index);
}

class ThreadCopy : public Operation {
 public:
  ThreadCopy(std::shared_ptr<CopyGroup> group, uint8_t* to, const uint8_t* from, uint32_t bytes,
             uint32_t used)
      : group_(std::move(group)), to_(to), from_(from), bytes_(bytes), used_(used) {
    ++group_->pending;
  }
  void read() override {
    if (used_ > 0) std::memcpy(data_, from_, used_);
  }
  void write() override {
    std::memcpy(to_, data_, bytes_);
    --group_->pending;
  }
  std::string name() const override { return "cp.async"; }

 private:
  std::shared_ptr<CopyGroup> group_;
  uint8_t* to_;
  const uint8_t* from_;
  uint32_t bytes_, used_;
  uint8_t data_[16] = {};  // what lies beyond the source size is zero
};

class ArriveAfterCopies : public Operation {
 public:
  ArriveAfterCopies(Cta& cta, uint32_t offset, check::Parcel parcel)
      : cta_(cta), offset_(offset), parcel_(std::move(parcel)) {}
  void write() override {
    if (parcel_ != nullptr) cta_.cluster->checker->deliver(cta_, offset_, parcel_);
    mbarrier_arrive(cta_, offset_, 1, 0, false);
  }
  std::string name() const override { return "cp.async.mbarrier.arrive"; }

 private:
  Cta& cta_;
  uint32_t offset_;
  check::Parcel parcel_;
};

void submit(Warp& w, const Op& op, std::unique_ptr<Operation> operation) {
  operation->line = op.line;
  w.cta->cluster->agents.submit(std::move(operation), copy_pipe(w));
}

/// a: target, b: source, c: bytes that are read; width: bytes that are written.
void run_copy(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const uint64_t to = w.source(op.r[kA])[l] + static_cast<uint64_t>(op.imm);
    const uint64_t from = (uint64_t{w.source(op.r[kB + 1])[l]} << 32 | w.source(op.r[kB])[l]) +
                          static_cast<uint64_t>(int64_t{op.offset_b});
    uint32_t used = w.source(op.r[kC])[l];
    if (op.p[2] != kNoPred && (w.pred(op.p[2]) >> l & 1) != 0) used = 0;  // ignore-src
    if (used > op.width) {
      throw Fault("cp.async: the source size must be at most " + std::to_string(op.width) +
                  ", got " + std::to_string(used));
    }
    uint8_t* const target = resolve(w, AccessSpace::kShared, to & 0xffffffffu, op.width, l);
    if (auto* const checker = w.cta->cluster->checker.get())
      checker->thread_copy(w, op, static_cast<uint32_t>(to), op.width);
    const uint8_t* const source =
        used == 0 ? nullptr : resolve(w, AccessSpace::kGlobal, from, op.width, l);
    submit(w, op,
           std::make_unique<ThreadCopy>(w.async_groups[l].open, target, source, op.width, used));
  }
}

void run_commit(Warp& w, const Op&) {
  check::Checker* const checker = w.cta->cluster->checker.get();
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    CopyGroups& groups = w.async_groups[static_cast<uint32_t>(__builtin_ctz(lanes))];
    if (checker != nullptr) groups.open->number = checker->last_thread_copy(w);
    groups.committed.push_back(std::exchange(groups.open, std::make_shared<CopyGroup>()));
  }
}

std::string copies_text(const Warp&, const Op& op, uint32_t) {
  return op.mode != 0 ? "all cp.async"
                      : "cp.async, all but the " + std::to_string(op.imm) + " latest groups";
}

/// mode: wait_all, which includes copies that are in no group yet.
void run_wait(Warp& w, const Op& op) {
  check::Checker* const checker = w.cta->cluster->checker.get();
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    CopyGroups& groups = w.async_groups[static_cast<uint32_t>(__builtin_ctz(lanes))];
    if (op.mode != 0 && groups.open->pending != 0) return w.block();
    const size_t keep = op.mode != 0 ? 0 : static_cast<size_t>(op.imm);
    while (groups.committed.size() > keep) {
      if (groups.committed.front()->pending != 0) return w.block();
      if (checker != nullptr) checker->thread_copies_waited(w, groups.committed.front()->number);
      groups.committed.pop_front();
    }
    if (checker != nullptr && op.mode != 0)
      checker->thread_copies_waited(w, checker->last_thread_copy(w));
  }
}

/// mode 1: .noinc, the arrival is one of those the barrier expects.
void run_arrive(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const auto address =
        static_cast<uint32_t>(w.source(op.r[kA])[l] + static_cast<uint64_t>(op.imm));
    Cta& cta = w.cta->cluster->cta_of_address(address);
    if (op.mode == 0) mbarrier_add_pending(cta, offset_of(address));
    check::Parcel parcel;
    if (auto* const checker = w.cta->cluster->checker.get()) {
      checker->promise(w, op, cta, offset_of(address), false);
      parcel = checker->thread_copies_parcel(w);
    }
    submit(w, op, std::make_unique<ArriveAfterCopies>(cta, offset_of(address), std::move(parcel)));
  }
}

// ---- Cluster launch control ---------------------------------------------------------------------------------

/// The answer to a request: index of the first CTA that is taken over, and 1, or zeros.
class TryCancel : public Operation {
 public:
  TryCancel(Cluster& cluster, uint32_t rank, uint32_t offset, uint32_t barrier, bool multicast)
      : cluster_(cluster), rank_(rank), offset_(offset), barrier_(barrier), multicast_(multicast) {}
  void tell(Warp& w, const Op& op) {
    numbers_.resize(cluster_.ctas.size());
    for (Cta& cta : cluster_.ctas) {
      if (!multicast_ && cta.rank != rank_) continue;
      numbers_[cta.rank] = cluster_.checker->copy_in(w, op, cta, offset_, 16, cta, barrier_);
    }
  }
  void write() override {
    uint32_t answer[4] = {};
    if (const auto number = cluster_.grid->take_cluster()) {
      const auto first = cluster_.grid->first_cta(*number);
      std::copy(first.begin(), first.end(), answer);
      answer[3] = 1;
    }
    for (Cta& cta : cluster_.ctas) {
      if (!multicast_ && cta.rank != rank_) continue;
      std::memcpy(cta.shared.at(offset_, 16), answer, 16);
      if (cluster_.checker != nullptr)
        cluster_.checker->copy_complete(cta, barrier_, numbers_[cta.rank]);
      mbarrier_complete(cta, barrier_, 16);
    }
  }
  std::string name() const override { return "clusterlaunchcontrol.try_cancel"; }

 private:
  Cluster& cluster_;
  uint32_t rank_, offset_, barrier_;
  bool multicast_;
  std::vector<uint32_t> numbers_;  // the checker's, by CTA
};

void run_try_cancel(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const auto to = static_cast<uint32_t>(w.source(op.r[kA])[l] + static_cast<uint64_t>(op.imm));
    const uint32_t barrier = w.source(op.r[kB])[l] + static_cast<uint32_t>(op.offset_b);
    if (to % 16 != 0)
      throw Fault("clusterlaunchcontrol: the address must be a multiple of 16, got " + hex(to));
    Cluster& cluster = *w.cta->cluster;
    auto request = std::make_unique<TryCancel>(cluster, cluster.cta_of_address(to).rank,
                                               offset_of(to), offset_of(barrier), op.mode != 0);
    request->line = op.line;
    if (cluster.checker != nullptr) request->tell(w, op);
    cluster.agents.submit(std::move(request));
  }
}

/// The list: four planes of the answer, then the destinations. mode 1: is_canceled.
void run_query_cancel(Warp& w, const Op& op) {
  const PlaneRef* const list = w.code->lists.data() + op.list;
  if (op.mode == 1) {
    const uint32_t* const granted = w.source(list[3]);
    uint32_t mask = 0;
    for (uint32_t l = 0; l < kWarpLanes; ++l) mask |= (granted[l] & 1) << l;
    w.set_pred(op.p[0], mask);
    return;
  }
  const uint32_t count = op.list_count - 4;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    uint32_t answer[4];
    for (int k = 0; k < 4; ++k) answer[k] = w.source(list[k])[l];
    for (uint32_t k = 0; k < count; ++k) {
      const uint32_t component = count == 1 ? op.extra : k;
      w.target(list[4 + k])[l] = component < 3 ? answer[component] : 0;
    }
  }
}

}  // namespace

void lower_cp_async(Lowering& l) {
  if (l.has("commit_group")) {
    l.emit(run_commit, OpClass::kCopy);
  } else if (l.has("wait_group") || l.has("wait_all")) {
    Draft& draft = l.emit(run_wait, OpClass::kCopy);
    draft.op.mode = l.has("wait_all");
    if (draft.op.mode == 0) draft.op.imm = l.immediate(l.operand(0));
    draft.op.wait_text = copies_text;
  } else if (l.has("mbarrier")) {
    Draft& draft = l.emit(run_arrive, OpClass::kMbarrier);
    draft.op.mode = l.has("noinc");
    l.address(draft, l.operand(0));
  } else {
    Draft& draft = l.emit(run_copy, OpClass::kCopy);
    l.address(draft, l.operand(1), kB);
    draft.op.offset_b = static_cast<int32_t>(draft.op.imm);
    l.address(draft, l.operand(0));
    const int64_t bytes = l.immediate(l.operand(2));
    if (bytes != 4 && bytes != 8 && bytes != 16) l.unmodelled("other sizes than 4, 8 and 16");
    draft.op.width = static_cast<uint8_t>(bytes);
    const bool fourth = l.operand_count() > 3;
    if (fourth && l.is_pred(l.operand(3))) l.reads_pred(draft, l.operand(3));
    // A 64-bit fourth operand is a cache policy.
    const bool policy = fourth && l.has("L2::cache_hint") && l.operand_count() == 4;
    l.reads(draft, kC, fourth && draft.op.p[2] == kNoPred && !policy ? l.operand(3) : l.operand(2),
            4);
  }
}

void lower_cluster_launch(Lowering& l) {
  if (l.part(1) == "try_cancel") {
    Draft& draft = l.emit(run_try_cancel, OpClass::kCopy);
    l.address(draft, l.operand(1), kB);
    draft.op.offset_b = static_cast<int32_t>(draft.op.imm);
    l.address(draft, l.operand(0));
    draft.op.mode = l.has("multicast::cluster::all");
    return;
  }
  Draft& draft = l.emit(run_query_cancel, OpClass::kOther);
  l.reads_list(draft, l.operand(1), 16);
  if (draft.list.size() != 4) l.unmodelled("an answer of other than 16 bytes");
  if (l.part(2) == "is_canceled") {
    draft.op.mode = 1;
    l.writes_pred(draft, 0, l.operand(0));
    return;
  }
  draft.op.extra = l.part(2) == "get_first_ctaid::y"   ? 1
                   : l.part(2) == "get_first_ctaid::z" ? 2
                                                       : 0;
  l.writes_list(draft, l.operand(0), 4);
}

}  // namespace fa4::emulator
