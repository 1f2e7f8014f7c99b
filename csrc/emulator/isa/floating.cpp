// Floating point: fp32 through the vector handlers, other types and rounding modes lane by lane, and the
// approximate functions.
#include <cfenv>
#include <cmath>

#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/lanes.h"
#include "csrc/emulator/isa/scalar.h"

namespace fa4::emulator {

using ptx::Type;

namespace {

enum class FloatOp : uint8_t {
  kAdd,
  kSub,
  kMul,
  kFma,
  kMin,
  kMax,
  kNeg,
  kAbs,
  kDiv,
  kSqrt,
  kRcp,
  kCount
};

/// A form that has no vector handler; described in Op::extra, computed in double.
struct Form {
  FloatOp op = FloatOp::kAdd;
  Type type = Type::kF32;    // of the result and of sources, unless source says otherwise
  Type source = Type::kF32;  // of a (and b) in mixed forms
  int rounding = FE_TONEAREST;
  bool ftz = false, saturate = false, relu = false, nan = false, xor_sign = false;
  bool three = false;  // min and max of three
};
// Packed into Op::extra: four bits op, five type, five source, two rounding, then the flags.
uint32_t encode(const Form& form) {
  const int rounding = form.rounding == FE_TONEAREST    ? 0
                       : form.rounding == FE_TOWARDZERO ? 1
                       : form.rounding == FE_DOWNWARD   ? 2
                                                        : 3;
  return static_cast<uint32_t>(form.op) | static_cast<uint32_t>(form.type) << 4 |
         static_cast<uint32_t>(form.source) << 9 | static_cast<uint32_t>(rounding) << 14 |
         uint32_t{form.ftz} << 16 | uint32_t{form.saturate} << 17 | uint32_t{form.relu} << 18 |
         uint32_t{form.nan} << 19 | uint32_t{form.xor_sign} << 20 | uint32_t{form.three} << 21;
}
Form decode(uint32_t bits) {
  constexpr int kRounding[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  return {static_cast<FloatOp>(bits & 15),
          static_cast<Type>(bits >> 4 & 31),
          static_cast<Type>(bits >> 9 & 31),
          kRounding[bits >> 14 & 3],
          (bits >> 16 & 1) != 0,
          (bits >> 17 & 1) != 0,
          (bits >> 18 & 1) != 0,
          (bits >> 19 & 1) != 0,
          (bits >> 20 & 1) != 0,
          (bits >> 21 & 1) != 0};
}

float flush(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

double value_of(uint64_t bits, Type type, bool ftz) {
  switch (type) {
    case Type::kF64:
      return from_bits<double>(bits);
    case Type::kF16:
      return half_value(bits, false);
    case Type::kBF16:
      return half_value(bits, true);
    default:
      return ftz ? flush(from_bits<float>(bits)) : from_bits<float>(bits);
  }
}

// volatile: the compiler must not compute these in another rounding mode than the one set.
template <class T>
T compute(FloatOp op, T a_in, T b_in, T c_in) {
  volatile T a = a_in, b = b_in, c = c_in, result{};
  switch (op) {
    case FloatOp::kAdd:
      result = a + b;
      break;
    case FloatOp::kSub:
      result = a - b;
      break;
    case FloatOp::kMul:
      result = a * b;
      break;
    case FloatOp::kFma:
      result = std::fma(T{a}, T{b}, T{c});
      break;
    case FloatOp::kDiv:
      result = a / b;
      break;
    case FloatOp::kSqrt:
      result = std::sqrt(T{a});
      break;
    case FloatOp::kRcp:
      result = T{1} / a;
      break;
    default:
      break;
  }
  return result;
}

template <class T>
T extremum(const Form& form, T a, T b) {
  const bool min = form.op == FloatOp::kMin;
  if (std::isnan(a) || std::isnan(b)) {
    if (form.nan || (std::isnan(a) && std::isnan(b))) return std::numeric_limits<T>::quiet_NaN();
    return std::isnan(a) ? b : a;
  }
  T result = a == b ? (std::signbit(a) == min ? a : b) : (a < b) == min ? a : b;
  if (form.xor_sign)
    result = std::copysign(result, std::signbit(a) != std::signbit(b) ? T{-1} : T{1});
  return result;
}

/// fp16 and bf16 results are exact in double up to one product or sum, so one rounding from there.
uint64_t round_to(double value, Type type, const Form& form) {
  if (form.relu && !(value > 0)) value = std::isnan(value) ? value : 0;
  if (form.saturate) value = !(value > 0) ? 0 : value > 1 ? 1 : value;  // NaN and -0 too
  switch (type) {
    case Type::kF64:
      return to_bits(value);
    case Type::kF16:
    case Type::kBF16: {
      // double to fp32 first would round twice; rounding to odd in fp32 keeps the second one right.
      auto narrow = static_cast<float>(value);
      if (static_cast<double>(narrow) != value && std::isfinite(narrow) && !std::isnan(value)) {
        auto bits = std::bit_cast<uint32_t>(narrow);
        if (std::fabs(static_cast<double>(narrow)) > std::fabs(value)) --bits;
        narrow = std::bit_cast<float>(bits | 1);
      }
      return half_bits(narrow, type == Type::kBF16);
    }
    default: {
      auto narrow = static_cast<float>(value);
      if (form.ftz) narrow = flush(narrow);
      return std::isnan(narrow) ? 0x7fffffffu : to_bits(narrow);
    }
  }
}

uint64_t apply(const Form& form, uint64_t a, uint64_t b, uint64_t c) {
  const Type source = form.source;
  const bool half = form.type == Type::kF16 || form.type == Type::kBF16;
  if (half && (form.op == FloatOp::kNeg || form.op == FloatOp::kAbs)) {
    return form.op == FloatOp::kNeg ? (a ^ 0x8000) & 0xffff : a & 0x7fff;
  }
  // In mixed sums ("add.f32.bf16") the second operand has the type of the result.
  const bool sum = form.op == FloatOp::kAdd || form.op == FloatOp::kSub;
  const double x = value_of(a, source, form.ftz),
               y = value_of(b, sum ? form.type : source, form.ftz);
  const double z = value_of(c, form.type, form.ftz);
  if (form.op == FloatOp::kNeg) return round_to(-x, form.type, form);
  if (form.op == FloatOp::kAbs) return round_to(std::fabs(x), form.type, form);
  if (form.op == FloatOp::kMin || form.op == FloatOp::kMax) {
    const double two = extremum(form, x, y);
    return round_to(form.three ? extremum(form, two, z) : two, form.type, form);
  }
  if (half) return round_to(compute(form.op, x, y, z), form.type, form);
  const int before = std::fegetround();
  std::fesetround(form.rounding);
  const double result =
      form.type == Type::kF64
          ? compute(form.op, x, y, z)
          : static_cast<double>(compute(form.op, static_cast<float>(x), static_cast<float>(y),
                                        static_cast<float>(z)));
  std::fesetround(before);
  return round_to(result, form.type, form);
}

/// width: bytes of the operands; mode: elements per operand (2 for f16x2, bf16x2, f32x2).
void general_float(Warp& w, const Op& op) {
  const Form form = decode(op.extra);
  const int element_bits = 8 * op.width / op.mode;
  const uint64_t mask = element_bits == 64 ? ~uint64_t{0} : (uint64_t{1} << element_bits) - 1;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const auto value = [&](int place) {
      return uint64_t{w.source(op.r[place + 1])[l]} << 32 | w.source(op.r[place])[l];
    };
    const uint64_t a = value(kA), b = value(kB), c = value(kC);
    uint64_t result = 0;
    for (int i = 0; i < op.mode; ++i) {
      const int shift = i * element_bits;
      const bool mixed = form.source != form.type;
      result |= apply(form, mixed ? a : a >> shift & mask, mixed ? b : b >> shift & mask,
                      mixed ? c : c >> shift & mask)
                << shift;
    }
    w.target(op.r[kD])[l] = static_cast<uint32_t>(result);
    if (op.width == 8) w.target(op.r[kD + 1])[l] = static_cast<uint32_t>(result >> 32);
  }
}

FloatOp float_op(Lowering& l) {
  constexpr std::pair<std::string_view, FloatOp> kNames[] = {
      {"add", FloatOp::kAdd}, {"sub", FloatOp::kSub},   {"mul", FloatOp::kMul},
      {"fma", FloatOp::kFma}, {"mad", FloatOp::kFma},   {"min", FloatOp::kMin},
      {"max", FloatOp::kMax}, {"neg", FloatOp::kNeg},   {"abs", FloatOp::kAbs},
      {"div", FloatOp::kDiv}, {"sqrt", FloatOp::kSqrt}, {"rcp", FloatOp::kRcp}};
  for (const auto& [name, op] : kNames) {
    if (l.part(0) == name) return op;
  }
  l.unmodelled();
}

int rounding_of(const Lowering& l) {
  return l.has("rz")   ? FE_TOWARDZERO
         : l.has("rm") ? FE_DOWNWARD
         : l.has("rp") ? FE_UPWARD
                       : FE_TONEAREST;
}

Handler f32_handler(FloatOp op, bool three, bool ftz) {
  const LaneHandlers& h = lanes();
  switch (op) {
    case FloatOp::kAdd:
      return ftz ? h.add_f32_ftz : h.add_f32;
    case FloatOp::kSub:
      return ftz ? h.sub_f32_ftz : h.sub_f32;
    case FloatOp::kMul:
      return ftz ? h.mul_f32_ftz : h.mul_f32;
    case FloatOp::kFma:
      return ftz ? h.fma_f32_ftz : h.fma_f32;
    case FloatOp::kMin:
      return three ? (ftz ? h.min3_f32_ftz : h.min3_f32) : (ftz ? h.min_f32_ftz : h.min_f32);
    case FloatOp::kMax:
      return three ? (ftz ? h.max3_f32_ftz : h.max3_f32) : (ftz ? h.max_f32_ftz : h.max_f32);
    case FloatOp::kNeg:
      return ftz ? nullptr : h.neg_f32;
    case FloatOp::kAbs:
      return ftz ? nullptr : h.abs_f32;
    default:
      return nullptr;
  }
}

Handler f32x2_handler(FloatOp op, bool ftz) {
  const LaneHandlers& h = lanes();
  switch (op) {
    case FloatOp::kAdd:
      return ftz ? h.add_f32x2_ftz : h.add_f32x2;
    case FloatOp::kSub:
      return ftz ? h.sub_f32x2_ftz : h.sub_f32x2;
    case FloatOp::kMul:
      return ftz ? h.mul_f32x2_ftz : h.mul_f32x2;
    case FloatOp::kFma:
      return ftz ? h.fma_f32x2_ftz : h.fma_f32x2;
    default:
      return nullptr;
  }
}

/// The vector handler for a form, null where there is none.
Handler vector_handler(Lowering& l, FloatOp op, Type type) {
  const bool ftz = l.has("ftz");
  if (l.has("sat") || l.has("relu") || l.has("NaN") || l.has("xorsign")) return nullptr;
  const int rounding = rounding_of(l);
  const LaneHandlers& h = lanes();
  if (rounding == FE_DOWNWARD && op == FloatOp::kAdd) {
    if (type == Type::kF32) return ftz ? h.add_down_f32_ftz : h.add_down_f32;
    if (type == Type::kF32x2) return ftz ? h.add_down_f32x2_ftz : h.add_down_f32x2;
  }
  if (rounding != FE_TONEAREST) return nullptr;
  if (type == Type::kF32x2) return f32x2_handler(op, ftz);
  return type == Type::kF32 ? f32_handler(op, l.operand_count() == 4, ftz) : nullptr;
}

void emit_general(Lowering& l, FloatOp op, Type type, Type source) {
  Form form;
  form.three = (op == FloatOp::kMin || op == FloatOp::kMax) && l.operand_count() == 4;
  form.op = op;
  form.rounding = rounding_of(l);
  form.ftz = l.has("ftz");
  form.saturate = l.has("sat");
  form.relu = l.has("relu");
  form.nan = l.has("NaN");
  form.xor_sign = l.has("xorsign");
  const bool pair = type == Type::kF16x2 || type == Type::kBF16x2 || type == Type::kF32x2;
  const auto element = [](Type t) {
    return t == Type::kF16x2    ? Type::kF16
           : t == Type::kBF16x2 ? Type::kBF16
           : t == Type::kF32x2  ? Type::kF32
                                : t;
  };
  form.type = element(type);
  form.source = element(source);
  const int bytes = ptx::type_bytes(type);
  const int source_bytes = ptx::type_bytes(source);
  const bool sum = op == FloatOp::kAdd || op == FloatOp::kSub;
  Draft& draft = emit_lanes(l, OpClass::kFloat, general_float,
                            {bytes, source_bytes, sum ? bytes : source_bytes, bytes});
  draft.op.extra = encode(form);
  draft.op.width = static_cast<uint8_t>(bytes);
  draft.op.mode = pair ? 2 : 1;
}

/// Result and source types: "add.f32.bf16" mixes two.
void types_of(const Lowering& l, Type* type, Type* source) {
  *source = l.last_type();
  *type = *source;
  for (size_t i = 1; !l.part(i).empty(); ++i) {
    if (const Type first = ptx::type_named(l.part(i)); first != Type::kNone) {
      *type = first;
      return;
    }
  }
}

}  // namespace

void lower_float_arithmetic(Lowering& l) {
  Type type = Type::kNone, source = Type::kNone;
  types_of(l, &type, &source);
  if (ptx::type_bytes(type) == 0 || is_integer(type)) l.unmodelled();
  const FloatOp op = float_op(l);
  const Handler handler = type == source ? vector_handler(l, op, type) : nullptr;
  if (handler == nullptr) return emit_general(l, op, type, source);
  const int bytes = ptx::type_bytes(type);
  emit_lanes(l, OpClass::kFloat, handler, {bytes, bytes, bytes, bytes});
}

void lower_fma(Lowering& l) {
  lower_float_arithmetic(l);
}

void lower_float_division(Lowering& l) {
  const Type type = l.last_type();
  if (l.part(0) != "div" || (type != Type::kF32 && type != Type::kF64)) l.unmodelled();
  emit_general(l, FloatOp::kDiv, type, type);  // .approx and .full: the nearest float
}

// ---- Approximate functions -----------------------------------------------------------------------------

namespace {

enum class Approx : uint8_t { kEx2, kLg2, kRcp, kRsqrt, kSqrt, kSin, kCos, kTanh };

double exact(Approx function, double x) {
  switch (function) {
    case Approx::kEx2:
      return std::exp2(x);
    case Approx::kLg2:
      return std::log2(x);
    case Approx::kRcp:
      return 1.0 / x;
    case Approx::kRsqrt:
      return 1.0 / std::sqrt(x);
    case Approx::kSqrt:
      return std::sqrt(x);
    case Approx::kSin:
      return std::sin(x);
    case Approx::kCos:
      return std::cos(x);
    case Approx::kTanh:
      return std::tanh(x);
  }
  return x;
}

/// The float nearest to the exact result, off by up to the launch's perturbation. lg2 has an absolute
/// error on hardware, the others a relative one.
float approximate(const Warp& w, const Op& op, float x, uint32_t lane) {
  const auto function = static_cast<Approx>(op.mode);
  const double value = exact(function, x);
  const double size = w.cta->cluster->options->perturbation;
  if (size == 0) return static_cast<float>(value);
  const uint64_t noise = mix(w.cta->cluster->options->seed ^ std::bit_cast<uint32_t>(x) ^
                             uint64_t{lane} << 32 ^ uint64_t{op.line} << 40);
  const double off = size * (static_cast<double>(noise >> 11) * 0x1p-52 - 1.0);
  return static_cast<float>(function == Approx::kLg2 ? value + off : value * (1.0 + off));
}

void approx_f32(Warp& w, const Op& op) {
  const uint32_t* const a = w.source(op.r[kA]);
  uint32_t* const d = w.target(op.r[kD]);
  const bool ftz = op.extra != 0;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    const float x = std::bit_cast<float>(a[l]);
    const float result = approximate(w, op, ftz ? flush(x) : x, l);
    const float stored = ftz ? flush(result) : result;
    d[l] = std::isnan(stored) ? 0x7fffffffu : std::bit_cast<uint32_t>(stored);
  }
}

/// 16-bit forms: width elements of 16 bits, extra: bf16.
void approx_half(Warp& w, const Op& op) {
  const bool bf16 = op.extra != 0;
  const uint32_t* const a = w.source(op.r[kA]);
  uint32_t* const d = w.target(op.r[kD]);
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const auto l = static_cast<uint32_t>(__builtin_ctz(lanes));
    uint32_t result = 0;
    for (int i = 0; i < op.width; ++i) {
      const float x = half_value(a[l] >> (16 * i) & 0xffff, bf16);
      result |= static_cast<uint32_t>(half_bits(approximate(w, op, x, l), bf16)) << (16 * i);
    }
    d[l] = result;
  }
}

// These two have vector handlers, for launches without perturbation.
void ex2_or_perturbed(Warp& w, const Op& op) {
  if (w.cta->cluster->options->perturbation != 0) return approx_f32(w, op);
  op.extra != 0 ? lanes().ex2_f32_ftz(w, op) : lanes().ex2_f32(w, op);
}
void rcp_or_perturbed(Warp& w, const Op& op) {
  if (w.cta->cluster->options->perturbation != 0) return approx_f32(w, op);
  op.extra != 0 ? lanes().rcp_f32_ftz(w, op) : lanes().rcp_f32(w, op);
}

}  // namespace

