// Forward on GPUs: from a row of a tile to memory, and what ends a row: scale, log-sum-exp, sink.
#pragma once

#include "csrc/common/fwd_args.h"
#include "csrc/common/rows.cuh"
#include "flash_attn4/core/softmax.h"
#include "flash_attn4/device/device.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"

namespace fa4 {

/// Where a row of a tile lies.
struct Place {
  int query;  // in its sequence
  int head;
  bool owned;  // the row is to be written
};

/// Of row `row` of box `box`.
FA4_D Place place(const FwdArgs& args, const QueryTile& tile, int box, int row) {
  const int packed = args.packed_heads;
  const int in_box = packed == 1 ? row : row / packed;  // a division takes long
  const int query = tile.first_query + box * args.box_queries + in_box;
  return {query, tile.head * packed + row - in_box * packed,
          in_box < args.box_queries && query < tile.q_owned};
}

/// Elements from out or lse to a row.
FA4_D int64_t offset_of(const Strides& stride, const QueryTile& tile, const Place& at) {
  return tile.batch * stride.batch + int64_t{tile.q_row + at.query} * stride.row +
         at.head * stride.head;
}

/// 16 bytes of an output row.
FA4_D void store_unit(const FwdArgs& args, int64_t offset, const uint4& unit) {
  store_unit(args.out_data, offset, unit, args.vector_store);
}

FA4_D float sink_log2(const FwdArgs& args, int head) {
  const void* sink = args.sink;
  const float value = args.sink_dtype == DType::kFloat32 ? static_cast<const float*>(sink)[head]
                      : args.sink_dtype == DType::kFloat16
                          ? __half2float(static_cast<const __half*>(sink)[head])
                          : __bfloat162float(static_cast<const __nv_bfloat16*>(sink)[head]);
  return value * kLog2e;
}

/// What becomes of a row.
struct RowResult {
  float scale;  // of its output; 0 where the output is 0 whatever was accumulated
  float lse;
};

/// Completes a row from its reference and sum.
FA4_D RowResult finish_row(const FwdArgs& args, const QueryTile& tile, const Place& at,
                           float reference, float sum) {
  const bool empty = sum == 0.0f;  // a sink gives it a sum, but no output
  float factor = 1.0f;
  if (args.sink != nullptr && at.owned) factor = add_sink(reference, sum, sink_log2(args, at.head));
  const bool counts = at.query < tile.q_length;
  return {counts && !empty ? factor * ptx::rcp(sum) : 0.0f,
          counts ? kLn2 * (reference + ptx::lg2(sum)) : kMinusInfinity};
}

FA4_D void store_lse(const FwdArgs& args, const QueryTile& tile, const Place& at, float lse) {
  if (at.owned) args.lse_data[offset_of(args.lse_stride, tile, at)] = lse;
}

/// A tile of `queries` queries whose rows see no key. By a whole warp.
FA4_D void store_nothing(const FwdArgs& args, const QueryTile& tile, int queries) {
  int lane = lane_index();
  ptx::keep_here(lane);  // rarely used: not worth registers of the loop over tiles
  const int rows = args.box_queries * args.packed_heads;
#pragma unroll 1
  for (int box = 0; box * args.box_queries < queries; ++box) {
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
      const Place at = place(args, tile, box, row);
      const RowResult row_result = finish_row(args, tile, at, kMinusInfinity, 0.0f);
      if (lane == 0) store_lse(args, tile, at, row_result.lse);
      const int64_t offset = offset_of(args.out_stride, tile, at);
#pragma unroll 1
      for (int column = 8 * lane; at.owned && column < args.head_dim_v; column += 256) {
        store_unit(args, offset + column, uint4{});
      }
    }
  }
}

}  // namespace fa4
