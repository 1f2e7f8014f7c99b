// Comparisons, selections, and logic on predicates.
#include <array>
#include <cmath>
#include <utility>

#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/isa/scalar.h"

namespace fa4::emulator {

using ptx::Type;

namespace {

constexpr std::array<std::pair<std::string_view, Compare>, 18> kCompareNames = {{
    {"eq", Compare::kEq},
    {"ne", Compare::kNe},
    {"lt", Compare::kLt},
    {"le", Compare::kLe},
    {"gt", Compare::kGt},
    {"ge", Compare::kGe},
    {"lo", Compare::kLt},
    {"ls", Compare::kLe},
    {"hi", Compare::kGt},
    {"hs", Compare::kGe},
    {"equ", Compare::kEqu},
    {"neu", Compare::kNeu},
    {"ltu", Compare::kLtu},
    {"leu", Compare::kLeu},
    {"gtu", Compare::kGtu},
    {"geu", Compare::kGeu},
    {"num", Compare::kNum},
    {"nan", Compare::kNan},
}};

/// Values that integers, fp64 and 16-bit floats all convert to without loss, for the rare comparisons.
long double wide_value(uint64_t bits, Type type) {
  switch (type) {
    case Type::kF16:
      return half_value(bits, false);
    case Type::kBF16:
      return half_value(bits, true);
    case Type::kF64:
      return from_bits<double>(bits);
    case Type::kS16:
      return from_bits<int16_t>(bits);
    case Type::kS64:
      return from_bits<int64_t>(bits);
    case Type::kU16:
    case Type::kB16:
      return from_bits<uint16_t>(bits);
    default:
      return bits;
  }
}

bool compare(Compare how, long double a, long double b) {
  const bool unordered = std::isnan(a) || std::isnan(b);
  switch (how) {
    case Compare::kEq:
      return a == b;
    case Compare::kNe:
      return !unordered && a != b;
    case Compare::kLt:
      return a < b;
    case Compare::kLe:
      return a <= b;
    case Compare::kGt:
      return a > b;
    case Compare::kGe:
      return a >= b;
    case Compare::kEqu:
      return unordered || a == b;
    case Compare::kNeu:
      return unordered || a != b;
    case Compare::kLtu:
      return unordered || a < b;
    case Compare::kLeu:
      return unordered || a <= b;
    case Compare::kGtu:
      return unordered || a > b;
    case Compare::kGeu:
      return unordered || a >= b;
    case Compare::kNum:
      return !unordered;
    case Compare::kNan:
      return unordered;
  }
  return false;
}

/// setp on 16 and 64 bits; the type is in op.space.
void setp_wide(Warp& w, const Op& op) {
  uint32_t first = 0;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const auto value = [&](int place) {
      const uint64_t bits = uint64_t{w.source(op.r[place + 1])[l]} << 32 | w.source(op.r[place])[l];
      return wide_value(bits, static_cast<Type>(op.space));
    };
    if (compare(static_cast<Compare>(op.mode & 15), value(kA), value(kB))) first |= 1u << l;
  }
  uint32_t second = ~first;
  const uint32_t source = op.p[2] == kNoPred  ? 0
                          : op.source_negated ? ~w.pred(op.p[2])
                                              : w.pred(op.p[2]);
  switch (static_cast<Combine>(op.mode >> 4)) {
    case Combine::kNone:
      break;
    case Combine::kAnd:
      first &= source, second &= source;
      break;
    case Combine::kOr:
      first |= source, second |= source;
      break;
    case Combine::kXor:
      first ^= source, second ^= source;
      break;
  }
  w.set_pred(op.p[0], first);
  if (op.p[1] != kNoPred) w.set_pred(op.p[1], second);
}

Handler setp_handler(Type type, bool ftz) {
  const LaneHandlers& h = lanes();
  switch (type) {
    case Type::kS32:
      return h.setp_s32;
    case Type::kU32:
    case Type::kB32:
      return h.setp_u32;
    case Type::kF32:
      return ftz ? h.setp_f32_ftz : h.setp_f32;
    case Type::kU16:
    case Type::kS16:
    case Type::kB16:
    case Type::kU64:
    case Type::kS64:
    case Type::kB64:
    case Type::kF64:
    case Type::kF16:
    case Type::kBF16:
      return setp_wide;
    default:
      return nullptr;
  }
}

/// Logic on predicates; the first source is in extra, the second in p[2] or, an immediate, in imm.
/// mode: see lower_pred_logic.
void pred_logic(Warp& w, const Op& op) {
  const uint32_t a = (op.extra & 0x10000u) != 0 ? ~w.pred(static_cast<PredRef>(op.extra))
                                                : w.pred(static_cast<PredRef>(op.extra));
  const uint32_t b = op.p[2] == kNoPred  ? (op.imm != 0 ? kAllLanes : 0)
                     : op.source_negated ? ~w.pred(op.p[2])
                                         : w.pred(op.p[2]);
  const uint32_t results[] = {a & b, a | b, a ^ b, ~a, a};
  w.set_pred(op.p[0], results[op.mode]);
}

void pred_constant(Warp& w, const Op& op) {
  w.set_pred(op.p[0], op.imm != 0 ? kAllLanes : 0);
}

}  // namespace