void lower_approx(Lowering& l) {
  constexpr std::pair<std::string_view, Approx> kNames[] = {
      {"ex2", Approx::kEx2},     {"lg2", Approx::kLg2},   {"rcp", Approx::kRcp},
      {"rsqrt", Approx::kRsqrt}, {"sqrt", Approx::kSqrt}, {"sin", Approx::kSin},
      {"cos", Approx::kCos},     {"tanh", Approx::kTanh}};
  const Type type = l.last_type();
  const std::string_view name = l.part(0);
  if (!l.has("approx") && (name == "rcp" || name == "sqrt")) {  // .rn and the other roundings
    return emit_general(l, name == "rcp" ? FloatOp::kRcp : FloatOp::kSqrt, type, type);
  }
  Approx function = Approx::kEx2;
  for (const auto& [known, value] : kNames) {
    if (name == known) function = value;
  }
  const int bytes = ptx::type_bytes(type);
  if (type == Type::kF32) {
    const Handler handler = function == Approx::kEx2   ? ex2_or_perturbed
                            : function == Approx::kRcp ? rcp_or_perturbed
                                                       : approx_f32;
    Draft& draft = emit_lanes(l, OpClass::kApprox, handler, {});
    draft.op.mode = static_cast<uint8_t>(function);
    draft.op.extra = l.has("ftz");
    return;
  }
  const bool bf16 = type == Type::kBF16 || type == Type::kBF16x2;
  if (!bf16 && type != Type::kF16 && type != Type::kF16x2) l.unmodelled();
  Draft& draft = emit_lanes(l, OpClass::kApprox, approx_half, {bytes, bytes, bytes, bytes});
  draft.op.mode = static_cast<uint8_t>(function);
  draft.op.extra = bf16;
  draft.op.width = static_cast<uint8_t>(bytes / 2);
}

namespace {

uint64_t copysign32(uint64_t a, uint64_t b, uint64_t) {
  return (a & 0x80000000u) | (b & 0x7fffffffu);
}

}  // namespace

void lower_copysign(Lowering& l) {
  if (l.last_type() != Type::kF32) l.unmodelled();
  emit_scalar(l, OpClass::kFloat, copysign32, {});
}

}  // namespace fa4::emulator
