// Integer arithmetic, logic, shifts and bit fields.
#include <algorithm>
#include <limits>

#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/isa/scalar.h"

namespace fa4::emulator {

using ptx::Type;

namespace {

// Narrow integers promote to int in C++; products of 16 bits could overflow it, hence uint64_t.
template <class T>
struct Wider {
  using type = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
};
template <class T>
using Wide128 = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;

template <class T>
struct Add {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return to_bits(static_cast<T>(a + b)); }
};
template <class T>
struct Sub {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return to_bits(static_cast<T>(a - b)); }
};
template <class T>
struct MulLo {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return to_bits(static_cast<T>(a * b)); }
};
template <class T>
T high_product(uint64_t a, uint64_t b) {
  const auto product = Wide128<T>{from_bits<T>(a)} * from_bits<T>(b);
  return static_cast<T>(product >> (8 * sizeof(T)));
}
template <class T>
struct MulHi {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return to_bits(high_product<T>(a, b)); }
};
template <class T>
struct MulWide {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    const auto product = typename Wider<T>::type{from_bits<T>(a)} * from_bits<T>(b);
    return sizeof(T) == 2 ? static_cast<uint32_t>(product) : static_cast<uint64_t>(product);
  }
};
template <class T>
struct MadLo {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t c) {
    return to_bits(static_cast<T>(a * b + c));
  }
};
template <class T>
struct MadHi {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t c) {
    return to_bits(static_cast<T>(static_cast<uint64_t>(high_product<T>(a, b)) + c));
  }
};
template <class T>
struct MadWide {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t sum = MulWide<T>::run(a, b, 0) + c;
    return sizeof(T) == 2 ? static_cast<uint32_t>(sum) : sum;
  }
};
template <class T>
struct Divide {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    const T x = from_bits<T>(a), y = from_bits<T>(b);
    if (y == 0) return to_bits(static_cast<T>(-1));  // what hardware gives; PTX leaves it open
    if (std::is_signed_v<T> && y == static_cast<T>(-1))
      return to_bits(static_cast<T>(uint64_t{0} - a));
    return to_bits(static_cast<T>(x / y));
  }
};
template <class T>
struct Remainder {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    const T x = from_bits<T>(a), y = from_bits<T>(b);
    if (y == 0) return to_bits(x);
    if (std::is_signed_v<T> && y == static_cast<T>(-1)) return 0;
    return to_bits(static_cast<T>(x % y));
  }
};
template <class T>
struct Min {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    return to_bits(std::min(from_bits<T>(a), from_bits<T>(b)));
  }
};
template <class T>
struct Max {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    return to_bits(std::max(from_bits<T>(a), from_bits<T>(b)));
  }
};
template <class T>
struct MinRelu {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    return to_bits(std::max(std::min(from_bits<T>(a), from_bits<T>(b)), T{0}));
  }
};
template <class T>
struct MaxRelu {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    return to_bits(std::max(std::max(from_bits<T>(a), from_bits<T>(b)), T{0}));
  }
};
template <class T>
struct Negate {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) {
    return to_bits(static_cast<T>(uint64_t{0} - a));
  }
};
template <class T>
struct Absolute {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) {
    return from_bits<T>(a) < 0 ? Negate<T>::run(a, 0, 0) : to_bits(from_bits<T>(a));
  }
};
template <class T>
struct ShiftLeft {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    return b >= 8 * sizeof(T) ? 0 : to_bits(static_cast<T>(a << b));
  }
};
template <class T>
struct ShiftRight {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) {
    const T x = from_bits<T>(a);
    if (b >= 8 * sizeof(T)) return x < 0 ? to_bits(static_cast<T>(-1)) : 0;
    return to_bits(static_cast<T>(x >> b));
  }
};
template <class T>
struct FieldExtract {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t c) {
    constexpr uint64_t kBits = 8 * sizeof(T);
    const uint64_t begin = b & 0xff, length = c & 0xff;
    if (length == 0) return 0;
    const uint64_t last = std::min(begin + length - 1, kBits - 1);
    const bool sign = std::is_signed_v<T> && (a >> last & 1) != 0;
    uint64_t result = sign ? ~uint64_t{0} : 0;
    for (uint64_t i = 0; i < length && i < kBits; ++i) {
      const bool bit = begin + i < kBits ? (a >> (begin + i) & 1) != 0 : sign;
      result = bit ? result | uint64_t{1} << i : result & ~(uint64_t{1} << i);
    }
    return to_bits(static_cast<T>(result));
  }
};
template <class T>
struct FindLeading {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) {
    const T x = from_bits<T>(a);
    const uint64_t bits = to_bits(static_cast<T>(x < 0 ? ~x : x));
    return bits == 0 ? 0xffffffffu : static_cast<uint64_t>(63 - __builtin_clzll(bits));
  }
};
template <class T>
struct CountBits {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) {
    return static_cast<uint64_t>(__builtin_popcountll(a));
  }
};
template <class T>
struct LeadingZeros {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) {
    return a == 0 ? 8 * sizeof(T)
                  : static_cast<uint64_t>(__builtin_clzll(a)) - (64 - 8 * sizeof(T));
  }
};
template <class T>
struct Reverse {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) {
    uint64_t result = 0;
    for (size_t i = 0; i < 8 * sizeof(T); ++i) result |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
    return result;
  }
};
template <class T>
struct AbsoluteDifference {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t c) {
    const T x = from_bits<T>(a), y = from_bits<T>(b);
    return to_bits(static_cast<T>((x < y ? b - a : a - b) + c));
  }
};
template <class T>
struct LogicalNot {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) { return a == 0; }
};
template <class T>
struct BitAnd {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return a & b; }
};
template <class T>
struct BitOr {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return a | b; }
};
template <class T>
struct BitXor {
  static uint64_t run(uint64_t a, uint64_t b, uint64_t) { return a ^ b; }
};
template <class T>
struct BitNot {
  static uint64_t run(uint64_t a, uint64_t, uint64_t) { return to_bits(static_cast<T>(~a)); }
};

