// SM90 forward, schedule role: computes the tiles of this block ahead of those who work on them.
#pragma once

#include "csrc/common/fwd_rows.cuh"
#include "csrc/sm90/fwd/block.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"

namespace fa4::sm90 {

/// One warp. Divisions and reads of lengths cost hundreds of clocks per tile: here nobody waits for
/// them. Tiles that see no key end here too: the others know tiles with blocks only.
/// Waits: tile_empty.  Signals: tile_full.
template <FwdConfig kConfig>
FA4_D void role_schedule(const Block<kConfig>& b) {
  Ring<FwdPlan<kConfig>::kTileStages> ring(kWriter);
  bool more = true;
  for (int position = blockIdx.x; more; position += gridDim.x) {
    const QueryTile tile = query_tile(b.args.tiling, position);
    more = tile.valid != 0;
    if (!more) ptx::griddepcontrol_launch_dependents();  // this block has its last tile
    if (more && tile.blocks.size() == 0) {
      if (!tile.idle()) store_nothing(b.args, tile);
      continue;
    }
    b.template wait<kTileEmpty>(ring.stage, ring.parity);
    if (lane_index() == 0) {
      b.tile(ring.stage) = tile;  // past the last one the tile is not valid: the others stop
      b.template arrive<kTileFull>(ring.stage);
    }
    __syncwarp();  // no lane may still test the phase when lane 0 is a ring ahead
    ring.advance();
  }
}

}  // namespace fa4::sm90
