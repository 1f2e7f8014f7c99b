// Products, for the instruction set that the including file is compiled for. Everything has
// internal linkage: each kernel file gets its own copy.
//
// All instruction sets give the same bits. Every element of D is computed by the same chain of
// operations whatever the width of the vectors: lanes are elements of D, never steps of k.
//   kSequential  one fused multiply-add per k in fp32.
//   kExact       the chain runs in fp64, in which products of two floats are exact, and is rounded
//                to fp32 after each kK steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/cpu/isa/vec.h"
#include "csrc/emulator/tensor/kernels.h"
#include "csrc/emulator/tensor/operands.h"

namespace fa4::emulator {
namespace {

using cpu::load;
using cpu::store;

// ---- Vectors of float or double -----------------------------------------------------------------

// At least four, so that a vector spans the four neighbouring columns of an accumulator fragment.
template <class T>
constexpr int kVectorLanes = std::max(4, cpu::kLanes * 4 / int{sizeof(T)});

template <class T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T, int kLanes = kVectorLanes<T>>
using Vector = typename VectorOf<T, kLanes>::type;

template <class T>
FA4_INLINE Vector<T> splat(T value) {
  return value - Vector<T>{};  // not a sum with zero, which would lose the sign of -0
}

// GCC splits conversions between vectors of different sizes in two, hence the intrinsics.

FA4_INLINE Vector<double> widen(Vector<float, kVectorLanes<double>> value) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_maskz_cvtps_pd(0xff, (__m256)value);
#elif defined(__AVX__)
  return (Vector<double>)_mm256_cvtps_pd((__m128)value);
#else
  return __builtin_convertvector(value, Vector<double>);
#endif
}

FA4_INLINE Vector<float, kVectorLanes<double>> narrow(Vector<double> value) {
#if defined(__AVX512F__)
  return (Vector<float, 8>)_mm512_maskz_cvtpd_ps(0xff, (__m512d)value);
#elif defined(__AVX__)
  return (Vector<float, 4>)_mm256_cvtpd_ps((__m256d)value);
#else
  return __builtin_convertvector(value, Vector<float, kVectorLanes<double>>);
#endif
}

/// Lanes of type T from as many floats, and back.
template <class T>
FA4_INLINE Vector<T> from_floats(Vector<float, kVectorLanes<T>> value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return value;
  } else {
    return widen(value);
  }
}
template <class T>
FA4_INLINE Vector<T> load_floats(const float* from) {
  return from_floats<T>(load<Vector<float, kVectorLanes<T>>>(from));
}
template <class T>
FA4_INLINE void store_floats(float* to, Vector<T> value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    store(to, value);
  } else {
    store(to, narrow(value));
  }
}

FA4_INLINE Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  Vector<float> sum;
  for (int lane = 0; lane < kVectorLanes<float>; ++lane)
    sum[lane] = std::fma(a[lane], b[lane], c[lane]);
  return sum;
#endif
}

FA4_INLINE Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vector<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;  // the product is exact, so fused or not is the same
#endif
}

// ---- D += A B, columns of D contiguous ----------------------------------------------------------

// A tile of D is kept in registers over all k: kTileVectors x kTileColumns accumulators, and beside
// them one step of A (kTileVectors) and a broadcast element of B. The last columns come in fours:
// every multiple of 8 except 0 is a sum of sixes and one or two fours.
constexpr int kTileVectors = 2;
#if defined(__AVX512F__)
constexpr int kTileColumns = 8;
#elif defined(__AVX__)
constexpr int kTileColumns = 6;
#else
constexpr int kTileColumns = 4;
#endif

template <class T>
constexpr int kMostSteps = sizeof(T) == 4 ? 128 : kK;  // k between two roundings of D to fp32

/// D rows from `row` on, at the columns that b holds.
template <class T>
struct TileProduct {
  const T* a;
  size_t a_stride;
  const T* b;  // [k][columns], packed
  int k;
  float* d;
  size_t d_stride;
  bool accumulate;
};

