// Moves, conversions of values, and conversions of addresses.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <limits>

#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/isa/scalar.h"
#include "csrc/emulator/machine/special.h"

namespace fa4::emulator {

using ptx::Operand;
using ptx::Type;

// ---- Moves ---------------------------------------------------------------------------------------------

namespace {

/// The list holds destinations, then as many sources.
void move_planes(Warp& w, const Op& op) {
  constexpr int kMost = 8;
  uint32_t values[kMost][kWarpLanes];
  const int count = op.list_count / 2;
  const PlaneRef* const refs = w.code->lists.data() + op.list;
  for (int k = 0; k < count; ++k) std::copy_n(w.source(refs[count + k]), kWarpLanes, values[k]);
  for (int k = 0; k < count; ++k) {
    uint32_t* const to = w.target(refs[k]);
    for (uint32_t l = 0; l < kWarpLanes; ++l) to[l] = (w.exec >> l & 1) != 0 ? values[k][l] : to[l];
  }
}

/// Several narrow values -> one: width bytes each, the list holds the sources.
void pack_narrow(Warp& w, const Op& op) {
  const uint64_t mask = (uint64_t{1} << (8 * op.width)) - 1;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    uint64_t value = 0;
    for (int k = 0; k < op.list_count; ++k) {
      value |= (w.source(w.code->lists[op.list + static_cast<uint32_t>(k)])[l] & mask)
               << (8 * op.width * k);
    }
    w.target(op.r[kD])[l] = static_cast<uint32_t>(value);
    if (op.width * op.list_count == 8)
      w.target(op.r[kD + 1])[l] = static_cast<uint32_t>(value >> 32);
  }
}

/// One value -> several narrow ones: the list holds the destinations.
void unpack_narrow(Warp& w, const Op& op) {
  const uint64_t mask = (uint64_t{1} << (8 * op.width)) - 1;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const uint64_t value = uint64_t{w.source(op.r[kA + 1])[l]} << 32 | w.source(op.r[kA])[l];
    for (int k = 0; k < op.list_count; ++k) {
      w.target(w.code->lists[op.list + static_cast<uint32_t>(k)])[l] =
          static_cast<uint32_t>(value >> (8 * op.width * k) & mask);
    }
  }
}

/// Moves between a register and a vector of parts, or of more than 64 bits.
void lower_vector_move(Lowering& l, const Operand& to, const Operand& from, int bytes) {
  const Operand& vector = to.kind == Operand::kVector ? to : from;
  const int part_bytes =
      vector.kind == Operand::kVector ? bytes / static_cast<int>(vector.parts.size()) : bytes;
  if (vector.kind == Operand::kVector &&
      part_bytes * static_cast<int>(vector.parts.size()) != bytes) {
    l.unmodelled("the number of registers");
  }
  if (part_bytes >= 4) {
    Draft& draft = l.emit(move_planes, OpClass::kMove);
    l.writes_list(draft, to, to.kind == Operand::kVector ? part_bytes : bytes);
    const size_t written = draft.list.size();
    l.reads_list(draft, from, from.kind == Operand::kVector ? part_bytes : bytes);
    if (draft.list.size() != 2 * written) l.unmodelled("the number of registers");
    return;
  }
  if (bytes > 8) l.unmodelled("parts of 8 or 16 bits of more than 64");
  Draft& draft =
      l.emit(from.kind == Operand::kVector ? pack_narrow : unpack_narrow, OpClass::kMove);
  draft.op.width = static_cast<uint8_t>(part_bytes);
  if (from.kind == Operand::kVector) {
    l.writes(draft, kD, to, bytes);
    l.reads_list(draft, from, part_bytes);
  } else {
    l.writes_list(draft, to, part_bytes);
    l.reads(draft, kA, from, bytes);
  }
}

}  // namespace

void lower_mov(Lowering& l) {
  const Type type = l.last_type();
  if (type == Type::kPred) return lower_pred_logic(l);
  const Operand &to = l.operand(0), &from = l.operand(1);
  if (from.kind == Operand::kSpecial && !special_is_fixed(from.special)) return lower_clock(l);
  const int bytes = l.last_type_bytes();
  if (to.kind == Operand::kVector || from.kind == Operand::kVector || bytes > 8) {
    return lower_vector_move(l, to, from, bytes);
  }
  emit_lanes(l, OpClass::kMove, bytes == 8 ? lanes().mov64 : lanes().mov32, {bytes, bytes, 4, 4});
}

// ---- Conversions ---------------------------------------------------------------------------------------

