// wgmma: the MMAs of Hopper. Each warp of the four does its sixteen rows.
//
// Results are written at once: registers are looked at when the kernel is lowered, and what the ISA
// forbids there is the checker's (lower/wgmma_registers.h). Operands in shared memory are compared,
// under the lazy and random policies when the group is waited for, with what they were at issue.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <system_error>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/machine/machine.h"
#include "csrc/emulator/tensor/tensor_core.h"

namespace fa4::emulator {

using ptx::Operand;

namespace {

constexpr int kRows = 64;      // M of a wgmma
constexpr int kWarpRows = 16;  // one warp's share
constexpr int kMostN = 256;

/// Op::mode.
enum : uint8_t {
  kARegisters = 1,
  kAMajorMN = 2,
  kBMajorMN = 4,
  kBf16 = 8,
  kNegateA = 16,
  kNegateB = 32,
  kAlwaysAdds = 64
};

SharedOperand operand_of(uint64_t descriptor, bool mn_major, bool bf16, int rows) {
  return {DescriptorKind::kGmma, descriptor, mn_major ? OperandMajor::kMN : OperandMajor::kK,
          bf16 ? Half::kBF16 : Half::kF16, rows};
}

void check_operand(Warp& w, const SharedOperand& operand) {
  Cta& cta = *w.cta;
  const std::string problem = descriptor_problem(operand, cta.shared.end());
  if (!problem.empty())
    throw Fault("wgmma: shared-memory descriptor " + hex(operand.descriptor) + ": " + problem);
  uint32_t offset = 0;
  if (cta.cluster->options->check_uninitialized &&
      find_element(operand, cta.shared.base(), kPoison16, &offset)) {
    throw Fault("wgmma reads shared memory at " + hex(offset) +
                ", which was never written, or not yet");
  }
}

void tell_checker(Warp& w, const Op& op, const SharedOperand& operand) {
  check::Checker* const checker = w.cta->cluster->checker.get();
  if (checker == nullptr) return;
  uint32_t units[kMostUnits];
  checker->wgmma(w, op, units, operand_units(operand, units));
}

void remember(Warp& w, PendingWgmma& pending, const SharedOperand& operand) {
  PendingWgmma::Operand copy{operand.descriptor,
                             operand.rows,
                             operand.major == OperandMajor::kMN,
                             operand.type == Half::kBF16,
                             {}};
  copy.elements.resize(static_cast<size_t>(operand.rows) * kK);
  copy_operand(operand, w.cta->shared.base(), copy.elements.data());
  pending.operands.push_back(std::move(copy));
}

/// This warp's rows of A, [16 k][16 rows].
void read_a(Warp& w, const Op& op, PendingWgmma& pending, float* to) {
  const bool bf16 = (op.mode & kBf16) != 0;
  if ((op.mode & kARegisters) != 0) {
    const PlaneRef* const list = w.code->lists.data() + op.list + op.extra / 2;
    const uint32_t* planes[4];
    for (int k = 0; k < 4; ++k) planes[k] = w.source(list[k]);
    read_fragment_operand(planes, bf16 ? Half::kBF16 : Half::kF16, to);
  } else {
    const uint64_t descriptor = uint64_t{w.source(op.r[kA + 1])[0]} << 32 | w.source(op.r[kA])[0];
    const SharedOperand operand = operand_of(descriptor, (op.mode & kAMajorMN) != 0, bf16, kRows);
    check_operand(w, operand);
    tell_checker(w, op, operand);
    float all[kK * kRows];
    read_operand(operand, w.cta->shared.base(), all, kRows);
    const uint32_t first = w.index % 4 * kWarpRows;
    for (int k = 0; k < kK; ++k)
      std::copy_n(all + k * kRows + first, kWarpRows, to + k * kWarpRows);
    if (w.cta->cluster->options->policy != Policy::kEager) remember(w, pending, operand);
    w.cta->cluster->statistics.shared_operand_bytes += kWarpRows * kK * 2;
  }
  if ((op.mode & kNegateA) != 0) {
    for (int i = 0; i < kK * kWarpRows; ++i) to[i] = -to[i];
  }
}

/// extra: N; width: unused; the list holds N/2 accumulators, then A's four registers.
void run_mma(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  const auto n = static_cast<int>(op.extra);
  PendingWgmma pending{op.line, {}};
  float a[kK * kWarpRows], b[kK * kMostN];
  read_a(w, op, pending, a);
  const uint64_t descriptor = uint64_t{w.source(op.r[kB + 1])[0]} << 32 | w.source(op.r[kB])[0];
  const SharedOperand operand =
      operand_of(descriptor, (op.mode & kBMajorMN) != 0, (op.mode & kBf16) != 0, n);
  check_operand(w, operand);
  tell_checker(w, op, operand);
  read_operand(operand, w.cta->shared.base(), b, static_cast<size_t>(n));
  if ((op.mode & kNegateB) != 0) {
    for (int i = 0; i < kK * n; ++i) b[i] = -b[i];
  }
  if (w.cta->cluster->options->policy != Policy::kEager) remember(w, pending, operand);
  float* d[kMostN / 2];
  const PlaneRef* const list = w.code->lists.data() + op.list;
  for (int i = 0; i < n / 2; ++i) d[i] = reinterpret_cast<float*>(w.target(list[i]));
  const bool accumulate = (op.mode & kAlwaysAdds) != 0 ||
                          (op.p[2] != kNoPred && ((w.pred(op.p[2]) & 1) != 0) != op.source_negated);
  multiply_fragments(d, a, b, n, accumulate, w.cta->cluster->options->accumulate);
  Statistics& statistics = w.cta->cluster->statistics;
  ++statistics.mma;
  statistics.fma += static_cast<uint64_t>(kWarpRows * kK) * static_cast<uint64_t>(n);
  statistics.shared_operand_bytes +=
      w.index % 4 == 0 ? static_cast<uint64_t>(n) * kK * 2 : 0;  // once per four warps
  w.wgmma_open.push_back(std::move(pending));
}

void run_commit(Warp& w, const Op&) {
  w.wgmma_groups.push_back(std::move(w.wgmma_open));
  w.wgmma_open.clear();
  ++w.wgmma_commits;
  if (auto* const checker = w.cta->cluster->checker.get()) checker->wgmma_commit(w);
  w.cta->cluster->notify();
}

/// Faults if an operand of the group has changed since its wgmma was issued.
void verify(Warp& w, const std::vector<PendingWgmma>& group) {
  for (const PendingWgmma& pending : group) {
    for (const PendingWgmma::Operand& before : pending.operands) {
      const SharedOperand operand =
          operand_of(before.descriptor, before.mn_major, before.bf16, before.rows);
      std::vector<uint16_t> now(before.elements.size());
      copy_operand(operand, w.cta->shared.base(), now.data());
      if (now == before.elements) continue;
      throw Fault("wgmma of line " + std::to_string(pending.line) +
                  ": its operand in shared memory at " + hex((before.descriptor & 0x3fff) << 4) +
                  " was overwritten before the wgmma was waited for");
    }
  }
}

std::string wait_text(const Warp&, const Op& op, uint32_t) {
  return "all four warps to commit their wgmma, all but the " + std::to_string(op.imm) +
         " latest groups";
}

/// A wgmma is one operation of four warps: where one of them sees it complete, it is complete for all.
void run_wait(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  const auto keep = static_cast<uint64_t>(op.imm);
  if (w.wgmma_commits <= keep) return;
  const uint64_t complete = w.wgmma_commits - keep;
  std::vector<Warp>& warps = w.cta->warps;
  const size_t first = w.index / 4 * 4, end = std::min<size_t>(first + 4, warps.size());
  for (size_t i = first; i < end; ++i) {
    if (warps[i].wgmma_commits < complete) return w.block();
  }
  if (auto* const checker = w.cta->cluster->checker.get()) checker->wgmma_waited(w, complete);
  for (size_t i = first; i < end; ++i) {
    auto& groups = warps[i].wgmma_groups;
    while (!groups.empty() && warps[i].wgmma_commits - groups.size() < complete) {
      verify(warps[i], groups.front());
      groups.erase(groups.begin());
    }
  }
}

int n_of(const Lowering& l) {
  const std::string_view shape = l.part(4);  // wgmma.mma_async.sync.aligned.m64n128k16
  constexpr std::string_view kBegin = "m64n", kEnd = "k16";
  int n = 0;
  if (shape.substr(0, kBegin.size()) == kBegin && shape.size() > kBegin.size() + kEnd.size()) {
    const char* const end = shape.data() + shape.size() - kEnd.size();
    const auto [stop, error] = std::from_chars(shape.data() + kBegin.size(), end, n);
    if (error != std::errc() || std::string_view(stop, kEnd.size()) != kEnd || stop != end) n = 0;
  }
  if (n < 8 || n > kMostN || n % 8 != 0) l.unmodelled("the shape");
  return n;
}

void lower_mma_async(Lowering& l) {
  const int n = n_of(l);
  const bool bf16 = l.part(6) == "bf16";
  if (l.part(5) != "f32" || (!bf16 && l.part(6) != "f16")) l.unmodelled("these element types");
  Draft& draft = l.emit(run_mma, OpClass::kMma);
  draft.wgmma = Draft::Wgmma::kMma;
  const Operand& a = l.operand(1);
  const bool a_registers = a.kind == Operand::kVector;
  uint8_t mode = bf16 ? kBf16 : 0;
  l.writes_list(draft, l.operand(0), 4);
  if (static_cast<int>(draft.list.size()) != n / 2) l.unmodelled("the number of accumulators");
  // The accumulators are read as well, unless scale-d is off: which only the run knows.
  draft.reads.insert(draft.reads.end(), draft.list.begin(), draft.list.end());
  if (a_registers) {
    mode |= kARegisters;
    l.reads_list(draft, a, 4);
    if (a.parts.size() != 4) l.unmodelled("the number of registers of A");
  } else {
    l.reads(draft, kA, a, 8);
  }
  l.reads(draft, kB, l.operand(2), 8);
  size_t next = 3;
  if (l.is_immediate(l.operand(next))) {
    if (l.immediate(l.operand(next++)) != 0) mode |= kAlwaysAdds;
  } else {
    l.reads_pred(draft, l.operand(next++));
  }
  if (l.immediate(l.operand(next++)) < 0) mode |= kNegateA;
  if (l.immediate(l.operand(next++)) < 0) mode |= kNegateB;
  if (!a_registers && l.immediate(l.operand(next++)) != 0) mode |= kAMajorMN;
  if (l.immediate(l.operand(next)) != 0) mode |= kBMajorMN;
  draft.op.mode = mode;
  draft.op.extra = static_cast<uint32_t>(n);
}

}  // namespace

void run_wgmma_hazard(Warp& w, const Op& op) {
  const auto pc = static_cast<uint32_t>(&op - w.code->ops.data());
  const auto& [hazard, handler] = w.code->wgmma_hazards.at(pc);
  if (auto* const checker = w.cta->cluster->checker.get()) checker->wgmma_hazard(w, op, hazard);
  handler(w, op);
}

void lower_wgmma(Lowering& l) {
  const std::string_view action = l.part(1);
  if (action == "mma_async") {
    lower_mma_async(l);
  } else if (action == "commit_group") {
    l.emit(run_commit, OpClass::kMma).wgmma = Draft::Wgmma::kCommit;
  } else if (action == "wait_group") {
    Draft& draft = l.emit(run_wait, OpClass::kMma);
    draft.wgmma = Draft::Wgmma::kWait;
    draft.op.imm = l.immediate(l.operand(0));
    draft.op.wait_text = wait_text;
  } else if (action == "fence") {
    l.emit(no_operation, OpClass::kFence).wgmma = Draft::Wgmma::kFence;
  } else {
    l.unmodelled();
  }
}

}  // namespace fa4::emulator
