// The one inner loop of all products. Lanes of a vector are neighbouring columns of X; the other
// operand B is read one element at a time and broadcast:
//
//     C[n][lane] = sum over k of B[n * kStrideN + k * kStrideK] * X[k][lane]
//
// With query rows in the lanes (X = Q^T, P^T, dS^T ...) the softmax needs no reduction across
// lanes, keys and head dimensions are loop counts that need no padding, and K and V are used as
// they lie in memory.
//
//     product            n          k          lanes
//     S^T  = K Q^T       key        head dim   query row
//     O^T  = V^T P^T     head dim   key        query row
//     dP^T = V dO^T      key        head dim   query row
//     dQ^T = K^T dS^T    head dim   key        query row
//     dV   = P^T dO      key        query row  head dim
//     dK   = dS^T Q      key        query row  head dim
#pragma once

#include "csrc/cpu/isa/vec.h"

namespace fa4::cpu {
namespace {

template <int kVecs>
using Accumulators = Vec[kGroup][kVecs];

template <int kVecs, int kStrideN, int kStrideK, int kStrideX>
FA4_INLINE void multiply(const float* b, const float* x, int depth, Accumulators<kVecs>& acc) {
#pragma GCC unroll 8
  for (int n = 0; n < kGroup; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) acc[n][v] = Vec{};
  }
  for (int k = 0; k < depth; ++k) {
    Vec columns[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) columns[v] = load<Vec>(x + k * kStrideX + v * kLanes);
#pragma GCC unroll 8
    for (int n = 0; n < kGroup; ++n) {
      const Vec factor = splat(b[n * kStrideN + k * kStrideK]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) acc[n][v] += factor * columns[v];
    }
  }
}

}  // namespace
}  // namespace fa4::cpu