template <class T, int kVectors, int kColumns>
FA4_INLINE void multiply_tile(const TileProduct<T>& product, int row) {
  constexpr int kLanes = kVectorLanes<T>;
  Vector<T> sum[kColumns][kVectors];
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const float* d = product.d + n * product.d_stride + row + v * kLanes;
      sum[n][v] = product.accumulate ? load_floats<T>(d) : Vector<T>{};
    }
  }
  const T* a = product.a + row;
  const T* b = product.b;
  for (int k = 0; k < product.k; ++k, a += product.a_stride, b += kColumns) {
    Vector<T> rows[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) rows[v] = load<Vector<T>>(a + v * kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) {
      const Vector<T> factor = splat(b[n]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[n][v] = multiply_add(rows[v], factor, sum[n][v]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < kColumns; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      store_floats<T>(product.d + n * product.d_stride + row + v * kLanes, sum[n][v]);
  }
}

/// All rows of kColumns columns of D. b points to the first column of the first step.
template <class T, int kColumns>
FA4_INLINE void multiply_columns(TileProduct<T> product, const float* b, size_t b_stride, int m) {
  T packed[kMostSteps<T>][kColumns];
  for (int k = 0; k < product.k; ++k) {
    for (int n = 0; n < kColumns; ++n) packed[k][n] = b[k * b_stride + n];
  }
  product.b = packed[0];
  constexpr int kRows = kTileVectors * kVectorLanes<T>;
  int row = 0;
  for (; row + kRows <= m; row += kRows) multiply_tile<T, kTileVectors, kColumns>(product, row);
  if (row < m) multiply_tile<T, 1, kColumns>(product, row);  // 16 rows left of tiles of 32
}

template <class T>
FA4_INLINE void multiply_steps(const Product& p, TileProduct<T> product, const float* b) {
  for (int n = 0; n < p.n;) {
    product.d = p.d + n * p.d_stride;
    const int left = p.n - n;
    if (kTileColumns == 6 && (left == 4 || left == 8)) {
      multiply_columns<T, 4>(product, b + n, p.b_stride, p.m);
      n += 4;
    } else {
      multiply_columns<T, kTileColumns>(product, b + n, p.b_stride, p.m);
      n += kTileColumns;
    }
  }
}

void multiply_sequential(const Product& p) {
  TileProduct<float> product{};
  product.a_stride = p.a_stride;
  product.d_stride = p.d_stride;
  for (int k = 0; k < p.k; k += product.k) {
    product.k = std::min(p.k - k, kMostSteps<float>);
    product.a = p.a + k * p.a_stride;
    product.accumulate = p.accumulate || k > 0;
    multiply_steps(p, product, p.b + k * p.b_stride);
  }
}

void multiply_exact(const Product& p) {
  constexpr int kMostRows = 128;
  alignas(64) double a[kK][kMostRows];
  TileProduct<double> product{};
  product.a = a[0];
  product.a_stride = kMostRows;
  product.d_stride = p.d_stride;
  product.k = kK;
  for (int k = 0; k < p.k; k += kK) {
    for (int step = 0; step < kK; ++step) {
      const float* from = p.a + (k + step) * p.a_stride;
      for (int m = 0; m < p.m; ++m) a[step][m] = from[m];
    }
    product.accumulate = p.accumulate || k > 0;
    multiply_steps(p, product, p.b + k * p.b_stride);
  }
}

void multiply_product(const Product& product, Accumulate mode) {
  if (mode == Accumulate::kSequential) {
    multiply_sequential(product);
  } else {
    multiply_exact(product);
  }
}

// ---- D += A B, D in the fragments of wgmma ------------------------------------------------------

// A plane of D holds 8 rows x 4 columns, the columns of a row side by side: its lanes meet A with
// every row repeated four times, and B with the four columns repeated all over the vector. Planes
// 4 j .. 4 j + 3 are columns 8 j .. 8 j + 7: plane 4 j + 2 h + e has rows 8 h .. 8 h + 7 and every
// second column, from e on.

constexpr int kPlaneLanes = 32;

/// Two vectors of a plane.
constexpr int kPairVectors = 2;
template <class T>
constexpr int kPairLanes = kPairVectors * kVectorLanes<T>;
template <class T>
using FragmentRows = Vector<T>[kPlaneLanes / kPairLanes<T>][kK][2][kPairVectors];  // pair, k, h

template <class T>
FA4_INLINE void repeat_rows(const float* a, FragmentRows<T>& rows) {
  for (int k = 0; k < kK; ++k) {
#pragma GCC unroll 16
    for (int row = 0; row < kFragmentRows; ++row) {
      const Vector<T, 4> repeated = T{a[k * kFragmentRows + row]} - Vector<T, 4>{};
      const int lane = row % 8 * 4;
      auto& pair = rows[lane / kPairLanes<T>][k][row / 8];
      store(reinterpret_cast<T*>(pair) + lane % kPairLanes<T>, repeated);
    }
  }
}

/// b[0..3] again and again.
template <int kLanes>
FA4_INLINE Vector<float, kLanes> repeat_four(const float* b) {
#if defined(__AVX512F__)
  if constexpr (kLanes == 16)
    return (Vector<float, 16>)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(b));
#endif
#if defined(__AVX__)
  if constexpr (kLanes == 8)
    return (Vector<float, 8>)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(b));
#endif
  if constexpr (kLanes == 4) return load<Vector<float, 4>>(b);
}

