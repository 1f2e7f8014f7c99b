// SM100 forward, mma role: issues every product of the block.
#pragma once

#include "csrc/sm100/fwd/block.cuh"
#include "flash_attn4/device/umma.cuh"

namespace fa4::sm100 {

/// One block of keys of one tile.
struct Item {
  int left;   // blocks of its tile that follow; below 0: past the end of the list
  int flags;  // one register for all

  static constexpr int kOpens = 1;   // the first of its tile
  static constexpr int kRagged = 2;  // its values are cleaned before they are used

  FA4_D bool opens() const { return (flags & kOpens) != 0; }
  FA4_D bool ragged() const { return (flags & kRagged) != 0; }
  FA4_D bool closes() const { return left == 0; }
  FA4_D bool valid() const { return left >= 0; }
};

/// The list of items goes on over tile borders, so the scores of a tile do not wait for the end of
/// the one before:
///
///     S0(0) S1(0) | O0(0) S0(1) O1(0) S1(1) | ... | O0(n) S0'(0) O1(n) S1'(0) | ...   (' next tile)
template <FwdConfig kConfig>
struct Issuer {
  using Plan = FwdPlan<kConfig>;

  const Block<kConfig>& b;
  uint32_t tmem;
  Ring<Plan::kTileStages> tile_ring{kReader};
  Ring<Plan::kKStages> k_ring{kReader};
  Ring<Plan::kVStages> v_ring{kReader};  // of the first part of a step
  uint32_t q_parity = 0;                 // flips with a tile
  uint32_t p_parity = 0;                 // with a step
  uint32_t rescaled_parity = 0;          // with a step that is not the first of its tile
  uint32_t o_parity = kWriter;           // with a tile
  uint32_t clean_parity = 0;             // with a tile that is ragged

  FA4_D Item first_item() {
    b.template wait<kTileFull>(tile_ring.stage, tile_ring.parity);
    const QueryTile& tile = b.tile(tile_ring.stage);
    const Item item = {tile.valid != 0 ? tile.blocks.size() - 1 : -1,
                       Item::kOpens | (b.ragged(tile) ? Item::kRagged : 0)};
    b.template arrive<kTileEmpty>(tile_ring.stage);
    tile_ring.advance();
    return item;
  }
  FA4_D Item item_after(const Item& item) {
    return item.closes() ? first_item() : Item{item.left - 1, 0};
  }

  /// S = Q K^T of a half.
  FA4_D void scores(int half, const Item& item) {
    if (item.opens()) b.template wait<kQFull>(half, q_parity);
    if (half == 0) b.template wait<kKFull>(k_ring.stage, k_ring.parity);
    umma_abt<Plan::kHeadDim, Plan::kCtas>(tmem + Plan::tmem_s(half), b.q(half), Plan::q_layout(),
                                          b.k(k_ring.stage), Plan::k_layout(),
                                          Plan::score_product());
    b.template commit<kSFull>(half);
    if (item.closes()) b.template commit<kQEmpty>(half);
    if (half == 0) return;
    b.template commit<kKEmpty>(k_ring.stage);
    k_ring.advance();
    if (item.opens()) q_parity ^= 1;
  }

  /// O += P V of a half.
  FA4_D void output(int half, const Item& item) {
    // The weights come last: nothing but the product should follow them.
    if (half == 0) b.template wait<kVFull>(v_ring.stage, v_ring.parity);
    if (half == 0 && item.ragged()) {
      if constexpr (Plan::kPair) b.template arrive<kVLanded>(0);
      b.template wait<kVClean>(0, clean_parity);
      clean_parity ^= 1;
    }
    if (item.opens()) {
      b.template wait<kOEmpty>(half, o_parity);
    } else {
      b.template wait<kORescaled>(half, rescaled_parity);
    }
    b.template wait<kPEarly>(half, p_parity);
    ptx::tcgen05_fence_after();
    constexpr int kSteps = Plan::kBlockN / 16;
    constexpr int kEarlySteps = 2 * kConfig.early_fragments;  // of 16 keys; a fragment has 32
    Ring<Plan::kVStages> ring = v_ring;
#pragma unroll
    for (int part = 0; part < Plan::kValueParts; ++part) {
      if (half == 0 && part > 0) b.template wait<kVFull>(ring.stage, ring.parity);
      const int first = part * (kSteps / Plan::kValueParts);
      const int last = first + kSteps / Plan::kValueParts;
      const bool waits = first <= kEarlySteps && kEarlySteps < last;
      output_steps(half, ring.stage, first, first, waits ? kEarlySteps : last, !item.opens());
      if (waits) {
        b.template wait<kPLate>(half, p_parity);
        ptx::tcgen05_fence_after();
        output_steps(half, ring.stage, first, kEarlySteps, last, true);
      }
      if (half == 1) b.template commit<kVEmpty>(ring.stage);
      ring.advance();
    }
    if (item.closes()) b.template commit<kOFull>(half);
    if (half == 0) return;
    v_ring = ring;
    p_parity ^= 1;
    if (!item.opens()) rescaled_parity ^= 1;
    if (item.closes()) o_parity ^= 1;
  }

  /// Steps [first, last) of the product; the values at `stage` begin with step `origin`.
  FA4_D void output_steps(int half, int stage, int origin, int first, int last, bool accumulate) {
    umma_ab<Plan::kCtas>(tmem + Plan::tmem_o(half), tmem + Plan::tmem_p(half), b.v(stage),
                         Plan::v_layout(), Plan::output_product(), origin, first, last, accumulate);
  }
};

/// In the CTA of a pair whose products its leader issues: tiles pass.
/// Waits: tile_full.  Signals: tile_empty.
template <FwdConfig kConfig>
FA4_D void role_mma_follower(const Block<kConfig>& b) {
  Ring<Block<kConfig>::Plan::kTileStages> ring(kReader);
  for (bool more = true; more; ring.advance()) {
    b.template wait<kTileFull>(ring.stage, ring.parity);
    more = b.tile(ring.stage).valid != 0;
    b.template arrive<kTileEmpty>(ring.stage);
  }
}

/// One thread, of the leader of a pair.
/// Waits: tile_full q_full k_full v_full v_clean p_early p_late o_rescaled o_empty.
/// Signals: tile_empty q_empty k_empty v_empty v_landed s_full o_full.
template <FwdConfig kConfig>
FA4_D void role_mma(const Block<kConfig>& b) {
  using Plan = FwdPlan<kConfig>;
  Issuer<kConfig> issuer{b, b.tmem()};
  Item item = issuer.first_item();
  if (!item.valid()) return;
  issuer.scores(0, item);
  issuer.scores(1, item);
  while (item.valid()) {
    const Item next = issuer.item_after(item);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      issuer.output(half, item);
      if (next.valid()) issuer.scores(half, next);
    }
    item = next;
  }
  // Tensor memory is given back when the last output has been read. A pair meets for that.
  if constexpr (!Plan::kPair) {
    for (int half = 0; half < 2; ++half) b.template wait<kOEmpty>(half, issuer.o_parity);
    ptx::tcgen05_fence_after();
  }
}

}  // namespace fa4::sm100
