// Forward calls for launch tests, and what became of them in the fake driver.
#pragma once

#include <gtest/gtest.h>

#include "csrc/common/fwd_args.h"
#include "csrc/dispatch/kernel_list.h"
#include "tests/driver/fake_driver.h"

namespace fa4::test {

using driver::test::FakeDriver;
using driver::test::FakeMap;
using driver::test::state;

constexpr int kSms = 132;  // of the fake

// Nothing is read through these addresses.
const void* const kQ = reinterpret_cast<const void*>(0x10000);
const void* const kK = reinterpret_cast<const void*>(0x20000);
const void* const kV = reinterpret_cast<const void*>(0x30000);
void* const kOut = reinterpret_cast<void*>(0x40000);
float* const kLse = reinterpret_cast<float*>(0x50000);
const int32_t* const kLengths = reinterpret_cast<const int32_t*>(0x60000);
const int32_t* const kOtherLengths = reinterpret_cast<const int32_t*>(0x70000);

struct Shape {
  int64_t batch = 2;
  int64_t seqlen_q = 1000;
  int64_t seqlen_k = 500;
  int64_t heads_q = 4;
  int64_t heads_k = 4;
  int64_t head_dim = 64;
  int64_t head_dim_v = 64;
};

inline FwdParams dense_call(const Shape& s) {
  const auto contiguous = [](int64_t rows, int64_t heads, int64_t dim) {
    return Strides{rows * heads * dim, heads * dim, dim};
  };
  FwdParams p;
  p.dtype = DType::kBFloat16;
  p.batch = s.batch;
  p.seqlen_q = s.seqlen_q;
  p.seqlen_k = s.seqlen_k;
  p.heads_q = s.heads_q;
  p.heads_k = s.heads_k;
  p.head_dim = s.head_dim;
  p.head_dim_v = s.head_dim_v;
  p.q = {kQ, contiguous(s.seqlen_q, s.heads_q, s.head_dim)};
  p.k = {kK, contiguous(s.seqlen_k, s.heads_k, s.head_dim)};
  p.v = {kV, contiguous(s.seqlen_k, s.heads_k, s.head_dim_v)};
  p.out = {kOut, contiguous(s.seqlen_q, s.heads_q, s.head_dim_v)};
  p.lse = {kLse, {s.heads_q * s.seqlen_q, 1, s.seqlen_q}};
  return p;
}

/// Packed tensors with `batch` sequences of at most seqlen_q and seqlen_k rows.
inline FwdParams packed_call(const Shape& s, int64_t total_q, int64_t total_k) {
  FwdParams p = dense_call(s);
  p.cu_seqlens_q = kLengths;
  p.cu_seqlens_k = kOtherLengths;
  p.total_q = total_q;
  p.total_k = total_k;
  for (Strides* stride : {&p.q.stride, &p.k.stride, &p.v.stride, &p.out.stride}) stride->batch = 0;
  p.lse.stride = {0, 1, total_q};
  return p;
}

const unsigned char image[4] = {};

inline KernelRow kernel_of(DType dtype, int head_dim) {
  return {"kernel",
          Op::kFwd,
          Target::kSm90a,
          bit(dtype),
          {8, head_dim},
          {8, head_dim},
          0,
          {image, image + 4, image, image + 4}};
}

/// The arguments of the latest launch; state.args_bytes must have been set.
inline FwdArgs launched_args() {
  FwdArgs args;
  std::memcpy(&args, state.args.data(), sizeof args);
  return args;
}

inline const FakeMap& encoded(const TensorMap& map) {
  return state.maps.at(map.bytes[0] - 1);
}

struct Expectation {
  const void* base;
  std::vector<uint64_t> sizes;
  std::vector<uint64_t> strides;  // elements
  std::vector<uint32_t> box;
};

inline void expect_map(const TensorMap& map, Expectation want) {
  const FakeMap& got = encoded(map);
  EXPECT_EQ(got.base, want.base);
  EXPECT_EQ(got.sizes, want.sizes);
  for (uint64_t& stride : want.strides) stride *= 2;
  EXPECT_EQ(got.strides, want.strides);
  EXPECT_EQ(got.box, want.box);
}

}  // namespace fa4::test
