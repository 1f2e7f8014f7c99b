// What the portable drivers (fwd.cpp, bwd.cpp, combine.cpp) and the kernels compiled once per
// instruction set say to each other: plain structs and a table of functions. Nothing inline lives
// here, because an inline function that the AVX-512 file emits could be the one the linker keeps
// for every file.
#pragma once

#include <cstdint>

#include "flash_attn4/core/kv_range.h"
#include "flash_attn4/core/types.h"

namespace fa4::cpu {

constexpr int kTileRows = 256;  // most packed query rows of a tile
constexpr int kBlockKeys = 64;  // keys per step
constexpr int kMaxHeadDim = 256;
constexpr int kMostLanes = 16;  // of a vector of any instruction set
// Distance of rows in scratch, in floats: 17 cache lines, so that neighbouring rows fall into
// different cache sets, and a constant, so that one pointer and immediate offsets address a group
// of rows.
constexpr int kRowFloats = kMaxHeadDim + 16;

/// Rows of a query-side tensor that share one KV head. Query heads are packed into the rows: packed
/// row p is row p / group of head p % group. Strides in elements.
struct QueryRows {
  void* data;
  int64_t row_stride;
  int64_t head_stride;
};

/// The same for one value per row: lse and its gradient.
struct QueryScalars {
  float* data;
  int64_t row_stride;
  int64_t head_stride;
};

/// Rows of k or v of one sequence and one KV head. pages null: row r is at data + r * row_stride.
struct KeyRows {
  const void* data;
  int64_t row_stride;
  const int32_t* pages;
  int64_t page_stride;
  int64_t page_size;
};

/// Score function in log2 units: x = s * scale_log2, or cap_out_log2 * tanh(s * cap_in) with
/// softcap.
struct ScoreFunction {
  float scale_log2;
  float cap_in;
  float cap_out_log2;  // 0: no softcap
};

/// Packed query rows [first_row, first_row + rows) of one sequence and KV head, and the keys they
/// see.
struct Tile {
  DType dtype;
  int head_dim;
  int head_dim_v;
  int group;
  int64_t first_row;
  int rows;
  int32_t seqlen_k;
  BlockRange blocks;         // of kBlockKeys keys
  const int32_t* key_first;  // rows entries, read in blocks that need a mask
  const int32_t* key_last;
  ScoreFunction score;
  QueryRows q;
  KeyRows k, v;
};

struct FwdTile : Tile {
  DType out_dtype;
  QueryRows out;
  QueryScalars lse;
  const float* sink_log2;  // group entries, or null
};

/// Accumulators are rows of float32 at a distance of accumulator_stride floats, for the keys from
/// accumulator_key on. Either both of dk and dv are given or none.
struct BwdTile : Tile {
  QueryRows dout, out;
  QueryScalars lse, dlse;  // dlse.data may be null
  QueryRows dq;            // data may be null: dq is not wanted
  float softmax_scale;
  float* dk;
  float* dv;
  int64_t dk_stride, dv_stride;
  int32_t accumulator_key;
};

/// out = sum over splits of weight[s] * partial[s]; splits of weight 0 are not read.
struct CombineRow {
  DType partial_dtype;
  DType out_dtype;
  int head_dim_v;
  int num_splits;
  const void* partial;
  int64_t split_stride;
  const float* weight;
  void* out;
};

/// Scratch of one thread. Kernels keep nothing in it between calls.
struct alignas(64) Workspace {
  float q[kTileRows * kRowFloats];
  float dout[kTileRows * kRowFloats];
  float q_t[kTileRows * kMaxHeadDim];
  float dout_t[kTileRows * kMaxHeadDim];
  float out_t[kTileRows * kMaxHeadDim];
  float k[kBlockKeys * kRowFloats];
  float v[kBlockKeys * kRowFloats];
  float scores[kBlockKeys * kTileRows];
  float grads[kBlockKeys * kTileRows];
  float reference[kTileRows];
  float sum[kTileRows];
  bool started[kTileRows / 8];  // panels whose accumulator holds something
  int32_t key_first[kTileRows];
  int32_t key_last[kTileRows];
};

struct Kernels {
  const char* name;
  int few_rows;  // tiles with at most as many rows are faster with fwd_few_rows
  void (*fwd_tile)(const FwdTile& tile, Workspace& work);
  void (*fwd_few_rows)(const FwdTile& tile, Workspace& work);
  void (*bwd_tile)(const BwdTile& tile, Workspace& work);
  void (*combine_row)(const CombineRow& row);
  /// Writes count floats times scale to dst, converted. count is a multiple of 8.
  void (*store_row)(DType dtype, const float* src, float scale, void* dst, int count);
  /// Converts a row of count elements to float32, and zeros up to the next multiple of 16.
  void (*load_row)(DType dtype, const void* src, float* dst, int count);
  /// Sum of a[i] * b[i], b of type dtype. count is a multiple of 8.
  float (*dot_row)(DType dtype, const float* a, const void* b, int count);
};

extern const Kernels kKernelsBaseline;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
#endif

/// The widest kernels this machine runs; the environment variable FA4_CPU_ISA (baseline, avx2,
/// avx512) asks for narrower ones. Read once.
const Kernels& kernels();

}  // namespace fa4::cpu