void lower_setp(Lowering& l) {
  const Type type = l.last_type();
  const Handler handler = setp_handler(type, l.has("ftz"));
  if (handler == nullptr) l.unmodelled();
  Compare how = Compare::kEq;
  bool found = false;
  for (const auto& [name, value] : kCompareNames) {
    if (l.part(1) != name) continue;
    how = value;
    found = true;
  }
  if (!found) l.unmodelled("comparison ." + std::string(l.part(1)));
  Draft& draft = l.emit(handler, OpClass::kPredicate);
  const int bytes = ptx::type_bytes(type);
  const ptx::Operand& result = l.operand(0);
  if (result.kind == ptx::Operand::kPair) {
    l.writes_pred(draft, 0, result.parts[0]);
    l.writes_pred(draft, 1, result.parts[1]);
  } else {
    l.writes_pred(draft, 0, result);
  }
  l.reads(draft, kA, l.operand(1), bytes);
  l.reads(draft, kB, l.operand(2), bytes);
  Combine combine = Combine::kNone;
  if (l.operand_count() > 3) {
    combine = l.has("and") ? Combine::kAnd : l.has("or") ? Combine::kOr : Combine::kXor;
    l.reads_pred(draft, l.operand(3));
  }
  draft.op.mode = compare_mode(how, combine);
  draft.op.space = static_cast<uint8_t>(type);
}

void lower_selp(Lowering& l) {
  const int bytes = ptx::type_bytes(l.last_type());
  Draft& draft = l.emit(bytes == 8 ? lanes().selp64 : lanes().selp32, OpClass::kPredicate);
  l.writes(draft, kD, l.operand(0), bytes);
  l.reads(draft, kA, l.operand(1), bytes);
  l.reads(draft, kB, l.operand(2), bytes);
  l.reads_pred(draft, l.operand(3));
}

void lower_pred_logic(Lowering& l) {
  const std::string_view name = l.part(0);
  const ptx::Operand& first = l.operand(1);
  if (first.kind == ptx::Operand::kImmediate) {  // mov.pred p, 1
    Draft& draft = l.emit(pred_constant, OpClass::kPredicate);
    l.writes_pred(draft, 0, l.operand(0));
    draft.op.imm = first.value;
    return;
  }
  Draft& draft = l.emit(pred_logic, OpClass::kPredicate);
  draft.op.mode = name == "and" ? 0 : name == "or" ? 1 : name == "xor" ? 2 : name == "not" ? 3 : 4;
  l.writes_pred(draft, 0, l.operand(0));
  l.reads_pred(draft, first);
  draft.op.extra = draft.op.p[2] | (first.negated ? 0x10000u : 0);
  draft.op.p[2] = kNoPred;
  draft.op.source_negated = false;
  if (draft.op.mode >= 3) return;
  const ptx::Operand& second = l.operand(2);
  if (second.kind == ptx::Operand::kImmediate) {  // xor.pred p, q, -1
    draft.op.imm = second.value;
  } else {
    l.reads_pred(draft, second);
  }
}

}  // namespace fa4::emulator
