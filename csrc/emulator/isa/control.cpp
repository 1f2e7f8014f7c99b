// Branches, exits, calls, traps, and instructions without effect on values.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/machine/grid.h"
#include "csrc/emulator/machine/machine.h"
#include "csrc/emulator/machine/special.h"

namespace fa4::emulator {

namespace {

void run_branch(Warp& w, const Op& op) {
  branch(w, static_cast<uint32_t>(op.imm));
}

/// Each lane takes the label its index names.
void run_branch_indexed(Warp& w, const Op& op) {
  const std::vector<uint32_t>& targets = w.code->branch_targets[op.extra];
  const uint32_t* const index = w.source(op.r[kA]);
  const uint32_t first = index[w.first_lane()];
  if (first >= targets.size()) {
    throw Fault("brx.idx: index must be below " + std::to_string(targets.size()) + ", got " +
                std::to_string(first));
  }
  uint32_t same = 0;
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    if ((w.exec >> l & 1) != 0 && index[l] == first) same |= 1u << l;
  }
  const uint32_t others = w.exec & ~same;
  if (others != 0) {  // they come back to this instruction, alone
    Fragment again;
    again.mask = others;
    again.pc = w.pc - 1;
    w.current.mask &= ~others;
    w.parked.push_back(again);
    w.merge_pc = 0;  // looked at before the next instruction
    w.exec = same;
  }
  branch(w, targets[first]);
}

void run_exit(Warp& w, const Op&) {
  w.outcome = Outcome::kExit;
}

void run_trap(Warp&, const Op& op) {
  throw Fault(op.imm == 1 ? "brkpt: a breakpoint was reached" : "trap: the kernel stopped itself");
}

void run_yield(Warp& w, const Op&) {
  w.outcome = Outcome::kYield;
}

void run_clock(Warp& w, const Op& op) {
  const uint64_t now = w.cta->cluster->steps + w.instructions;
  uint32_t* const low = w.target(op.r[kD]);
  uint32_t* const high = op.width > 4 ? w.target(op.r[kD + 1]) : nullptr;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    low[l] = static_cast<uint32_t>(op.mode == 1 ? now >> 32 : now);
    if (high != nullptr) high[l] = static_cast<uint32_t>(now >> 32);
  }
}

// ---- Calls of printf and assert ------------------------------------------------------------------------

template <class Value>
Value value_at(Warp& w, AccessSpace space, uint64_t address, uint32_t lane) {
  Value value = 0;
  std::memcpy(&value, resolve(w, space, address, sizeof value, lane), sizeof value);
  return value;
}

/// Argument `index` of the call in lane `lane`: call parameters lie in local memory.
uint64_t call_argument(Warp& w, const Op& op, uint32_t index, uint32_t lane) {
  const PlaneRef ref = w.code->lists[op.list + index];
  return value_at<uint64_t>(w, AccessSpace::kLocal, w.source(ref)[lane], lane);
}

/// The text up to its zero, all of it in memory that the kernel may touch.
std::string host_text(Warp& w, uint64_t address) {
  constexpr size_t kLongest = 1 << 16;
  AddressRange range;
  std::string text;
  for (; text.size() < kLongest; ++address) {
    w.cta->cluster->grid->memory.check(address, 1, &range);
    const char c = *reinterpret_cast<const char*>(address);
    if (c == '\0') break;
    text += c;
  }
  return text;
}

/// Where the values of printf lie, in local memory or wherever the generic address says.
struct Arguments {
  uint64_t address;
  uint32_t lane;
  template <class Value>
  Value take(Warp& w) {
    address = (address + sizeof(Value) - 1) / sizeof(Value) * sizeof(Value);
    const auto value = value_at<Value>(w, AccessSpace::kGeneric, address, lane);
    address += sizeof value;
    return value;
  }
};

/// Whether flags, width, precision and size are what they may be: no '*', which takes an argument,
/// and no numbers so large that the host is busy writing blanks.
bool is_conversion(const std::string& spec) {
  constexpr int kMostDigits = 3;
  int digits = 0;
  for (const char c : spec) {
    digits = c >= '0' && c <= '9' ? digits + 1 : 0;
    if (digits > kMostDigits) return false;
  }
  return spec.find_first_not_of("-+ #0123456789.hljztL", 1) == spec.size() - 1;
}

/// One conversion of a format: from '%' to its letter.
std::string formatted(Warp& w, const std::string& spec, Arguments* arguments) {
  if (!is_conversion(spec)) throw Fault("printf: no model of the conversion " + spec);
  char text[512] = {};
  const char kind = spec.back();
  const bool wide =
      std::strchr("diuxXoc", kind) != nullptr && spec.find_first_of("ljzt") != std::string::npos;
  // What follows the flags is the size that the host's printf gets.
  const std::string flags = spec.substr(0, spec.find_first_of("hljztL", 1));
  const auto print = [&](const char* size, auto value) {
    const size_t digits = std::min(flags.size(), spec.size() - 1);
    const std::string host = flags.substr(0, digits) + size + kind;
    std::snprintf(text, sizeof text, host.c_str(), value);
  };
  if (kind == 's') {
    print("", host_text(w, arguments->take<uint64_t>(w)).c_str());
  } else if (std::strchr("fFeEgGaA", kind) != nullptr) {
    print("", std::bit_cast<double>(arguments->take<uint64_t>(w)));
  } else if (kind == 'p') {
    print("", reinterpret_cast<const void*>(arguments->take<uint64_t>(w)));
  } else if (wide && kind != 'c') {
    print("ll", static_cast<unsigned long long>(arguments->take<uint64_t>(w)));
  } else {
    print("", wide ? static_cast<uint32_t>(arguments->take<uint64_t>(w))
                   : arguments->take<uint32_t>(w));
  }
  return text;
}

