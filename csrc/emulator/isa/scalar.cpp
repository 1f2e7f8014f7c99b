#include "csrc/emulator/isa/scalar.h"

#include <cmath>

namespace fa4::emulator {

namespace {

void run_scalar(Warp& w, const Op& op) {
  const auto function = reinterpret_cast<ScalarFunction>(op.imm);
  const uint32_t* source[6];
  for (int k = 0; k < 6; ++k) source[k] = w.source(op.r[kA + k]);
  uint32_t* const low = w.target(op.r[kD]);
  uint32_t* const high = op.width > 4 ? w.target(op.r[kD + 1]) : nullptr;
  for (uint32_t lanes = w.exec; lanes != 0; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const auto value = [&](int k) { return uint64_t{source[k + 1][l]} << 32 | source[k][l]; };
    const uint64_t result = function(value(0), value(2), value(4));
    low[l] = static_cast<uint32_t>(result);
    if (high != nullptr) high[l] = static_cast<uint32_t>(result >> 32);
  }
}

}  // namespace

Draft& emit_lanes(Lowering& l, OpClass op_class, Handler handler, OperandBytes bytes) {
  Draft& draft = l.emit(handler, op_class);
  l.writes(draft, kD, l.operand(0), bytes.d);
  const int sizes[] = {bytes.a, bytes.b, bytes.c};
  for (size_t k = 0; k < 3; ++k) {
    const auto place = static_cast<size_t>(kA) + 2 * k;
    if (k + 1 < l.operand_count() && !l.is_pred(l.operand(k + 1))) {
      l.reads(draft, static_cast<int>(place), l.operand(k + 1), sizes[k]);
    } else {
      draft.r[place] = draft.r[place + 1] = l.constant(0);
    }
  }
  return draft;
}

Draft& emit_scalar(Lowering& l, OpClass op_class, ScalarFunction function, OperandBytes bytes) {
  if (function == nullptr) l.unmodelled();
  Draft& draft = emit_lanes(l, op_class, run_scalar, bytes);
  draft.op.imm = reinterpret_cast<int64_t>(function);
  draft.op.width = static_cast<uint8_t>(bytes.d);
  return draft;
}

bool is_integer(ptx::Type type) {
  return type >= ptx::Type::kB8 && type <= ptx::Type::kS64;
}

bool is_signed(ptx::Type type) {
  return type >= ptx::Type::kS8 && type <= ptx::Type::kS64;
}

float half_value(uint64_t bits, bool bf16) {
  if (bf16) return std::bit_cast<float>(static_cast<uint32_t>(bits & 0xffff) << 16);
  const auto exponent = static_cast<int>(bits >> 10 & 31);
  const auto significand = static_cast<float>(bits & 0x3ff);
  const float magnitude = exponent == 31  ? (significand == 0 ? INFINITY : NAN)
                          : exponent == 0 ? std::ldexp(significand, -24)
                                          : std::ldexp(significand + 1024.0f, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

uint16_t half_bits(float value, bool bf16) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return 0x7fff;
  if (bf16) return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  // One unit in the last place of fp16 is 2^(exponent - 11), and no less than 2^-24.
  const int unit = exponent - 11 > -24 ? exponent - 11 : -24;
  const float scaled = std::nearbyint(std::ldexp(magnitude, -unit));
  const auto units = static_cast<uint32_t>(scaled);
  const auto encoded = unit == -24 ? units : (static_cast<uint32_t>(unit + 24) << 10) + units;
  return static_cast<uint16_t>(sign | encoded);
}

}  // namespace fa4::emulator
