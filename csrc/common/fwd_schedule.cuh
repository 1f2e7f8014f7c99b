// Forward on GPUs, schedule role: computes the tiles of a block ahead of those who work on them.
#pragma once

#include "csrc/common/fwd_rows.cuh"
#include "flash_attn4/core/query_tile.h"
#include "flash_attn4/device/barriers.cuh"
#include "flash_attn4/device/ptx/griddepcontrol.cuh"

namespace fa4 {

/// One warp. Divisions and reads of lengths cost hundreds of clocks per tile: here nobody waits for
/// them. Tiles that see no key end here too: the others know tiles with blocks only. Behind the last
/// tile comes one that is not valid: the others stop.
/// Waits: kEmpty.  Signals: kFull.
template <auto kFull, auto kEmpty, class Block>
FA4_D void schedule_tiles(const Block& b) {
  Ring<Block::Plan::kTileStages> ring(kWriter);
  bool more = true;
  for (int position = blockIdx.x; more; position += gridDim.x) {
    const QueryTile tile = query_tile(b.args.tiling, position);
    more = tile.valid != 0;
    if (!more) ptx::griddepcontrol_launch_dependents();  // this block has its last tile
    if (more && tile.blocks.size() == 0) {
      if (!tile.idle()) store_nothing(b.args, tile);
      continue;
    }
    b.template wait<kEmpty>(ring.stage, ring.parity);
    if (lane_index() == 0) {
      b.tile(ring.stage) = tile;
      b.template arrive<kFull>(ring.stage);
    }
    __syncwarp();  // no lane may still test the phase when lane 0 is a ring ahead
    ring.advance();
  }
}

}  // namespace fa4