uint64_t add_saturated(uint64_t a, uint64_t b, uint64_t) {
  const int64_t sum = int64_t{from_bits<int32_t>(a)} + from_bits<int32_t>(b);
  return to_bits(static_cast<int32_t>(std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX)));
}
uint64_t sub_saturated(uint64_t a, uint64_t b, uint64_t) {
  const int64_t difference = int64_t{from_bits<int32_t>(a)} - from_bits<int32_t>(b);
  return to_bits(static_cast<int32_t>(std::clamp<int64_t>(difference, INT32_MIN, INT32_MAX)));
}
int64_t low24(uint64_t a, bool sign) {
  const auto bits = static_cast<int64_t>(a & 0xffffff);
  return sign && (bits & 0x800000) != 0 ? bits - 0x1000000 : bits;
}
template <bool kSigned, bool kHigh>
uint64_t mul24(uint64_t a, uint64_t b, uint64_t c) {
  const int64_t product = low24(a, kSigned) * low24(b, kSigned);
  return static_cast<uint32_t>((kHigh ? product >> 16 : product) + static_cast<int64_t>(c));
}
template <bool kLeft, bool kWrap>
uint64_t funnel(uint64_t a, uint64_t b, uint64_t c) {
  const uint64_t n = kWrap ? c & 31 : std::min<uint64_t>(c, 32);
  const uint64_t both = b << 32 | a;
  return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
}
uint64_t byte_at(uint64_t bytes, uint64_t selector) {
  const uint64_t byte = bytes >> (8 * (selector & 7)) & 0xff;
  return (selector & 8) == 0 ? byte : (byte & 0x80) != 0 ? 0xff : 0;
}
uint64_t permute(uint64_t a, uint64_t b, uint64_t c) {
  const uint64_t bytes = b << 32 | (a & 0xffffffff);
  uint64_t result = 0;
  for (int i = 0; i < 4; ++i) result |= byte_at(bytes, c >> (4 * i)) << (8 * i);
  return result;
}
template <bool kClamp>
uint64_t bit_mask(uint64_t a, uint64_t b, uint64_t) {
  const uint64_t begin = kClamp ? std::min<uint64_t>(a, 32) : a & 31;
  const uint64_t length = kClamp ? std::min<uint64_t>(b, 32) : b & 31;
  return static_cast<uint32_t>(((uint64_t{1} << length) - 1) << begin);
}
template <bool kSignedA, bool kSignedB>
uint64_t dot4(uint64_t a, uint64_t b, uint64_t c) {
  int64_t sum = from_bits<int32_t>(c);
  for (int i = 0; i < 4; ++i) {
    const auto x = static_cast<uint8_t>(a >> (8 * i)), y = static_cast<uint8_t>(b >> (8 * i));
    sum += int64_t{kSignedA ? static_cast<int8_t>(x) : x} * (kSignedB ? static_cast<int8_t>(y) : y);
  }
  return static_cast<uint32_t>(sum);
}

