// SM90 forward: the end of a tile. Final scale, log-sum-exp, output through shared memory.
#pragma once

#include "csrc/sm90/fwd/block.cuh"
#include "csrc/sm90/fwd/softmax.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/named_barrier.cuh"
#include "flash_attn4/device/ptx/stmatrix.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm90 {

/// Where a row of a tile lies.
struct Place {
  int query;  // in its sequence
  int head;
  bool owned;  // the row is to be written
};

FA4_D Place place(const FwdArgs& args, const QueryTile& tile, int tile_row) {
  const int packed = args.packed_heads;
  const int in_tile = packed == 1 ? tile_row : tile_row / packed;  // a division takes long
  const int query = tile.first_query + in_tile;
  return {query, tile.head * packed + tile_row - in_tile * packed,
          in_tile < args.tiling.queries && query < tile.q_owned};
}

/// Elements from out or lse to a row.
FA4_D int64_t offset_of(const Strides& stride, const QueryTile& tile, const Place& at) {
  return tile.batch * stride.batch + int64_t{tile.q_row + at.query} * stride.row +
         at.head * stride.head;
}

/// 16 bytes of an output row, in one store where the rows allow it.
FA4_D void store_unit(const FwdArgs& args, int64_t offset, const uint4& unit) {
  auto* to = static_cast<uint16_t*>(args.out_data) + offset;
  if (args.vector_store) {
    *reinterpret_cast<uint4*>(to) = unit;
    return;
  }
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
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

/// A tile whose rows see no key. By a whole warp.
FA4_D void store_nothing(const FwdArgs& args, const QueryTile& tile) {
  int lane = lane_index();
  ptx::keep_here(lane);  // rarely used: not worth registers of the loop over tiles
  const int rows = args.tiling.queries * args.packed_heads;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const Place at = place(args, tile, row);
    const RowResult row_result = finish_row(args, tile, at, kMinusInfinity, 0.0f);
    if (lane == 0) store_lse(args, tile, at, row_result.lse);
    const int64_t offset = offset_of(args.out_stride, tile, at);
#pragma unroll 1
    for (int column = 8 * lane; at.owned && column < args.head_dim_v; column += 256) {
      store_unit(args, offset + column, uint4{});
    }
  }
}

/// Writes the rows of one consumer; one object per consumer thread.
template <FwdConfig kConfig>
struct Store {
  using Plan = FwdPlan<kConfig>;

  const Block<kConfig>& b;
  int consumer;         // which warpgroup
  int warp;             // in it
  int lane;             // in that
  float scale[kRows];   // of the output that is to be written
  int pending = kNone;  // stage of the tile whose output is staged and not yet on its way

  static constexpr int kNone = -1;

  /// All weights of the tile have been summed.
  FA4_D void finish_rows(const QueryTile& tile, const RowState& rows) {
    const Store self = here();
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float sum = rows.sum[row];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      const int tile_row = fragment_row(self.consumer, self.warp, self.lane, row);
      const Place at = place(b.args, tile, tile_row);
      const RowResult result = finish_row(b.args, tile, at, rows.reference[row], sum);
      scale[row] = result.scale;
      if (self.lane % 4 == 0) store_lse(b.args, tile, at, result.lse);
    }
  }

  /// Scales and rounds o, this thread's unscaled accumulators of tile `stage`, into shared memory.
  /// The way from there is send's, which waits for threads and memory: it comes when products are
  /// in flight.
  FA4_D void write(int stage, float (&o)[Plan::kHeadDim / 2]) {
    const Store self = here();
    if (!__all_sync(kAllLanes, scale[0] != 0.0f && scale[1] != 0.0f)) {
#pragma unroll
      for (int i = 0; i < Plan::kHeadDim / 2; ++i) {
        if (scale[i / 2 % 2] == 0.0f) o[i] = 0.0f;  // may be NaN, which a factor 0 keeps
      }
    }
    if (b.args.tensor_store) self.wait_for_staging();
    self.fill_staging(o);
    pending = stage;
  }

  FA4_D void send() {
    const Store self = here();
    const QueryTile& tile = b.tile(pending);
    if (b.args.tensor_store) {
      self.store_by_tensor(tile);
    } else {
      self.store_by_row(tile);
    }
    b.template release<kTileEmpty>(pending);
    pending = kNone;
  }

  /// Shared memory must outlive the copies that read it.
  FA4_D void drain() {
    if (issues_copies()) ptx::bulk_wait_group_read<0>();
  }

 private:
  FA4_D bool issues_copies() const { return threadIdx.x % 128 == 0; }

  /// This object, its addresses still to be computed. They would else be ahead of the loop over
  /// tiles, and wait in registers through every tile.
  FA4_D Store here() const {
    Store self = *this;
    self.lane = lane_index();
    ptx::keep_here(self.lane);
    ptx::keep_here(self.consumer);
    ptx::keep_here(self.warp);
    return self;
  }

  /// The copies of the tile before have read the staging buffer.
  FA4_D void wait_for_staging() const {
    if (issues_copies()) ptx::bulk_wait_group_read<0>();
    ptx::bar_sync(kStage + consumer, 128);
  }

  /// 16 rows of this consumer's staging buffer per warp.
  FA4_D void fill_staging(const float (&o)[Plan::kHeadDim / 2]) const {
    const int row = 16 * warp + lane % 16;  // whose address this lane gives
    const uint32_t base = b.address + b.out_offset(consumer);
#pragma unroll
    for (int column = 0; column < Plan::kHeadDim; column += 16) {
      uint32_t matrix[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // registers of rows r, r + 8, r, r + 8
        const float* pair = &o[column / 2 + 2 * i];
        matrix[i] = ptx::cvt_pack<kConfig.dtype>(pair[0] * scale[i % 2], pair[1] * scale[i % 2]);
      }
      ptx::stmatrix_x4(base + Plan::out_layout().offset(row, column + lane / 16 * 8), matrix);
    }
  }

  FA4_D void store_by_tensor(const QueryTile& tile) const {
    ptx::fence_proxy_async();  // by every writer: the copy reads what stmatrix wrote
    ptx::bar_sync(kStage + consumer, 128);
    if (!issues_copies()) return;
    const int first_query = tile.first_query + 64 * consumer / b.args.packed_heads;
#pragma unroll
    for (int chunk = 0; chunk < Plan::kChunks; ++chunk) {
      ptx::tensor_store_5d(
          &b.args.out,
          b.address + b.out_offset(consumer) + chunk * Plan::out_layout().chunk_bytes(), 64 * chunk,
          0, first_query, tile.head, tile.batch);
    }
    ptx::bulk_commit_group();
  }

  /// By each warp for its own rows: 16 bytes per lane.
  FA4_D void store_by_row(const QueryTile& tile) const {
    __syncwarp();  // staged by all lanes
    constexpr int kUnits = Plan::kHeadDim / 8;
    const int column = lane % kUnits * 8;
    const uint8_t* staged = b.shared + b.out_offset(consumer);
#pragma unroll 1
    for (int row = 16 * warp + lane / kUnits; row < 16 * warp + 16; row += 32 / kUnits) {
      const Place at = place(b.args, tile, 64 * consumer + row);
      if (!at.owned || column >= b.args.head_dim_v) continue;
      store_unit(b.args, offset_of(b.args.out_stride, tile, at) + column,
                 *reinterpret_cast<const uint4*>(staged + Plan::out_layout().offset(row, column)));
    }
    __syncwarp();  // read by all lanes before the next tile is staged
  }
};

}  // namespace fa4::sm90