namespace {

struct Conversion {
  Type to = Type::kNone, from = Type::kNone;
  int rounding = FE_TONEAREST;  // of floating results, or to an integer
  bool to_integral = false;     // .rni .rzi .rmi .rpi
  bool ftz = false, saturate = false, relu = false, finite = false;
};

uint32_t encode(const Conversion& c) {
  const int rounding = c.rounding == FE_TONEAREST    ? 0
                       : c.rounding == FE_TOWARDZERO ? 1
                       : c.rounding == FE_DOWNWARD   ? 2
                                                     : 3;
  return static_cast<uint32_t>(c.to) | static_cast<uint32_t>(c.from) << 5 |
         static_cast<uint32_t>(rounding) << 10 | uint32_t{c.to_integral} << 12 |
         uint32_t{c.ftz} << 13 | uint32_t{c.saturate} << 14 | uint32_t{c.relu} << 15 |
         uint32_t{c.finite} << 16;
}

Conversion decode(uint32_t bits) {
  constexpr int kRounding[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  return {static_cast<Type>(bits & 31), static_cast<Type>(bits >> 5 & 31),
          kRounding[bits >> 10 & 3],    (bits >> 12 & 1) != 0,
          (bits >> 13 & 1) != 0,        (bits >> 14 & 1) != 0,
          (bits >> 15 & 1) != 0,        (bits >> 16 & 1) != 0};
}

class RoundingMode {
 public:
  explicit RoundingMode(int mode) : before_(std::fegetround()) { std::fesetround(mode); }
  ~RoundingMode() { std::fesetround(before_); }
  RoundingMode(const RoundingMode&) = delete;
  RoundingMode& operator=(const RoundingMode&) = delete;

 private:
  int before_;
};

double float_value(uint64_t bits, Type type) {
  switch (type) {
    case Type::kF64:
      return from_bits<double>(bits);
    case Type::kF16:
      return half_value(bits, false);
    case Type::kBF16:
      return half_value(bits, true);
    default:
      return from_bits<float>(bits);
  }
}

/// Towards zero to 16 bits: the bits that do not fit are dropped.
uint16_t truncated_half(float value, bool bf16) {
  const uint16_t nearest = half_bits(value, bf16);
  if (std::isnan(value)) return nearest;
  const float back = half_value(nearest, bf16);
  return std::fabs(back) > std::fabs(value) ? static_cast<uint16_t>(nearest - 1) : nearest;
}

uint64_t to_float(double value, const Conversion& c) {
  if (c.to_integral) value = std::nearbyint(value);
  if (c.saturate) value = std::isnan(value) ? 0 : std::fmin(std::fmax(value, 0.0), 1.0);
  if (c.relu && std::signbit(value)) value = 0;  // -0 too
  if (c.to == Type::kF64) return to_bits(value);
  volatile double wide = value;
  auto narrow = static_cast<float>(wide);
  if (c.ftz && std::fpclassify(narrow) == FP_SUBNORMAL) narrow = std::copysign(0.0f, narrow);
  if (c.to == Type::kF32) return std::isnan(narrow) ? 0x7fffffffu : to_bits(narrow);
  const bool bf16 = c.to == Type::kBF16;
  uint16_t half =
      c.rounding == FE_TOWARDZERO ? truncated_half(narrow, bf16) : half_bits(narrow, bf16);
  const uint16_t infinity = bf16 ? 0x7f80 : 0x7c00;
  if (c.finite && (half & 0x7fff) == infinity) half = static_cast<uint16_t>(half - 1);
  return half;
}

/// Out-of-range values go to the nearest bound.
template <class T>
uint64_t to_integer(double value) {
  constexpr double kLow = static_cast<double>(std::numeric_limits<T>::min());
  constexpr double kHigh = static_cast<double>(std::numeric_limits<T>::max());
  if (value <= kLow) return to_bits(std::numeric_limits<T>::min());
  if (value >= kHigh) return to_bits(std::numeric_limits<T>::max());
  return to_bits(static_cast<T>(value));
}

uint64_t float_to_integer(double value, const Conversion& c) {
  if (std::isnan(value)) {
    const bool wide = c.from == Type::kF64 || ptx::type_bytes(c.to) == 8;
    return wide ? uint64_t{1} << (8 * ptx::type_bytes(c.to) - 1) : 0;
  }
  if (c.ftz && c.from == Type::kF32 && std::fabs(value) < 0x1p-126) value = 0;
  value = std::nearbyint(value);
  switch (c.to) {
    case Type::kS8:
      return to_integer<int8_t>(value);
    case Type::kU8:
      return to_integer<uint8_t>(value);
    case Type::kS16:
      return to_integer<int16_t>(value);
    case Type::kU16:
      return to_integer<uint16_t>(value);
    case Type::kS32:
      return to_integer<int32_t>(value);
    case Type::kU32:
      return to_integer<uint32_t>(value);
    case Type::kS64:
      return to_integer<int64_t>(value);
    default:
      return to_integer<uint64_t>(value);
  }
}

int64_t integer_value(uint64_t bits, Type type) {
  switch (type) {
    case Type::kS8:
      return from_bits<int8_t>(bits);
    case Type::kS16:
      return from_bits<int16_t>(bits);
    case Type::kS32:
      return from_bits<int32_t>(bits);
    case Type::kU8:
      return from_bits<uint8_t>(bits);
    case Type::kU16:
      return from_bits<uint16_t>(bits);
    case Type::kU32:
      return from_bits<uint32_t>(bits);
    default:
      return static_cast<int64_t>(bits);
  }
}

uint64_t integer_to_float(uint64_t bits, const Conversion& c) {
  const int64_t value = integer_value(bits, c.from);
  volatile double wide =
      c.from == Type::kU64 ? static_cast<double>(bits) : static_cast<double>(value);
  if (c.to != Type::kF32) return to_float(wide, c);
  volatile float narrow =
      c.from == Type::kU64 ? static_cast<float>(bits) : static_cast<float>(value);
  return to_bits(float{narrow});
}

/// Integers to integers with .sat: clamped to the range of the result.
uint64_t saturated_integer(uint64_t bits, const Conversion& c) {
  const auto value = static_cast<long double>(
      c.from == Type::kU64 ? static_cast<long double>(bits)
                           : static_cast<long double>(integer_value(bits, c.from)));
  const int width = 8 * ptx::type_bytes(c.to);
  const long double high = std::ldexp(1.0L, is_signed(c.to) ? width - 1 : width) - 1;
  const long double low = is_signed(c.to) ? -high - 1 : 0;
  const long double clamped = std::fmin(std::fmax(value, low), high);
  const uint64_t mask = width == 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
  return (clamped < 0 ? static_cast<uint64_t>(static_cast<int64_t>(clamped))
                      : static_cast<uint64_t>(clamped)) &
         mask;
}

uint64_t convert(const Conversion& c, uint64_t bits) {
  const RoundingMode rounding(c.rounding);
  const bool from_integer = is_integer(c.from), into_integer = is_integer(c.to);
  if (from_integer && into_integer) return saturated_integer(bits, c);
  if (from_integer) return integer_to_float(bits, c);
  const double value = float_value(bits, c.from);
  return into_integer ? float_to_integer(value, c) : to_float(value, c);
}

/// mode 2: two sources, packed into one result, the first in the upper half.
void run_convert(Warp& w, const Op& op) {
  const Conversion c = decode(op.extra);
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const auto value = [&](int place) {
      return uint64_t{w.source(op.r[place + 1])[l]} << 32 | w.source(op.r[place])[l];
    };
    uint64_t result = convert(c, value(kA));
    if (op.mode == 2) result = result << 16 | convert(c, value(kB));
    w.target(op.r[kD])[l] = static_cast<uint32_t>(result);
    if (op.width > 4) w.target(op.r[kD + 1])[l] = static_cast<uint32_t>(result >> 32);
  }
}

void lower_integer_cast(Lowering& l, Type to, Type from) {
  const int to_bytes = ptx::type_bytes(to), from_bytes = ptx::type_bytes(from);
  const bool sign = is_signed(from);
  Draft& draft =
      emit_lanes(l, OpClass::kConvert, sign ? lanes().cvt_sign_extend : lanes().cvt_zero_extend,
                 {to_bytes, from_bytes, 4, 4});
  draft.op.width = static_cast<uint8_t>(std::min(to_bytes, from_bytes));
  draft.op.mode = to_bytes == 8;
  if (to_bytes < 4) draft.op.extra = (1u << (8 * to_bytes)) - 1;
}

/// The two types of a conversion: the last two parts that name types.
void types_of(const Lowering& l, Type* to, Type* from) {
  for (size_t i = 1; !l.part(i).empty(); ++i) {
    const Type type = ptx::type_named(l.part(i));
    if (type == Type::kNone) continue;
    *to = *from;
    *from = type;
  }
}

/// The vector handler of the conversions that kernels do in bulk; null for others.
Handler vector_conversion(const Lowering& l, Type to, Type from, const Conversion& c) {
  const LaneHandlers& h = lanes();
  if (c.saturate || c.relu || c.finite || c.to_integral || c.rounding != FE_TONEAREST)
    return nullptr;
  if (from == Type::kF32 && l.operand_count() == 3) {
    return to == Type::kBF16x2 ? h.cvt_bf16x2_f32 : to == Type::kF16x2 ? h.cvt_f16x2_f32 : nullptr;
  }
  if (from == Type::kF32 && to == Type::kBF16) return h.cvt_bf16_f32;
  if (from == Type::kBF16 && to == Type::kF32 && !c.ftz) return h.cvt_f32_bf16;
  if (from == Type::kS32 && to == Type::kF32) return h.cvt_f32_s32;
  if (from == Type::kU32 && to == Type::kF32) return h.cvt_f32_u32;
  return nullptr;
}

}  // namespace

