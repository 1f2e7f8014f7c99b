// SM90 forward: the end of a tile. Final scale, log-sum-exp, output through shared memory.
#pragma once

#include "csrc/common/fwd_rows.cuh"
#include "csrc/sm90/fwd/block.cuh"
#include "csrc/sm90/fwd/softmax.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/named_barrier.cuh"
#include "flash_attn4/device/ptx/stmatrix.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm90 {

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
      const Place at = place(b.args, tile, 0, tile_row);
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
      const Place at = place(b.args, tile, 0, 64 * consumer + row);
      if (!at.owned || column >= b.args.head_dim_v) continue;
      store_unit(b.args, offset_of(b.args.out_stride, tile, at) + column,
                 *reinterpret_cast<const uint4*>(staged + Plan::out_layout().offset(row, column)));
    }
    __syncwarp();  // read by all lanes before the next tile is staged
  }
};

}  // namespace fa4::sm90
