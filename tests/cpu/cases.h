// The cases that forward and backward share.
#pragma once

#include "tests/cpu/reference.h"

namespace fa4::test {

inline std::vector<Case> shared_cases() {
  constexpr DType kF32 = DType::kFloat32, kBf16 = DType::kBFloat16, kF16 = DType::kFloat16;
  std::vector<Case> cases;
  const auto add = [&](Case c) { cases.push_back(std::move(c)); };
  // Sizes around a vector, a panel, a tile and a block.
  for (int64_t n : {1, 2, 7, 16, 17, 31, 33, 64, 65, 127, 129, 200}) {
    add({.name = "square", .seqlen_q = n, .seqlen_k = n, .heads_q = 2, .heads_k = 2});
    add({.name = "causal", .seqlen_q = n, .seqlen_k = n, .causal = true});
  }
  for (int64_t dim : {8, 24, 40, 64, 72, 128, 136, 256}) {
    add({.name = "dims", .seqlen_q = 35, .seqlen_k = 70, .head_dim = dim, .head_dim_v = dim});
    add({.name = "dims_bf16",
         .dtype = kBf16,
         .seqlen_q = 35,
         .seqlen_k = 70,
         .head_dim = dim,
         .head_dim_v = 264 - dim});
    add({.name = "dims_f16",
         .dtype = kF16,
         .seqlen_q = 20,
         .seqlen_k = 66,
         .head_dim = 264 - dim,
         .head_dim_v = dim});
  }
  for (DType dtype : {kF32, kBf16, kF16}) {
    add({.name = "gqa",
         .dtype = dtype,
         .batch = 2,
         .seqlen_q = 50,
         .seqlen_k = 150,
         .heads_q = 6,
         .heads_k = 2,
         .head_dim = 32,
         .head_dim_v = 24,
         .causal = true});
    add({.name = "mqa",
         .dtype = dtype,
         .seqlen_q = 3,
         .seqlen_k = 300,
         .heads_q = 8,
         .head_dim = 64,
         .head_dim_v = 64,
         .layout = Layout::kGaps});
    add({.name = "decode",
         .dtype = dtype,
         .batch = 3,
         .seqlen_q = 1,
         .seqlen_k = 130,
         .heads_q = 4,
         .heads_k = 2,
         .head_dim = 64,
         .head_dim_v = 72,
         .used_k = {130, 0, 77}});
    add({.name = "sink",
         .dtype = dtype,
         .seqlen_q = 40,
         .seqlen_k = 90,
         .heads_q = 4,
         .heads_k = 2,
         .causal = true,
         .sink = true,
         .sink_dtype = dtype,
         .dlse = true});
  }
  // Rows without keys, with and without sink.
  add({.name = "empty_rows", .seqlen_q = 150, .seqlen_k = 40, .heads_q = 2, .causal = true});
  add({.name = "empty_rows_sink",
       .seqlen_q = 150,
       .seqlen_k = 40,
       .heads_q = 2,
       .causal = true,
       .sink = true,
       .dlse = true});
  add({.name = "empty_rows_left",
       .seqlen_q = 30,
       .seqlen_k = 100,
       .window_left = 3,
       .window_right = 5});
  // Windows of every kind, narrower and wider than a block.
  for (int64_t left : {-1, 0, 5, 100}) {
    for (int64_t right : {-1, 0, 3, 70}) {
      add({.name = "window",
           .batch = 1,
           .seqlen_q = 150,
           .seqlen_k = 190,
           .heads_q = 2,
           .window_left = left,
           .window_right = right});
      add({.name = "window_short_keys",
           .batch = 1,
           .seqlen_q = 150,
           .seqlen_k = 90,
           .heads_q = 2,
           .window_left = left,
           .window_right = right,
           .layout = Layout::kHeadMajor});
    }
  }
  add({.name = "window_and_causal",
       .seqlen_q = 170,
       .seqlen_k = 170,
       .causal = true,
       .window_left = 20,
       .window_right = 9});
  // Score functions.
  add({.name = "softcap",
       .seqlen_q = 60,
       .seqlen_k = 100,
       .heads_q = 2,
       .causal = true,
       .softcap = 2.0f,
       .dlse = true});
  add({.name = "softcap_saturated",
       .seqlen_q = 60,
       .seqlen_k = 100,
       .softcap = 5.0f,
       .magnitude = 30.0});
  add({.name = "softcap_sink_window",
       .seqlen_q = 90,
       .seqlen_k = 100,
       .heads_q = 2,
       .window_left = 30,
       .window_right = 0,
       .softcap = 30.0f,
       .sink = true});
  add({.name = "peaked", .seqlen_q = 70, .seqlen_k = 200, .magnitude = 40.0});
  add({.name = "peaked_sink", .seqlen_q = 70, .seqlen_k = 200, .sink = true, .magnitude = 40.0});
  add({.name = "tiny_scale", .seqlen_q = 20, .seqlen_k = 70, .scale = 1e-3f});
  add({.name = "dlse",
       .batch = 2,
       .seqlen_q = 40,
       .seqlen_k = 40,
       .heads_q = 2,
       .dlse = true,
       .layout = Layout::kGaps});
  // Packed and mixed batches.
  const std::vector<int32_t> a{5, 0, 130, 1}, b{7, 12, 0, 200};
  add({.name = "packed",
       .batch = 4,
       .seqlen_q = 130,
       .seqlen_k = 200,
       .heads_q = 4,
       .heads_k = 2,
       .causal = true,
       .lengths_q = a,
       .lengths_k = b});
  add({.name = "packed_bf16_sink",
       .dtype = kBf16,
       .batch = 4,
       .seqlen_q = 140,
       .seqlen_k = 200,
       .heads_q = 2,
       .heads_k = 2,
       .sink = true,
       .dlse = true,
       .lengths_q = a,
       .lengths_k = b,
       .layout = Layout::kGaps});
  add({.name = "packed_q_only",
       .batch = 4,
       .seqlen_q = 130,
       .seqlen_k = 66,
       .heads_q = 2,
       .causal = true,
       .lengths_q = a});
  add({.name = "packed_k_only",
       .batch = 4,
       .seqlen_q = 70,
       .seqlen_k = 200,
       .heads_q = 2,
       .window_left = 9,
       .lengths_k = b});
  add({.name = "packed_used",
       .batch = 4,
       .seqlen_q = 130,
       .seqlen_k = 200,
       .heads_q = 2,
       .causal = true,
       .lengths_q = a,
       .lengths_k = b,
       .used_q = {3, 0, 100, 1},
       .used_k = {7, 2, 0, 65}});
  add({.name = "dense_used",
       .batch = 3,
       .seqlen_q = 40,
       .seqlen_k = 100,
       .heads_q = 2,
       .causal = true,
       .used_q = {40, 0, 11},
       .used_k = {0, 100, 70}});
  add({.name = "nothing",
       .batch = 2,
       .seqlen_q = 4,
       .seqlen_k = 0,
       .heads_q = 2,
       .sink = true,
       .dlse = true});
  add({.name = "no_queries", .batch = 2, .seqlen_q = 0, .seqlen_k = 9, .heads_q = 2});
  return cases;
}

}  // namespace fa4::test
