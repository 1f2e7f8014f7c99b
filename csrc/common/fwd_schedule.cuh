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
/// Of kCtas CTAs that share a tile, neighbours in a cluster, each has the rows from its first_query
/// on and goes through the blocks of keys of all of them.
/// Waits: kEmpty.  Signals: kFull.
template <auto kFull, auto kEmpty, int kCtas = 1, class Block>
FA4_D void schedule_tiles(const Block& b) {
  Ring<Block::Plan::kTileStages> ring(kWriter);
  bool more = true;
  const int queries = b.args.tiling.queries / kCtas;
  for (int position = blockIdx.x / kCtas; more; position += gridDim.x / kCtas) {
    QueryTile tile = query_tile(b.args.tiling, position);
    tile.first_query += blockIdx.x % kCtas * queries;
    more = tile.valid != 0;
    if (!more) ptx::griddepcontrol_launch_dependents();  // this block has its last tile
    if (more && tile.blocks.size() == 0) {
      if (!tile.idle()) store_nothing(b.args, tile, queries);
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
