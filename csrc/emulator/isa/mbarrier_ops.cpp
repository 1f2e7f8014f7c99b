// Instructions on mbarrier objects; the objects themselves are machine/mbarrier.h.
#include <string>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/machine/machine.h"
#include "csrc/emulator/machine/mbarrier.h"

namespace fa4::emulator {

using ptx::Operand;

namespace {

/// The shared address in a lane, whether the operand was a shared or a generic one.
uint32_t shared_address(const Warp& w, const Op& op, uint32_t lane) {
  const uint64_t base = uint64_t{w.source(op.r[kA + 1])[lane]} << 32 | w.source(op.r[kA])[lane];
  return static_cast<uint32_t>(base + static_cast<uint64_t>(op.imm));
}

/// body(CTA, offset, lane) for every lane that executes.
template <class F>
void each_lane(Warp& w, const Op& op, F body) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const uint32_t address = shared_address(w, op, l);
    body(w.cta->cluster->cta_of_address(address), offset_of(address), l);
  }
}

void run_init(Warp& w, const Op& op) {
  each_lane(w, op, [&](Cta& cta, uint32_t offset, uint32_t l) {
    const uint32_t count = w.source(op.r[kB])[l];
    mbarrier_init(cta, offset, count, op.line);
    if (auto* const checker = w.cta->cluster->checker.get())
      checker->mbarrier_init(w, op, cta, offset, count);
  });
}

void run_inval(Warp& w, const Op& op) {
  each_lane(w, op, [](Cta& cta, uint32_t offset, uint32_t) {
    mbarrier_invalidate(cta, offset);
    if (auto* const checker = cta.cluster->checker.get()) checker->mbarrier_inval(cta, offset);
  });
}

enum : uint8_t { kExpectTx = 1, kDrop = 2, kToken = 4, kNoArrival = 8, kCompletes = 16 };

check::Checker::Arrival arrival_kind(const Op& op) {
  using Arrival = check::Checker::Arrival;
  return (op.mode & kNoArrival) != 0  ? Arrival::kBytes
         : (op.mode & kExpectTx) != 0 ? Arrival::kThreadWithBytes
                                      : Arrival::kThread;
}

/// b: count or bytes.
void run_arrive(Warp& w, const Op& op) {
  check::Checker* const checker = w.cta->cluster->checker.get();
  each_lane(w, op, [&](Cta& cta, uint32_t offset, uint32_t l) {
    const uint32_t b = w.source(op.r[kB])[l];
    if (checker != nullptr) checker->mbarrier_arrive(w, op, cta, offset, arrival_kind(op));
    if ((op.mode & kNoArrival) != 0) {
      const int64_t bytes = static_cast<int32_t>(b);
      return mbarrier_expect(cta, offset, (op.mode & kCompletes) != 0 ? -bytes : bytes);
    }
    const bool expects = (op.mode & kExpectTx) != 0;
    const uint64_t token =
        mbarrier_arrive(cta, offset, expects ? 1 : b, expects ? static_cast<int32_t>(b) : 0,
                        (op.mode & kDrop) != 0);
    if ((op.mode & kToken) == 0) return;
    w.target(op.r[kD])[l] = static_cast<uint32_t>(token);
    w.target(op.r[kD + 1])[l] = static_cast<uint32_t>(token >> 32);
  });
  if (checker != nullptr) checker->arrived(w);
}

// ---- Waiting -----------------------------------------------------------------------------------------------

bool awaited_parity(const Warp& w, const Op& op, uint32_t lane) {
  const uint32_t low = w.source(op.r[kB])[lane];
  if (op.mode != 0) return (low & 1) != 0;
  return token_phase(uint64_t{w.source(op.r[kB + 1])[lane]} << 32 | low);
}

std::string wait_text(const Warp& w, const Op& op, uint32_t lanes) {
  const auto lane = static_cast<uint32_t>(__builtin_ctz(lanes));
  const uint32_t address = shared_address(w, op, lane);
  Cta& cta = w.cta->cluster->cta_of_address(address);
  return "the end of phase " + std::to_string(awaited_parity(w, op, lane)) + " of " +
         mbarrier_text(cta, offset_of(address));
}