void lower_cvt(Lowering& l) {
  Conversion c;
  types_of(l, &c.to, &c.from);
  c.to_integral = l.has("rni") || l.has("rzi") || l.has("rmi") || l.has("rpi");
  c.rounding = l.has("rz") || l.has("rzi")   ? FE_TOWARDZERO
               : l.has("rm") || l.has("rmi") ? FE_DOWNWARD
               : l.has("rp") || l.has("rpi") ? FE_UPWARD
                                             : FE_TONEAREST;
  c.ftz = l.has("ftz");
  c.saturate = l.has("sat");
  c.relu = l.has("relu");
  c.finite = l.has("satfinite");
  for (const Type type : {c.to, c.from}) {
    if (ptx::type_bytes(type) == 0 || type == Type::kB128 || type == Type::kF32x2) l.unmodelled();
  }
  if (is_integer(c.to) && is_integer(c.from) && !c.saturate)
    return lower_integer_cast(l, c.to, c.from);
  const int to_bytes = ptx::type_bytes(c.to), from_bytes = ptx::type_bytes(c.from);
  if (const Handler handler = vector_conversion(l, c.to, c.from, c)) {
    emit_lanes(l, OpClass::kConvert, handler, {to_bytes, from_bytes, from_bytes, 4});
    return;
  }
  const bool pair = c.to == Type::kF16x2 || c.to == Type::kBF16x2;
  if (pair) c.to = c.to == Type::kF16x2 ? Type::kF16 : Type::kBF16;
  if (c.from == Type::kF16x2 || c.from == Type::kBF16x2 || (pair && l.operand_count() != 3))
    l.unmodelled();
  Draft& draft =
      emit_lanes(l, OpClass::kConvert, run_convert, {to_bytes, from_bytes, from_bytes, 4});
  draft.op.extra = encode(c);
  draft.op.width = static_cast<uint8_t>(to_bytes);
  draft.op.mode = pair ? 2 : 1;
}