void print(Warp& w, uint64_t format_address, uint64_t list_address, uint32_t lane) {
  const std::string format = host_text(w, format_address);
  Arguments arguments{list_address, lane};
  std::string text;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      text += format[i];
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == '%') {
      text += format[++i];
      continue;
    }
    const size_t end = format.find_first_of("diouxXcsfFeEgGaAp", i + 1);
    if (end == std::string::npos || list_address == 0) break;
    text += formatted(w, format.substr(i, end - i + 1), &arguments);
    i = end;
  }
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void run_printf(Warp& w, const Op& op) {
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    print(w, call_argument(w, op, 0, l), call_argument(w, op, 1, l), l);
  }
}

void run_assert(Warp& w, const Op& op) {
  const uint32_t l = w.first_lane();
  const auto line = static_cast<uint32_t>(call_argument(w, op, 2, l));
  throw Fault(std::string("assertion failed: ") + host_text(w, call_argument(w, op, 0, l)) + ", " +
              host_text(w, call_argument(w, op, 1, l)) + ":" + std::to_string(line));
}

}  // namespace

void lower_branch(Lowering& l) {
  if (l.part(0) == "brx") {
    Draft& draft = l.emit(run_branch_indexed, OpClass::kControl);
    draft.op.mode = kBranchIndexed;
    draft.op.extra = static_cast<uint32_t>(l.code().branch_targets.size());
    std::vector<uint32_t> targets;
    for (const ptx::Operand& label : l.operand(1).parts) targets.push_back(l.label_target(label));
    l.code().branch_targets.push_back(std::move(targets));
    l.reads(draft, kA, l.operand(0), 4);
    return;
  }
  Draft& draft = l.emit(run_branch, OpClass::kControl);
  draft.op.mode = kBranch;
  draft.op.imm = l.label_target(l.operand(0));
}

void lower_exit(Lowering& l) {
  l.emit(run_exit, OpClass::kControl).op.mode = kLeave;
}

void lower_trap(Lowering& l) {
  l.emit(run_trap, OpClass::kOther).op.imm = l.part(0) == "brkpt" ? 1 : 0;
}

void lower_call(Lowering& l) {
  const size_t target = l.operand(0).kind == ptx::Operand::kGroup ? 1 : 0;
  const std::string& name = l.symbol_name(l.operand(target));
  const Handler handler = name == "vprintf"        ? run_printf
                          : name == "__assertfail" ? run_assert
                                                   : nullptr;
  if (handler == nullptr) l.unmodelled("a call of " + name);
  Draft& draft = l.emit(handler, OpClass::kOther);
  // Arguments are symbols of call parameters: their places in local memory.
  for (const ptx::Operand& argument : l.operand(target + 1).parts) {
    if (argument.kind != ptx::Operand::kSymbol) l.unmodelled("an argument that is no parameter");
    l.reads_list(draft, argument, 4);
  }
  if (draft.list.size() < (handler == run_assert ? 3u : 2u)) l.unmodelled("too few arguments");
}

/// fence.proxy.async has effects for the checker alone, unless it is for global memory only.
void run_proxy_fence(Warp& w, const Op&) {
  if (auto* const checker = w.cta->cluster->checker.get()) checker->fence_proxy(w);
}

void run_mbarrier_fence(Warp& w, const Op&) {
  if (auto* const checker = w.cta->cluster->checker.get()) checker->fence_mbarrier_init(w);
}

void run_grids_wait(Warp& w, const Op&) {
  if (auto* const checker = w.cta->cluster->checker.get()) checker->grids_waited(w);
}

void lower_nothing(Lowering& l) {
  if (l.part(0) == "griddepcontrol" && l.has("wait")) {
    l.emit(run_grids_wait, OpClass::kFence);
    return;
  }
  if (l.part(0) == "fence" && l.has("mbarrier_init")) {
    l.emit(run_mbarrier_fence, OpClass::kFence);
    return;
  }
  const bool async_proxy = l.has("proxy") && (l.has("async") || l.has("async::generic"));
  if (l.part(0) == "fence" && async_proxy && !l.has("global")) {
    l.emit(run_proxy_fence, OpClass::kFence);
    return;
  }
  l.emit(l.part(0) == "nanosleep" ? run_yield : no_operation,
         l.part(0) == "fence" || l.part(0) == "membar" ? OpClass::kFence : OpClass::kOther);
}

void lower_createpolicy(Lowering& l) {
  // A cache policy is a hint; any value will do.
  Draft& draft = l.emit(lanes().mov64, OpClass::kMove);
  l.writes(draft, kD, l.operand(0), 8);
  draft.r[kA] = draft.r[kA + 1] = l.constant(0);
}

void lower_clock(Lowering& l) {
  const int bytes = ptx::type_bytes(l.last_type());
  Draft& draft = l.emit(run_clock, OpClass::kOther);
  draft.op.width = static_cast<uint8_t>(bytes);
  const ptx::Special special = l.operand(1).special;
  draft.op.mode =
      special == ptx::Special::kClockHi || special == ptx::Special::kGlobaltimerHi ? 1 : 0;
  l.writes(draft, kD, l.operand(0), bytes);
}

}  // namespace fa4::emulator
