// SM100 forward, correction role: keeps O at the softmax's reference, and brings it out at the end.
#pragma once

#include "csrc/common/fwd_rows.cuh"
#include "csrc/sm100/fwd/block.cuh"
#include "csrc/sm100/fwd/softmax.cuh"
#include "flash_attn4/device/ptx/compiler.cuh"
#include "flash_attn4/device/ptx/math.cuh"
#include "flash_attn4/device/ptx/tcgen05.cuh"
#include "flash_attn4/device/ptx/tma.cuh"

namespace fa4::sm100 {

/// State of one correction thread, which has a row of each half.
template <FwdConfig kConfig>
struct Correction {
  using Plan = FwdPlan<kConfig>;

  const Block<kConfig>& b;
  int warp;  // of the warpgroup
  uint32_t tmem;
  uint32_t stat_parity = 0;    // flips when both halves have been heard
  uint32_t o_parity = 0;       // with a tile
  uint32_t landed_parity = 0;  // with a tile that is ragged
  int v_parts = 0;             // stages of V that earlier tiles have gone through
  Ring<max_of(Plan::kOutStages, 1)> out_ring{kWriter};

  FA4_D int row() const { return 32 * warp + lane_index(); }

  FA4_D RowStat receive(int half) {
    b.template wait<kStatFull>(4 * half + warp, stat_parity);
    const RowStat stat = b.stat(half, row());
    b.template release<kStatEmpty>(4 * half + warp);
    return stat;
  }

  /// Value rows behind the last key become 0: their weights are, but 0 times NaN is not. Only the
  /// last block of a tile has such rows, and it comes first.
  FA4_D void clean_values(const QueryTile& tile) {
    // A stage's use before this one belongs to the tile before, whose end the correction has seen:
    // so the parity cannot be that of an older phase.
    static_assert(Plan::kVStages >= Plan::kValueParts);
    const int first = tile.k_length - (tile.blocks.last - 1) * Plan::kBlockN;
#pragma unroll 1
    for (int part = 0; part < Plan::kValueParts; ++part) {
      const int position = v_parts + part;
      const int stage = position % Plan::kVStages;
      if constexpr (Plan::kPair) {  // the leader holds v_full: its mma role passes it on
        b.template wait<kVLanded>(0, landed_parity);
        landed_parity ^= 1;
      } else {
        b.template wait<kVFull>(stage, position / Plan::kVStages % 2);
      }
      const int rows = Plan::kValueRows * (part + 1) - first;  // to clear, maybe all of the part
      constexpr int kUnits = Plan::kValueColumns / 8;          // of 16 bytes, per row
#pragma unroll 1
      for (int unit = row(); unit < min_of(rows, Plan::kValueRows) * kUnits; unit += 128) {
        const int value_row = Plan::kValueRows - 1 - unit / kUnits;
        const uint32_t offset = Plan::v_layout().offset(value_row, unit % kUnits * 8);
        *reinterpret_cast<uint4*>(b.shared + Plan::kVOffset + stage * Plan::kVBytes + offset) =
            uint4{};
      }
    }
    ptx::fence_proxy_async();  // the product reads what these stores wrote
    b.template release<kVClean>(0);
  }

  /// O of a half follows the reference of its rows, where any row of the warp has moved.
  FA4_D void rescale(int half) {
    const float factor = receive(half).factor_or_sum;
    if (__any_sync(kAllLanes, factor != 1.0f)) {
      ptx::tcgen05_fence_after();
#pragma unroll 1
      for (int column = 0; column < Plan::kHeadDimV; column += kFragment) {
        const uint32_t address = tmem_address(tmem, warp, Plan::tmem_o(half) + column);
        float o[kFragment];
        ptx::tcgen05_ld_x32(o, address);
        ptx::tcgen05_wait_ld();
        ptx::hold(o);
#pragma unroll
        for (int i = 0; i < kFragment; i += 2) {
          const float2 scaled = __fmul2_rn(float2{o[i], o[i + 1]}, float2{factor, factor});
          o[i] = scaled.x;
          o[i + 1] = scaled.y;
        }
        ptx::tcgen05_st_x16(address, o);
        ptx::tcgen05_st_x16(address + kFragment / 2, o + kFragment / 2);
      }
      ptx::tcgen05_wait_st();
      ptx::tcgen05_fence_before();
    }
    b.template release<kORescaled>(half);
  }