OperandBytes all(Type type) {
  const int bytes = ptx::type_bytes(type);
  return {bytes, bytes, bytes, bytes};
}

/// The vector handler for 32 or 64 bits, else the scalar function.
void emit_integer(Lowering& l, Type type, Handler h32, Handler h64, ScalarFunction function) {
  const int bytes = ptx::type_bytes(type);
  const Handler handler = bytes == 4 ? h32 : bytes == 8 ? h64 : nullptr;
  if (handler != nullptr) {
    emit_lanes(l, OpClass::kInteger, handler, all(type));
  } else {
    emit_scalar(l, OpClass::kInteger, function, all(type));
  }
}

/// add and sub with the carry flag: op.mode bit 0 subtract, bit 1 reads the flag, bit 2 writes it.
void add_with_carry(Warp& w, const Op& op) {
  const bool subtract = (op.mode & 1) != 0;
  uint32_t carry_out = 0;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const auto value = [&](int place) {
      return uint64_t{w.source(op.r[place + 1])[l]} << 32 | w.source(op.r[place])[l];
    };
    const unsigned __int128 mask = op.width == 8 ? UINT64_MAX : UINT32_MAX;
    const uint64_t carry = (op.mode & 2) != 0 ? w.carry >> l & 1 : 0;
    const unsigned __int128 a = value(kA), b = value(kB);
    const unsigned __int128 result = subtract ? a - b - carry : a + b + carry;
    if (result > mask) carry_out |= 1u << l;
    w.target(op.r[kD])[l] = static_cast<uint32_t>(result);
    if (op.width == 8) w.target(op.r[kD + 1])[l] = static_cast<uint32_t>(result >> 32);
  }
  if ((op.mode & 4) != 0) w.carry = (w.carry & ~w.exec) | carry_out;
}

}  // namespace

void lower_add(Lowering& l) {
  const Type type = l.last_type();
  if (!is_integer(type)) return lower_float_arithmetic(l);
  if (l.has("cc")) return lower_carry(l);
  const bool add = l.part(0) == "add";
  if (l.has("sat")) {
    emit_scalar(l, OpClass::kInteger, add ? add_saturated : sub_saturated, all(type));
    return;
  }
  const LaneHandlers& h = lanes();
  emit_integer(l, type, add ? h.add32 : h.sub32, add ? h.add64 : h.sub64,
               add ? for_integer<Add>(type) : for_integer<Sub>(type));
}

void lower_carry(Lowering& l) {
  const Type type = l.last_type();
  const std::string_view name = l.part(0);
  if (ptx::type_bytes(type) != 4 && ptx::type_bytes(type) != 8) l.unmodelled();
  Draft& draft = emit_lanes(l, OpClass::kInteger, add_with_carry, all(type));
  draft.op.width = static_cast<uint8_t>(ptx::type_bytes(type));
  draft.op.mode = static_cast<uint8_t>((name.substr(0, 3) == "sub" ? 1 : 0) |
                                       (name.size() == 4 ? 2 : 0) | (l.has("cc") ? 4 : 0));
}

void lower_mul(Lowering& l) {
  const Type type = l.last_type();
  if (!is_integer(type)) return lower_float_arithmetic(l);
  const LaneHandlers& h = lanes();
  const int bytes = ptx::type_bytes(type);
  if (l.part(0) == "mul24") {
    const bool s = is_signed(type), high = l.has("hi");
    emit_scalar(l, OpClass::kInteger,
                s ? (high ? mul24<true, true> : mul24<true, false>)
                  : (high ? mul24<false, true> : mul24<false, false>),
                all(type));
  } else if (l.has("wide")) {
    const OperandBytes sizes{2 * bytes, bytes, bytes, 2 * bytes};
    if (bytes == 4) {
      emit_lanes(l, OpClass::kInteger, is_signed(type) ? h.mul_wide_s32 : h.mul_wide_u32, sizes);
    } else {
      emit_scalar(l, OpClass::kInteger, for_integer<MulWide>(type), sizes);
    }
  } else if (l.has("hi")) {
    emit_scalar(l, OpClass::kInteger, for_integer<MulHi>(type), all(type));
  } else {
    emit_integer(l, type, h.mul32, nullptr, for_integer<MulLo>(type));
  }
}

