// Words shared by host, device, tests and emulator. Plain C++20: no CUDA header, no torch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FA4_HD __host__ __device__
#else
#define FA4_HD
#endif

namespace fa4 {

enum class DType : uint8_t { kFloat32, kFloat16, kBFloat16 };

FA4_HD constexpr int dtype_bytes(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : 2;
}

constexpr const char* dtype_name(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : dtype == DType::kFloat16 ? "float16" : "bfloat16";
}

/// Smallest integer not below numerator / denominator. numerator >= 0, denominator > 0.
template <class T>
FA4_HD constexpr T ceil_div(T numerator, T denominator) {
  return (numerator + denominator - 1) / denominator;
}

/// Largest integer not above numerator / denominator, for either sign. denominator > 0.
template <class T>
FA4_HD constexpr T floor_div(T numerator, T denominator) {
  return numerator / denominator - (numerator % denominator < 0 ? 1 : 0);
}

template <class T>
FA4_HD constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}

template <class T>
FA4_HD constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}

template <class T>
FA4_HD constexpr T clamp_to(T value, T low, T high) {
  return min_of(max_of(value, low), high);
}

}  // namespace fa4
