// The cases that forward and backward share.
#pragma once

#include "tests/cpu/reference.h"

namespace fa4::test {

constexpr DType kF32 = DType::kFloat32;
constexpr DType kBF16 = DType::kBFloat16;
constexpr DType kF16 = DType::kFloat16;

// clang-format off

/// Sizes around a vector, a panel, a block and a tile, and every kind of head dimension.
inline void add_sizes(std::vector<Case>& cases) {
  for (int64_t n : {1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 127, 129, 200, 257, 300}) {
    cases.push_back({.name = "square", .seqlen_q = n, .seqlen_k = n, .heads_q = 2, .heads_k = 2});
    cases.push_back({.name = "causal", .seqlen_q = n, .seqlen_k = n, .causal = true});
  }
  for (int64_t dim : {8, 24, 40, 64, 72, 128, 136, 256}) {
    Case c{.name = "dims", .seqlen_q = 35, .seqlen_k = 70, .head_dim = dim, .head_dim_v = dim};
    cases.push_back(c);
    c.name = "dims_bf16", c.dtype = kBF16, c.head_dim_v = 264 - dim;
    cases.push_back(c);
    c.name = "dims_f16", c.dtype = kF16, c.head_dim = 264 - dim, c.head_dim_v = dim;
    cases.push_back(c);
  }
}

/// Heads, few rows and sinks in every type.
inline void add_heads(std::vector<Case>& cases) {
  for (DType dtype : {kF32, kBF16, kF16}) {
    cases.push_back({.name = "gqa", .dtype = dtype, .batch = 2, .seqlen_q = 50, .seqlen_k = 150,
                     .heads_q = 6, .heads_k = 2, .head_dim = 32, .head_dim_v = 24, .causal = true});
    cases.push_back({.name = "mqa", .dtype = dtype, .seqlen_q = 3, .seqlen_k = 300, .heads_q = 8,
                     .head_dim = 64, .head_dim_v = 64, .layout = Layout::kGaps});
    cases.push_back({.name = "decode", .dtype = dtype, .batch = 3, .seqlen_q = 1, .seqlen_k = 130,
                     .heads_q = 4, .heads_k = 2, .head_dim = 64, .head_dim_v = 72,
                     .used_k = {130, 0, 77}});
    cases.push_back({.name = "sink", .dtype = dtype, .seqlen_q = 40, .seqlen_k = 90, .heads_q = 4,
                     .heads_k = 2, .causal = true, .sink = true, .sink_dtype = dtype,
                     .dlse = true});
  }
  cases.push_back({.name = "few_rows_everything", .seqlen_q = 4, .seqlen_k = 150, .heads_q = 2,
                   .causal = true, .window_left = 100, .softcap = 3.0f, .sink = true,
                   .dlse = true});
  cases.push_back({.name = "few_rows_empty", .seqlen_q = 4, .seqlen_k = 2, .causal = true});
}

/// Masks, rows without keys, score functions.
inline void add_masks(std::vector<Case>& cases) {
  for (int64_t left : {-1, 0, 5, 100}) {
    for (int64_t right : {-1, 0, 3, 70}) {
      Case c{.name = "window", .seqlen_q = 150, .seqlen_k = 190, .heads_q = 2,
             .window_left = left, .window_right = right};
      cases.push_back(c);
      c.name = "window_short_keys", c.seqlen_k = 90, c.layout = Layout::kHeadMajor;
      cases.push_back(c);
    }
  }
  cases.push_back({.name = "window_and_causal", .seqlen_q = 290, .seqlen_k = 290, .causal = true,
                   .window_left = 20, .window_right = 9});
  // The window of row 127, the last of a panel, begins one key after that of a block, and at it.
  for (int64_t left : {62, 63}) {
    cases.push_back({.name = "window_at_block", .seqlen_q = 200, .seqlen_k = 200,
                     .window_left = left});
  }
  cases.push_back({.name = "empty_rows", .seqlen_q = 150, .seqlen_k = 40, .heads_q = 2,
                   .causal = true});
  cases.push_back({.name = "empty_rows_sink", .seqlen_q = 150, .seqlen_k = 40, .heads_q = 2,
                   .causal = true, .sink = true, .dlse = true});
  cases.push_back({.name = "softcap", .seqlen_q = 60, .seqlen_k = 100, .heads_q = 2, .causal = true,
                   .softcap = 2.0f, .dlse = true});
  cases.push_back({.name = "softcap_saturated", .seqlen_q = 60, .seqlen_k = 100, .softcap = 5.0f,
                   .magnitude = 30.0});
  cases.push_back({.name = "softcap_sink_window", .seqlen_q = 90, .seqlen_k = 100, .heads_q = 2,
                   .window_left = 30, .window_right = 0, .softcap = 30.0f, .sink = true});
  cases.push_back({.name = "peaked", .seqlen_q = 70, .seqlen_k = 200, .magnitude = 40.0});
  cases.push_back({.name = "peaked_sink", .seqlen_q = 70, .seqlen_k = 200, .sink = true,
                   .magnitude = 40.0});
  cases.push_back({.name = "peaked_few_rows", .seqlen_q = 3, .seqlen_k = 400, .magnitude = 40.0});
  cases.push_back({.name = "tiny_scale", .seqlen_q = 20, .seqlen_k = 70, .scale = 1e-3f});
  cases.push_back({.name = "dlse", .batch = 2, .seqlen_q = 40, .seqlen_k = 40, .heads_q = 2,
                   .dlse = true, .layout = Layout::kGaps});
}

/// Packed, padded and mixed batches.
inline void add_batches(std::vector<Case>& cases) {
  const std::vector<int32_t> a{5, 0, 130, 1}, b{7, 12, 0, 200};
  Case c{.name = "packed", .batch = 4, .seqlen_q = 130, .seqlen_k = 200, .heads_q = 4, .heads_k = 2,
         .causal = true, .lengths_q = a, .lengths_k = b};
  cases.push_back(c);
  c.name = "packed_used", c.used_q = {3, 0, 100, 1}, c.used_k = {7, 2, 0, 65};
  cases.push_back(c);
  cases.push_back({.name = "packed_bf16_sink", .dtype = kBF16, .batch = 4, .seqlen_q = 140,
                   .seqlen_k = 200, .heads_q = 2, .heads_k = 2, .sink = true, .dlse = true,
                   .lengths_q = a, .lengths_k = b, .layout = Layout::kGaps});
  cases.push_back({.name = "packed_q_only", .batch = 4, .seqlen_q = 130, .seqlen_k = 66,
                   .heads_q = 2, .causal = true, .lengths_q = a});
  cases.push_back({.name = "packed_k_only", .batch = 4, .seqlen_q = 70, .seqlen_k = 200,
                   .heads_q = 2, .window_left = 9, .lengths_k = b});
  cases.push_back({.name = "dense_used", .batch = 3, .seqlen_q = 40, .seqlen_k = 100, .heads_q = 2,
                   .causal = true, .used_q = {40, 0, 11}, .used_k = {0, 100, 70}});
  cases.push_back({.name = "no_keys", .batch = 2, .seqlen_q = 4, .seqlen_k = 0, .heads_q = 2,
                   .sink = true, .dlse = true});
  cases.push_back({.name = "no_queries", .batch = 2, .seqlen_q = 0, .seqlen_k = 9, .heads_q = 2});
  cases.push_back({.name = "no_batch", .batch = 0, .seqlen_q = 4, .seqlen_k = 9});
}

// clang-format on

inline std::vector<Case> shared_cases() {
  std::vector<Case> cases;
  add_sizes(cases);
  add_heads(cases);
  add_masks(cases);
  add_batches(cases);
  return cases;
}

}  // namespace fa4::test