void lower_mad(Lowering& l) {
  const Type type = l.last_type();
  if (!is_integer(type)) return lower_fma(l);
  if (l.has("cc") || l.has("sat")) l.unmodelled();
  const LaneHandlers& h = lanes();
  const int bytes = ptx::type_bytes(type);
  if (l.part(0) == "mad24") {
    if (l.has("hi")) l.unmodelled();
    emit_scalar(l, OpClass::kInteger, is_signed(type) ? mul24<true, false> : mul24<false, false>,
                all(type));
  } else if (l.has("wide")) {
    const OperandBytes sizes{2 * bytes, bytes, bytes, 2 * bytes};
    if (bytes == 4) {
      emit_lanes(l, OpClass::kInteger, is_signed(type) ? h.mad_wide_s32 : h.mad_wide_u32, sizes);
    } else {
      emit_scalar(l, OpClass::kInteger, for_integer<MadWide>(type), sizes);
    }
  } else if (l.has("hi")) {
    emit_scalar(l, OpClass::kInteger, for_integer<MadHi>(type), all(type));
  } else {
    emit_integer(l, type, h.mad32, nullptr, for_integer<MadLo>(type));
  }
}

void lower_division(Lowering& l) {
  const Type type = l.last_type();
  if (!is_integer(type)) return lower_float_division(l);
  const bool divide = l.part(0) == "div";
  emit_scalar(l, OpClass::kInteger,
              divide ? for_integer<Divide>(type) : for_integer<Remainder>(type), all(type));
}

void lower_minmax(Lowering& l) {
  const Type type = l.last_type();
  if (!is_integer(type)) return lower_float_arithmetic(l);
  const LaneHandlers& h = lanes();
  const bool min = l.part(0) == "min", s = is_signed(type);
  if (l.has("relu")) {
    emit_scalar(l, OpClass::kInteger, min ? for_integer<MinRelu>(type) : for_integer<MaxRelu>(type),
                all(type));
    return;
  }
  emit_integer(l, type, min ? (s ? h.min_s32 : h.min_u32) : (s ? h.max_s32 : h.max_u32), nullptr,
               min ? for_integer<Min>(type) : for_integer<Max>(type));
}

void lower_negation(Lowering& l) {
  const Type type = l.last_type();
  if (!is_integer(type)) return lower_float_arithmetic(l);
  const LaneHandlers& h = lanes();
  const bool negate = l.part(0) == "neg";
  emit_integer(l, type, negate ? h.neg32 : h.abs_s32, nullptr,
               negate ? for_integer<Negate>(type) : for_integer<Absolute>(type));
}

void lower_logic(Lowering& l) {
  const Type type = l.last_type();
  if (type == Type::kPred) return lower_pred_logic(l);
  const LaneHandlers& h = lanes();
  const std::string_view name = l.part(0);
  if (name == "and") return emit_integer(l, type, h.and32, h.and64, for_integer<BitAnd>(type));
  if (name == "or") return emit_integer(l, type, h.or32, h.or64, for_integer<BitOr>(type));
  if (name == "xor") return emit_integer(l, type, h.xor32, h.xor64, for_integer<BitXor>(type));
  if (name == "not") return emit_integer(l, type, h.not32, h.not64, for_integer<BitNot>(type));
  emit_scalar(l, OpClass::kInteger, for_integer<LogicalNot>(type), all(type));  // cnot
}

