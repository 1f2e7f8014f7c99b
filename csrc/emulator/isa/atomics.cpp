// atom and red.
#include <algorithm>
#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/scalar.h"

namespace fa4::emulator {

using ptx::Operand;
using ptx::Type;

namespace {

enum class Atomic : uint8_t { kAdd, kMin, kMax, kInc, kDec, kAnd, kOr, kXor, kExch, kCas };

template <class T>
uint64_t update_integer(Atomic op, uint64_t old_bits, uint64_t operand, uint64_t swap) {
  const T old = from_bits<T>(old_bits), b = from_bits<T>(operand);
  switch (op) {
    case Atomic::kAdd:
      return to_bits(static_cast<T>(old_bits + operand));
    case Atomic::kMin:
      return to_bits(std::min(old, b));
    case Atomic::kMax:
      return to_bits(std::max(old, b));
    case Atomic::kInc:
      return old >= b ? 0 : to_bits(static_cast<T>(old_bits + 1));
    case Atomic::kDec:
      return old == 0 || old > b ? to_bits(b) : to_bits(static_cast<T>(old_bits - 1));
    case Atomic::kAnd:
      return old_bits & operand;
    case Atomic::kOr:
      return old_bits | operand;
    case Atomic::kXor:
      return old_bits ^ operand;
    case Atomic::kExch:
      return to_bits(b);
    case Atomic::kCas:
      return old_bits == operand ? swap : old_bits;
  }
  return old_bits;
}

uint16_t update_half(Atomic op, uint64_t old_bits, uint64_t operand, bool bf16) {
  const float old = half_value(old_bits, bf16), b = half_value(operand, bf16);
  const float result = op == Atomic::kAdd   ? old + b
                       : op == Atomic::kMin ? std::min(old, b)
                                            : std::max(old, b);
  return half_bits(result, bf16);
}

uint64_t update(Atomic op, Type type, uint64_t old, uint64_t b, uint64_t c) {
  switch (type) {
    case Type::kF32:
      return to_bits(from_bits<float>(old) + from_bits<float>(b));
    case Type::kF64:
      return to_bits(from_bits<double>(old) + from_bits<double>(b));
    case Type::kF16:
    case Type::kBF16:
      return update_half(op, old, b, type == Type::kBF16);
    case Type::kF16x2:
    case Type::kBF16x2: {
      const bool bf16 = type == Type::kBF16x2;
      return update_half(op, old & 0xffff, b & 0xffff, bf16) |
             static_cast<uint64_t>(update_half(op, old >> 16, b >> 16, bf16)) << 16;
    }
    case Type::kS32:
      return update_integer<int32_t>(op, old, b, c);
    case Type::kS64:
      return update_integer<int64_t>(op, old, b, c);
    case Type::kB16:
    case Type::kU16:
      return update_integer<uint16_t>(op, old, b, c);
    case Type::kU32:
    case Type::kB32:
      return update_integer<uint32_t>(op, old, b, c);
    default:
      return update_integer<uint64_t>(op, old, b, c);
  }
}

/// Repeats until no other host thread has come between. Returns the old value.
template <class Word>
uint64_t exchange(uint8_t* address, Atomic op, Type type, uint64_t b, uint64_t c, bool* changed) {
  auto* const word = reinterpret_cast<Word*>(address);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    const auto next = static_cast<Word>(update(op, type, old, b, c));
    *changed |= next != old;
    if (__atomic_compare_exchange_n(word, &old, next, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      return old;
  }
}

/// width: bytes of an element; mode: Atomic; extra: type, and 0x100 where the old value is returned.
/// The list holds results, then operands b, then c.
void run_atomic(Warp& w, const Op& op) {
  const auto space = static_cast<AccessSpace>(op.space);
  const auto atomic = static_cast<Atomic>(op.mode);
  const auto type = static_cast<Type>(op.extra & 0xff);
  const bool returns = (op.extra & 0x100) != 0;
  const int planes = op.width == 8 ? 2 : 1;
  const int operands = (returns ? 1 : 0) + (atomic == Atomic::kCas ? 2 : 1);
  const int elements = op.list_count / planes / operands;
  const PlaneRef* const list = w.code->lists.data() + op.list;
  const PlaneRef* const b_list = list + (returns ? elements * planes : 0);
  const PlaneRef* const c_list = b_list + elements * planes;
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->access(w, op, w.exec, op.width * static_cast<uint32_t>(elements), true);
  bool changed = false;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const auto value = [&](const PlaneRef* refs, int k) {
      const uint64_t high = planes == 2 ? w.source(refs[2 * k + 1])[l] : 0;
      return high << 32 | w.source(refs[planes * k])[l];
    };
    uint8_t* address = resolve(w, space, lane_address(w, op, l, kA),
                               static_cast<size_t>(op.width) * static_cast<size_t>(elements), l);
    for (int k = 0; k < elements; ++k, address += op.width) {
      const uint64_t b = value(b_list, k), c = atomic == Atomic::kCas ? value(c_list, k) : 0;
      const uint64_t old = op.width == 8 ? exchange<uint64_t>(address, atomic, type, b, c, &changed)
                           : op.width == 4
                               ? exchange<uint32_t>(address, atomic, type, b, c, &changed)
                               : exchange<uint16_t>(address, atomic, type, b, c, &changed);
      if (!returns) continue;
      w.target(list[planes * k])[l] = static_cast<uint32_t>(old);
      if (planes == 2) w.target(list[2 * k + 1])[l] = static_cast<uint32_t>(old >> 32);
    }
  }
  if (changed) w.cta->cluster->notify();
}

Atomic atomic_of(const Lowering& l) {
  constexpr std::pair<std::string_view, Atomic> kNames[] = {
      {"add", Atomic::kAdd},   {"min", Atomic::kMin}, {"max", Atomic::kMax}, {"inc", Atomic::kInc},
      {"dec", Atomic::kDec},   {"and", Atomic::kAnd}, {"or", Atomic::kOr},   {"xor", Atomic::kXor},
      {"exch", Atomic::kExch}, {"cas", Atomic::kCas}};
  for (const auto& [name, value] : kNames) {
    if (l.has(name)) return value;
  }
  l.unmodelled();
}

}  // namespace

void lower_atomic(Lowering& l) {
  if (l.has("async")) return lower_store_async(l);
  const Type type = l.last_type();
  const int bytes = ptx::type_bytes(type);
  const bool returns = l.part(0) == "atom";
  const Atomic atomic = atomic_of(l);
  const bool floating = type == Type::kF32 || type == Type::kF64;
  if (bytes > 8 || bytes < 2 || (floating && atomic != Atomic::kAdd)) l.unmodelled();
  Draft& draft = l.emit(
      run_atomic, access_space(l) == AccessSpace::kShared ? OpClass::kShared : OpClass::kGlobal);
  const size_t each = (l.has("v8")   ? 8
                       : l.has("v4") ? 4
                       : l.has("v2") ? 2
                                     : 1) *
                      static_cast<size_t>(bytes == 8 ? 2 : 1);
  size_t next = 0, registers = 0;
  const auto check = [&] {  // each list is as long as the others
    registers += each;
    if (draft.list.size() != registers) l.unmodelled("the number of registers");
  };
  if (returns) {
    l.writes_list(draft, l.operand(next++), bytes);
    check();
  }
  l.address(draft, l.operand(next++));
  l.reads_list(draft, l.operand(next++), bytes);
  check();
  if (atomic == Atomic::kCas) {
    l.reads_list(draft, l.operand(next), bytes);
    check();
  }
  draft.op.width = static_cast<uint8_t>(bytes);
  draft.op.space = static_cast<uint8_t>(access_space(l));
  draft.op.mode = static_cast<uint8_t>(atomic);
  draft.op.extra = static_cast<uint32_t>(type) | (returns ? 0x100 : 0);
}

}  // namespace fa4::emulator