// ---- Addresses -----------------------------------------------------------------------------------------

namespace {

uint64_t shared_to_generic(uint64_t a, uint64_t, uint64_t) {
  return (a & 0xffffffffu) | kSharedWindow;
}
uint64_t local_to_generic(uint64_t a, uint64_t, uint64_t) {
  return (a & 0xffffffffu) | kLocalWindow;
}
uint64_t from_window(uint64_t a, uint64_t, uint64_t) {
  return a & 0xffffffffu;
}
uint64_t map_rank(uint64_t a, uint64_t b, uint64_t) {
  return (a & ~uint64_t{0xff000000u}) | (b & 0xff) << 24;
}
uint64_t rank_in(uint64_t a, uint64_t, uint64_t) {
  return a >> 24 & 0xff;
}

/// op.imm: the window; 0 asks for global memory.
void is_in_space(Warp& w, const Op& op) {
  const uint32_t* const high = w.source(op.r[kA + 1]);
  const uint32_t* const low = w.source(op.r[kA]);
  uint32_t mask = 0;
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    const uint64_t window = (uint64_t{high[l]} << 32) & kWindowMask;
    const bool own = op.mode == 0 || rank_of(low[l]) == w.cta->rank;
    if (window == static_cast<uint64_t>(op.imm) && own) mask |= 1u << l;
  }
  w.set_pred(op.p[0], mask);
}

}  // namespace

void lower_cvta(Lowering& l) {
  const std::string_view name = l.part(0);
  const int bytes = ptx::type_bytes(l.last_type());
  const bool shared = l.has("shared") || l.has("shared::cta") || l.has("shared::cluster");
  const auto emit = [&](ScalarFunction function) {
    emit_scalar(l, OpClass::kInteger, function, {bytes, bytes, 4, 4});
  };
  if (name == "isspacep") {
    Draft& draft = l.emit(is_in_space, OpClass::kPredicate);
    l.writes_pred(draft, 0, l.operand(0));
    l.reads(draft, kA, l.operand(1), 8);
    draft.op.imm = static_cast<int64_t>(shared ? kSharedWindow : l.has("local") ? kLocalWindow : 0);
    draft.op.mode = shared && !l.has("shared::cluster");
  } else if (name == "mapa") {
    emit(map_rank);
  } else if (name == "getctarank") {
    emit_scalar(l, OpClass::kInteger, rank_in, {4, l.part(1) == "u64" || bytes == 8 ? 8 : 4, 4, 4});
  } else if (!shared && !l.has("local")) {
    emit_lanes(l, OpClass::kMove, bytes == 8 ? lanes().mov64 : lanes().mov32, {bytes, bytes, 4, 4});
  } else if (l.has("to")) {
    emit(from_window);
  } else {
    emit(shared ? shared_to_generic : local_to_generic);
  }
}

}  // namespace fa4::emulator