/// Columns kParity, kParity + 2, + 4, + 6 in every four lanes, from b[0..3] and b[4..7] repeated.
template <class T, int kParity, int... kLane>
FA4_INLINE Vector<T> every_second(Vector<float, kVectorLanes<T>> low,
                                  Vector<float, kVectorLanes<T>> high,
                                  std::integer_sequence<int, kLane...>) {
  const auto four = __builtin_shufflevector(
      low, high,
      (kLane / 4 * 4 + kLane % 2 * 2 + kParity + (kLane % 4 < 2 ? 0 : kVectorLanes<T>))...);
  return from_floats<T>(four);
}

/// Lanes `lane` .. lane + kPairLanes - 1 of the four planes d.
template <class T>
FA4_INLINE void multiply_planes(float* const* d, int lane, const FragmentRows<T>& rows,
                                const float* b, int n, bool accumulate) {
  constexpr int kLanes = kVectorLanes<T>;
  using Lanes = std::make_integer_sequence<int, kLanes>;
  Vector<T> sum[4][kPairVectors];
#pragma GCC unroll 4
  for (int plane = 0; plane < 4; ++plane) {
#pragma GCC unroll 2
    for (int v = 0; v < kPairVectors; ++v)
      sum[plane][v] = accumulate ? load_floats<T>(d[plane] + lane + v * kLanes) : Vector<T>{};
  }
  // Volatile, or GCC loads A anew for its second use, and loads are what limits this loop.
  const volatile Vector<T>* a = rows[lane / kPairLanes<T>][0][0];
  for (int k = 0; k < kK; ++k, a += 2 * kPairVectors, b += n) {
    const auto low = repeat_four<kLanes>(b);
    const auto high = repeat_four<kLanes>(b + 4);
    const Vector<T> even = every_second<T, 0>(low, high, Lanes{});
    const Vector<T> odd = every_second<T, 1>(low, high, Lanes{});
#pragma GCC unroll 4
    for (int i = 0; i < 2 * kPairVectors; ++i) {
      const Vector<T> row = a[i];
      Vector<T>(&column_even)[kPairVectors] = sum[i / kPairVectors * 2];
      Vector<T>(&column_odd)[kPairVectors] = sum[i / kPairVectors * 2 + 1];
      column_even[i % kPairVectors] = multiply_add(row, even, column_even[i % kPairVectors]);
      column_odd[i % kPairVectors] = multiply_add(row, odd, column_odd[i % kPairVectors]);
    }
  }
#pragma GCC unroll 4
  for (int plane = 0; plane < 4; ++plane) {
#pragma GCC unroll 2
    for (int v = 0; v < kPairVectors; ++v)
      store_floats<T>(d[plane] + lane + v * kLanes, sum[plane][v]);
  }
}

template <class T>
FA4_INLINE void multiply_all_planes(float* const* d, const float* a, const float* b, int n,
                                    bool accumulate) {
  FragmentRows<T> rows;
  repeat_rows<T>(a, rows);
  for (int column = 0; column < n; column += 8) {
    for (int lane = 0; lane < kPlaneLanes; lane += kPairLanes<T>)
      multiply_planes<T>(d + column / 2, lane, rows, b + column, n, accumulate);
  }
}

void multiply_fragment_planes(float* const* d, const float* a, const float* b, int n,
                              bool accumulate, Accumulate mode) {
  if (mode == Accumulate::kSequential) {
    multiply_all_planes<float>(d, a, b, n, accumulate);
  } else {
    multiply_all_planes<double>(d, a, b, n, accumulate);
  }
}

// ---- Table --------------------------------------------------------------------------------------

constexpr TensorKernels tensor_kernels(const char* name) {
  return {name,       multiply_product, multiply_fragment_planes,
          read_units, copy_units,       find_in_units,
          read_cells, read_planes};
}

}  // namespace
}  // namespace fa4::emulator
