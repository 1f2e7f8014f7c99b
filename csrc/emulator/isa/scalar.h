// Forms that kernels execute rarely: one function of up to three values, called per lane.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "csrc/emulator/lower/lowering.h"
#include "csrc/emulator/machine/machine.h"

namespace fa4::emulator {

/// Values arrive in the low bits, zero-extended; the result leaves the same way.
using ScalarFunction = uint64_t (*)(uint64_t a, uint64_t b, uint64_t c);

/// Bytes of the operands of an instruction: result and sources.
struct OperandBytes {
  int d = 4, a = 4, b = 4, c = 4;
};

/// d = function(a, b, c), for the operands in the order of the instruction.
Draft& emit_scalar(Lowering& l, OpClass op_class, ScalarFunction function, OperandBytes bytes);

/// A handler of lanes.h (or one like them) on the operands in the order of the instruction.
Draft& emit_lanes(Lowering& l, OpClass op_class, Handler handler, OperandBytes bytes);

/// The value of a register as a C++ type, and back.
template <class T>
T from_bits(uint64_t bits) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(bits);
  } else if constexpr (sizeof(T) == 4) {
    return std::bit_cast<T>(static_cast<uint32_t>(bits));
  } else {
    return std::bit_cast<T>(bits);
  }
}

template <class T>
uint64_t to_bits(T value) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<std::make_unsigned_t<T>>(value);
  } else if constexpr (sizeof(T) == 4) {
    return std::bit_cast<uint32_t>(value);
  } else {
    return std::bit_cast<uint64_t>(value);
  }
}

/// F<T>::run for the C++ type of an integer type of PTX; null for others.
template <template <class> class F>
ScalarFunction for_integer(ptx::Type type) {
  switch (type) {
    case ptx::Type::kU8:
    case ptx::Type::kB8:
      return F<uint8_t>::run;
    case ptx::Type::kS8:
      return F<int8_t>::run;
    case ptx::Type::kU16:
    case ptx::Type::kB16:
      return F<uint16_t>::run;
    case ptx::Type::kS16:
      return F<int16_t>::run;
    case ptx::Type::kU32:
    case ptx::Type::kB32:
      return F<uint32_t>::run;
    case ptx::Type::kS32:
      return F<int32_t>::run;
    case ptx::Type::kU64:
    case ptx::Type::kB64:
      return F<uint64_t>::run;
    case ptx::Type::kS64:
      return F<int64_t>::run;
    default:
      return nullptr;
  }
}

bool is_integer(ptx::Type type);
bool is_signed(ptx::Type type);

/// 16-bit floats as fp32 and back, round to nearest even; NaN becomes 0x7fff.
float half_value(uint64_t bits, bool bf16);
uint16_t half_bits(float value, bool bf16);

}  // namespace fa4::emulator