/// Lanes whose phase is complete.
uint32_t passed_lanes(Warp& w, const Op& op) {
  uint32_t passed = 0, told = UINT32_MAX;
  each_lane(w, op, [&](Cta& cta, uint32_t offset, uint32_t l) {
    if (cta.rank != w.cta->rank) {
      throw Fault("mbarrier: only barriers of the own CTA can be waited for, got one of CTA " +
                  std::to_string(cta.rank));
    }
    if (!mbarrier_passed(cta, offset, awaited_parity(w, op, l))) return;
    passed |= 1u << l;
    check::Checker* const checker = cta.cluster->checker.get();
    if (checker == nullptr || told == offset) return;
    checker->mbarrier_waited(w, op, cta, offset);
    told = offset;
  });
  return passed;
}

/// test_wait answers at once; a warp that hears no lets others run, for it will ask again.
void run_test_wait(Warp& w, const Op& op) {
  const uint32_t passed = passed_lanes(w, op);
  w.set_pred(op.p[0], passed);
  if ((passed & w.exec) != w.exec) w.outcome = Outcome::kYield;
}

/// try_wait suspends the thread. Its time limit passes when nothing else can happen: then it answers
/// no, as programs that only look ahead need it.
void run_try_wait(Warp& w, const Op& op) {
  const uint32_t passed = passed_lanes(w, op);
  const uint64_t limit = 1 + w.cta->cluster->time_limits;
  if (passed == 0 && (w.current.time_limit == 0 || w.current.time_limit == limit)) {
    w.current.time_limit = limit;
    return w.block();
  }
  w.current.time_limit = 0;
  w.set_pred(op.p[0], passed);
}

void run_pending_count(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const uint64_t token = uint64_t{w.source(op.r[kA + 1])[l]} << 32 | w.source(op.r[kA])[l];
    w.target(op.r[kD])[l] = token_pending(token);
  }
}

void lower_wait(Lowering& l) {
  const bool test = l.has("test_wait");
  Draft& draft = l.emit(test ? run_test_wait : run_try_wait, OpClass::kMbarrier);
  const bool parity = l.has("parity");
  l.writes_pred(draft, 0, l.operand(0));
  l.address(draft, l.operand(1));
  l.reads(draft, kB, l.operand(2), parity ? 4 : 8);
  draft.op.mode = parity;
  draft.op.wait_text = wait_text;
}

void lower_arrive(Lowering& l) {
  Draft& draft = l.emit(run_arrive, OpClass::kMbarrier);
  size_t next = 0;
  const bool returns = l.operand(0).kind != Operand::kAddress;
  if (returns) {
    if (l.operand(0).kind == Operand::kRegister) draft.op.mode |= kToken;
    l.writes(draft, kD, l.operand(next++), 8);
  }
  l.address(draft, l.operand(next++));
  if (l.has("expect_tx")) draft.op.mode |= kExpectTx;
  if (l.part(1) == "arrive_drop") draft.op.mode |= kDrop;
  if (next < l.operand_count()) {
    l.reads(draft, kB, l.operand(next), 4);
  } else {
    draft.r[kB] = l.constant(1);
  }
}

}  // namespace

void lower_mbarrier(Lowering& l) {
  const std::string_view action = l.part(1);
  if (action == "init") {
    Draft& draft = l.emit(run_init, OpClass::kMbarrier);
    l.address(draft, l.operand(0));
    l.reads(draft, kB, l.operand(1), 4);
  } else if (action == "inval") {
    l.address(l.emit(run_inval, OpClass::kMbarrier), l.operand(0));
  } else if (action == "arrive" || action == "arrive_drop") {
    lower_arrive(l);
  } else if (action == "expect_tx" || action == "complete_tx") {
    Draft& draft = l.emit(run_arrive, OpClass::kMbarrier);
    draft.op.mode = kNoArrival | (action == "complete_tx" ? kCompletes : 0);
    l.address(draft, l.operand(0));
    l.reads(draft, kB, l.operand(1), 4);
  } else if (action == "test_wait" || action == "try_wait") {
    lower_wait(l);
  } else if (action == "pending_count") {
    Draft& draft = l.emit(run_pending_count, OpClass::kMbarrier);
    l.writes(draft, kD, l.operand(0), 4);
    l.reads(draft, kA, l.operand(1), 8);
  } else {
    l.unmodelled();
  }
}

}  // namespace fa4::emulator
