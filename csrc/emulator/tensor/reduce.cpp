// Reductions of the copy engine, element by element into global memory.
//
// Host threads run clusters side by side and may reduce into one place. Elements are therefore
// updated by compare-and-swap, as many at a time as fit a 64-bit word.
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "csrc/emulator/tensor/tensor_map.h"

namespace fa4::emulator {
namespace {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr uint16_t kCanonicalNan = 0x7fff;  // of both 16-bit types

float to_float(BFloat16 value) {
  return std::bit_cast<float>(uint32_t{value.bits} << 16);
}

float to_float(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const float sign = value.bits & 0x8000u ? -1.0f : 1.0f;
  // Subnormals count 2^-24; normal numbers get the exponent bias of fp32; the rest is inf and NaN.
  if (magnitude < 0x0400u) return sign * 0x1p-24f * static_cast<float>(magnitude);
  const uint32_t bias = magnitude < 0x7c00u ? (127 - 15) << 23 : (255 - 31) << 23;
  return sign * std::bit_cast<float>((magnitude << 13) + bias);
}

/// Order of the values that are no NaN; -0 comes before +0.
int32_t order(uint16_t bits) {
  return bits & 0x8000u ? -1 - (bits & 0x7fff) : bits;
}

/// `bits` without its low `shift` bits, rounded to nearest, ties to even.
uint32_t shift_rounded(uint32_t bits, int shift) {
  const uint32_t half = (uint32_t{1} << (shift - 1)) - 1 + (bits >> shift & 1);
  return (bits + half) >> shift;
}

void round_to(float value, BFloat16* result) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  result->bits = std::isnan(value) ? kCanonicalNan : static_cast<uint16_t>(shift_rounded(bits, 16));
}

void round_to(float value, Float16* result) {
  const uint32_t sign = std::bit_cast<uint32_t>(value) >> 16 & 0x8000u;
  const uint32_t magnitude = std::bit_cast<uint32_t>(std::abs(value));
  constexpr uint32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14
  constexpr uint32_t kOverflow = 0x477ff000u;             // 65520 rounds to infinity
  uint32_t bits;
  if (std::isnan(value))
    bits = kCanonicalNan;
  else if (magnitude >= kOverflow)
    bits = sign | 0x7c00u;
  else if (magnitude >= kSmallestNormal)
    bits = sign | shift_rounded(magnitude - ((127 - 15) << 23), 13);
  else  // the last bit of numbers around 0.5 counts 2^-24, as that of subnormals does
    bits = sign | (std::bit_cast<uint32_t>(std::abs(value) + 0.5f) - std::bit_cast<uint32_t>(0.5f));
  result->bits = static_cast<uint16_t>(bits);
}

/// NaNs are those that an H100 gives: fp32 has one, fp64 hands an operand on.
float sum(float old, float value) {
  const float result = old + value;
  return std::isnan(result) ? std::bit_cast<float>(0x7fffffffu) : result;
}
double sum(double old, double value) {
  return std::isnan(value) ? value : std::isnan(old) ? old : old + value;
}
/// fp32 holds more than twice the digits of either 16-bit type, so that rounding its sum once more
/// gives the correctly rounded sum.
template <class T>
T sum(T old, T value) {
  T result;
  round_to(to_float(old) + to_float(value), &result);
  return result;
}

/// Minimum or maximum of 16-bit floats: the other operand where one is NaN.
template <Reduction kOp, class T>
T select(T old, T value) {
  if (std::isnan(to_float(old))) return std::isnan(to_float(value)) ? T{kCanonicalNan} : value;
  if (std::isnan(to_float(value))) return old;
  const bool less = order(value.bits) < order(old.bits);
  return less == (kOp == Reduction::kMin) ? value : old;
}

template <Reduction kOp, class T>
T combine_integers(T old, T value) {
  switch (kOp) {
    case Reduction::kAdd:
      return old + value;
    case Reduction::kMin:
      return value < old ? value : old;
    case Reduction::kMax:
      return value > old ? value : old;
    case Reduction::kInc:
      return old >= value ? 0 : old + 1;
    case Reduction::kDec:
      return old == 0 || old > value ? value : old - 1;
    case Reduction::kAnd:
      return old & value;
    case Reduction::kOr:
      return old | value;
    case Reduction::kXor:
      return old ^ value;
  }
  return old;
}

/// One reduction of one element: `old` is in memory, `value` comes from shared memory.
template <Reduction kOp, class T>
T combine(T old, T value) {
  if constexpr (std::is_integral_v<T>)
    return combine_integers<kOp>(old, value);
  else if constexpr (kOp == Reduction::kAdd)
    return sum(old, value);
  else
    return select<kOp>(old, value);
}

/// Replaces the word at `target` by the combination of its elements with those at `source`.
template <Reduction kOp, class T, class Word>
void combine_word(uint8_t* target, const uint8_t* source) {
  constexpr size_t kElements = sizeof(Word) / sizeof(T);
  T values[kElements], elements[kElements];
  std::memcpy(values, source, sizeof values);
  Word* word = reinterpret_cast<Word*>(target);
  Word old = __atomic_load_n(word, __ATOMIC_RELAXED), desired;
  do {
    std::memcpy(elements, &old, sizeof elements);
    for (size_t i = 0; i < kElements; ++i) elements[i] = combine<kOp>(elements[i], values[i]);
    std::memcpy(&desired, elements, sizeof desired);
  } while (
      !__atomic_compare_exchange_n(word, &old, desired, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

template <size_t kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};

template <Reduction kOp, class T>
void reduce(uint8_t* target, const uint8_t* source, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const bool aligned = reinterpret_cast<uint64_t>(target + at) % sizeof(uint64_t) == 0;
    if (aligned && bytes - at >= sizeof(uint64_t)) {
      combine_word<kOp, T, uint64_t>(target + at, source + at);
      at += sizeof(uint64_t);
    } else {
      combine_word<kOp, T, typename WordOf<sizeof(T)>::type>(target + at, source + at);
      at += sizeof(T);
    }
  }
}

using Reduce = void (*)(uint8_t* target, const uint8_t* source, size_t bytes);

Reduce add_of(ElementType type) {
  switch (type) {
    case ElementType::kU32:
    case ElementType::kS32:
      return reduce<Reduction::kAdd, uint32_t>;
    case ElementType::kU64:
      return reduce<Reduction::kAdd, uint64_t>;
    case ElementType::kF16:
      return reduce<Reduction::kAdd, Float16>;
    case ElementType::kBF16:
      return reduce<Reduction::kAdd, BFloat16>;
    case ElementType::kF32:
      return reduce<Reduction::kAdd, float>;
    case ElementType::kF64:
      return reduce<Reduction::kAdd, double>;
    default:
      return nullptr;
  }
}

template <Reduction kOp>
Reduce order_of(ElementType type) {
  switch (type) {
    case ElementType::kU32:
      return reduce<kOp, uint32_t>;
    case ElementType::kS32:
      return reduce<kOp, int32_t>;
    case ElementType::kU64:
      return reduce<kOp, uint64_t>;
    case ElementType::kS64:
      return reduce<kOp, int64_t>;
    case ElementType::kF16:
      return reduce<kOp, Float16>;
    case ElementType::kBF16:
      return reduce<kOp, BFloat16>;
    default:
      return nullptr;
  }
}

template <Reduction kOp>
Reduce bits_of(ElementType type) {
  switch (type) {
    case ElementType::kU32:
    case ElementType::kS32:
      return reduce<kOp, uint32_t>;
    case ElementType::kU64:
      return reduce<kOp, uint64_t>;
    default:
      return nullptr;
  }
}

/// Null where PTX defines no such reduction.
Reduce reduction(ElementType type, Reduction op) {
  switch (op) {
    case Reduction::kAdd:
      return add_of(type);
    case Reduction::kMin:
      return order_of<Reduction::kMin>(type);
    case Reduction::kMax:
      return order_of<Reduction::kMax>(type);
    case Reduction::kInc:
      return type == ElementType::kU32 ? reduce<Reduction::kInc, uint32_t> : nullptr;
    case Reduction::kDec:
      return type == ElementType::kU32 ? reduce<Reduction::kDec, uint32_t> : nullptr;
    case Reduction::kAnd:
      return bits_of<Reduction::kAnd>(type);
    case Reduction::kOr:
      return bits_of<Reduction::kOr>(type);
    case Reduction::kXor:
      return bits_of<Reduction::kXor>(type);
  }
  return nullptr;
}

}  // namespace

bool reduction_defined(ElementType type, Reduction op) {
  return reduction(type, op) != nullptr;
}

void reduce_bytes(void* target, const void* source, size_t bytes, ElementType type, Reduction op) {
  reduction(type, op)(static_cast<uint8_t*>(target), static_cast<const uint8_t*>(source), bytes);
}

}  // namespace fa4::emulator