  /// Output and log-sum-exp of a half.
  FA4_D void finish(int half, const QueryTile& tile) {
    const RowStat stat = receive(half);
    const Place at = place(b.args, tile, half, row());
    const RowResult result = finish_row(b.args, tile, at, stat.reference, stat.factor_or_sum);
    store_lse(b.args, tile, at, result.lse);
    b.template wait<kOFull>(half, o_parity);
    ptx::tcgen05_fence_after();
    const bool staged = Plan::kOutStages > 0 && b.args.tensor_store;
#pragma unroll 1
    for (int column = 0; column < Plan::kHeadDimV; column += kFragment) {
      // A stage takes one span of columns: the next can be filled while it is sent.
      const int in_span = column % Plan::kSpanColumns;
      if (staged && in_span == 0) b.template wait<kOutEmpty>(out_ring.stage, out_ring.parity);
      float o[kFragment];
      ptx::tcgen05_ld_x32(o, tmem_address(tmem, warp, Plan::tmem_o(half) + column));
      ptx::tcgen05_wait_ld();
      ptx::hold(o);
#pragma unroll
      for (int i = 0; i < kFragment; i += 8) {
        const uint4 unit = rounded(o + i, result.scale);
        if (staged) {
          *reinterpret_cast<uint4*>(b.shared + b.out_offset(out_ring.stage) +
                                    Plan::out_layout().offset(row(), in_span + i)) = unit;
        } else if (at.owned && column + i < b.args.head_dim_v) {
          store_unit(b.args, offset_of(b.args.out_stride, tile, at) + column + i, unit);
        }
      }
      if (column + kFragment == Plan::kHeadDimV) {
        ptx::tcgen05_fence_before();
        b.template release<kOEmpty>(half);
      }
      if (staged && in_span + kFragment == Plan::kSpanColumns) {
        ptx::fence_proxy_async();  // by every writer: the copy reads what these stores wrote
        b.template release<kOutFull>(out_ring.stage);
        out_ring.advance();
      }
    }
  }

  /// Eight columns scaled and rounded. A row without result is 0 whatever was accumulated: it may be
  /// NaN, which a factor 0 keeps.
  FA4_D static uint4 rounded(const float* o, float scale) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = __fmul2_rn(float2{o[2 * i], o[2 * i + 1]}, float2{scale, scale});
      words[i] = scale == 0.0f ? 0 : ptx::cvt_pack<kConfig.dtype>(x.x, x.y);
    }
    return {words[0], words[1], words[2], words[3]};
  }
};

/// A warpgroup.
/// Waits: tile_full v_full v_landed stat_full o_full out_empty.
/// Signals: tile_empty v_clean stat_empty o_rescaled o_empty out_full.
template <FwdConfig kConfig>
FA4_D void role_correction(const Block<kConfig>& b, int warp) {
  using Plan = FwdPlan<kConfig>;
  Correction<kConfig> correction{b, warp - Plan::kFirstCorrectionWarp, b.tmem()};
  Ring<Plan::kTileStages> ring(kReader);
  for (;; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    const QueryTile& tile = b.tile(ring.stage);
    if (tile.valid == 0) return;
    const int blocks = tile.blocks.size();
    if (b.ragged(tile)) correction.clean_values(tile);
    correction.v_parts += blocks * Plan::kValueParts;
#pragma unroll 1
    for (int step = 1; step < blocks; ++step) {
#pragma unroll 1
      for (int half = 0; half < Plan::kHalves; ++half) correction.rescale(half);
      correction.stat_parity ^= 1;
    }
#pragma unroll 1
    for (int half = 0; half < Plan::kHalves; ++half) correction.finish(half, tile);
    correction.stat_parity ^= 1;
    correction.o_parity ^= 1;
    b.template release<kTileEmpty>(ring.stage);
  }
}

}  // namespace fa4::sm100