void lower_shift(Lowering& l) {
  const Type type = l.last_type();
  const int bytes = ptx::type_bytes(type);
  const OperandBytes sizes{bytes, bytes, 4, 4};
  const LaneHandlers& h = lanes();
  if (l.part(0) == "shf") {
    const bool wrap = l.has("wrap");
    emit_scalar(l, OpClass::kInteger,
                l.has("l") ? (wrap ? funnel<true, true> : funnel<true, false>)
                           : (wrap ? funnel<false, true> : funnel<false, false>),
                sizes);
  } else if (l.part(0) == "shl") {
    if (bytes == 4) {
      emit_lanes(l, OpClass::kInteger, h.shl32, sizes);
    } else {
      emit_scalar(l, OpClass::kInteger, for_integer<ShiftLeft>(type), sizes);
    }
  } else if (bytes == 4) {
    emit_lanes(l, OpClass::kInteger, is_signed(type) ? h.shr_s32 : h.shr_u32, sizes);
  } else {
    emit_scalar(l, OpClass::kInteger, for_integer<ShiftRight>(type), sizes);
  }
}

namespace {

/// bfi has four sources: a in kA, b in kB, position and length in kC and its upper half.
void field_insert(Warp& w, const Op& op) {
  const uint64_t bits = 8 * op.width;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const auto value = [&](int place) {
      return uint64_t{w.source(op.r[place + 1])[l]} << 32 | w.source(op.r[place])[l];
    };
    const uint64_t a = value(kA), begin = w.source(op.r[kC])[l] & 0xff;
    const uint64_t length = w.source(op.r[kC + 1])[l] & 0xff;
    uint64_t result = value(kB);
    for (uint64_t i = 0; i < length && begin + i < bits; ++i) {
      const uint64_t bit = uint64_t{1} << (begin + i);
      result = (a >> i & 1) != 0 ? result | bit : result & ~bit;
    }
    w.target(op.r[kD])[l] = static_cast<uint32_t>(result);
    if (op.width == 8) w.target(op.r[kD + 1])[l] = static_cast<uint32_t>(result >> 32);
  }
}

void lower_field_insert(Lowering& l, Type type) {
  const int bytes = ptx::type_bytes(type);
  if (bytes != 4 && bytes != 8) l.unmodelled();
  Draft& draft = l.emit(field_insert, OpClass::kInteger);
  draft.op.width = static_cast<uint8_t>(bytes);
  l.writes(draft, kD, l.operand(0), bytes);
  l.reads(draft, kA, l.operand(1), bytes);
  l.reads(draft, kB, l.operand(2), bytes);
  // Both 32-bit sources go into one place: the second is read first and then moved to the upper half.
  l.reads(draft, kC, l.operand(4), 4);
  const VirtualPlane length = draft.r[kC];
  l.reads(draft, kC, l.operand(3), 4);
  draft.r[kC + 1] = length;
}

}  // namespace

void lower_bits(Lowering& l) {
  const Type type = l.last_type();
  const int bytes = ptx::type_bytes(type);
  const std::string_view name = l.part(0);
  const auto scalar = [&](ScalarFunction function, OperandBytes sizes) {
    emit_scalar(l, OpClass::kInteger, function, sizes);
  };
  if (name == "lop3") {
    if (l.has("and") || l.has("or")) l.unmodelled();
    emit_lanes(l, OpClass::kInteger, lanes().lop3, all(type)).op.imm = l.immediate(l.operand(4));
  } else if (name == "bfi") {
    lower_field_insert(l, type);
  } else if (name == "bfe") {
    scalar(for_integer<FieldExtract>(type), {bytes, bytes, 4, 4});
  } else if (name == "bfind") {
    if (l.has("shiftamt")) l.unmodelled();
    scalar(for_integer<FindLeading>(type), {4, bytes, 4, 4});
  } else if (name == "popc") {
    scalar(for_integer<CountBits>(type), {4, bytes, 4, 4});
  } else if (name == "clz") {
    scalar(for_integer<LeadingZeros>(type), {4, bytes, 4, 4});
  } else if (name == "brev") {
    scalar(for_integer<Reverse>(type), all(type));
  } else if (name == "prmt") {
    scalar(permute, all(type));
  } else if (name == "sad") {
    scalar(for_integer<AbsoluteDifference>(type), all(type));
  } else if (name == "bmsk") {
    scalar(l.has("clamp") ? bit_mask<true> : bit_mask<false>, all(type));
  } else if (name == "dp4a") {
    const bool a = l.part(1) == "s32", b = l.part(2) == "s32";
    scalar(a ? (b ? dot4<true, true> : dot4<true, false>)
             : (b ? dot4<false, true> : dot4<false, false>),
           {4, 4, 4, 4});
  } else {
    l.unmodelled();
  }
}

}  // namespace fa4::emulator
