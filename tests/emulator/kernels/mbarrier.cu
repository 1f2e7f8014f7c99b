// mbarriers: counts, tokens, phases, transactions, arrivals from other CTAs, rings.
#include "ptx.cuh"

namespace {

constexpr int kSlots = 3;

}  // namespace

/// One thread walks a barrier through its phases and writes what each test says.
KERNEL mbarrier_counts(int* out) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  int at = 0;
  ptx::mbarrier_init(bar, 6);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);  // phase 0 is in progress
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 1);  // the phase before the first counts as done
  ptx::mbarrier_arrive(bar, 4);
  ptx::mbarrier_arrive(bar);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);
  ptx::mbarrier_arrive(bar);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 1);
  ptx::mbarrier_arrive(bar, 6);
  out[at++] = ptx::mbarrier_try_wait_parity(bar, 1);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);
  ptx::mbarrier_inval(bar);
  ptx::mbarrier_init(bar, 1);  // a new barrier at the same place starts with phase 0
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);
  ptx::mbarrier_arrive(bar);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);
}

/// The token form: a token stands for the phase of its arrival.
KERNEL mbarrier_tokens(int* out) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  int at = 0;
  ptx::mbarrier_init(bar, 3);
  const uint64_t first = ptx::mbarrier_arrive_token(bar);
  out[at++] = static_cast<int>(ptx::mbarrier_pending_count(first));
  out[at++] = ptx::mbarrier_test_wait(bar, first);
  const uint64_t second = ptx::mbarrier_arrive_token(bar);
  out[at++] = static_cast<int>(ptx::mbarrier_pending_count(second));
  const uint64_t third = ptx::mbarrier_arrive_token(bar);
  out[at++] = static_cast<int>(ptx::mbarrier_pending_count(third));
  out[at++] = ptx::mbarrier_test_wait(bar, first);
  out[at++] = ptx::mbarrier_try_wait(bar, third);
  const uint64_t next = ptx::mbarrier_arrive_token(bar);
  out[at++] = ptx::mbarrier_test_wait(bar, next);
}

/// The phase ends when arrivals and bytes are complete, whichever comes last.
KERNEL mbarrier_transactions(const uint8_t* in, int* out) {
  __shared__ alignas(16) uint8_t tile[256];
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  init_one(bar, 1);
  if (threadIdx.x != 0) return;
  int at = 0;
  ptx::mbarrier_expect_tx(bar, 256);
  ptx::bulk_load(ptx::shared_address(tile), in, 256, bar);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);  // the arrival is missing
  ptx::mbarrier_arrive(bar);
  ptx::mbarrier_wait(bar, 0);
  out[at++] = tile[255];
  ptx::mbarrier_arrive_expect_tx(bar, 128);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 1);  // the bytes are missing
  ptx::bulk_load(ptx::shared_address(tile), in + 128, 64, bar);
  ptx::bulk_load(ptx::shared_address(tile + 64), in + 192, 64, bar);
  ptx::mbarrier_wait(bar, 1);
  out[at++] = tile[0];
  out[at++] = tile[127];
  ptx::mbarrier_arrive_expect_tx(bar, 0);  // no bytes: an arrival
  ptx::mbarrier_wait(bar, 0);
  out[at++] = ptx::mbarrier_test_wait_parity(bar, 0);
}

/// All threads meet at one barrier in every phase and pass a value to the thread beside them.
KERNEL mbarrier_phases(uint32_t* out, int phases) {
  __shared__ uint64_t written, read;
  __shared__ uint32_t value[256];
  const uint32_t threads = blockDim.x;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(ptx::shared_address(&written), threads);
    ptx::mbarrier_init(ptx::shared_address(&read), threads);
  }
  __syncthreads();
  uint32_t mine = threadIdx.x;
  for (int phase = 0; phase < phases; ++phase) {
    value[threadIdx.x] = mine;
    ptx::mbarrier_arrive(ptx::shared_address(&written));
    ptx::mbarrier_wait(ptx::shared_address(&written), phase & 1);
    mine = 3 * value[(threadIdx.x + 1) % threads] + phase;
    ptx::mbarrier_arrive(ptx::shared_address(&read));
    ptx::mbarrier_wait(ptx::shared_address(&read), phase & 1);
  }
  out[threadIdx.x] = mine;
}

/// Producer warps fill slots in turn, consumer warps add up what they find. Empty barriers count
/// one lane per consumer warp, full barriers every lane of the producer.
KERNEL __launch_bounds__(160) mbarrier_ring(const uint32_t* in, uint32_t* out, int steps) {
  __shared__ uint64_t full[kSlots], empty[kSlots];
  __shared__ uint32_t slot[kSlots][32];
  const uint32_t warp = warp_index();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      ptx::mbarrier_init(ptx::shared_address(&full[i]), 32);
      ptx::mbarrier_init(ptx::shared_address(&empty[i]), 3);
    }
  }
  __syncthreads();
  if (warp < 2) {
    for (int step = static_cast<int>(warp); step < steps; step += 2) {
      const int i = step % kSlots;
      ptx::mbarrier_wait_loop(ptx::shared_address(&empty[i]), step / kSlots % 2 ^ 1);
      slot[i][lane_index()] = in[step * 32 + lane_index()];
      ptx::mbarrier_arrive(ptx::shared_address(&full[i]));
    }
    return;
  }
  uint32_t sum = 0;
  for (int step = 0; step < steps; ++step) {
    const int i = step % kSlots;
    ptx::mbarrier_wait_loop(ptx::shared_address(&full[i]), step / kSlots % 2);
    sum = sum * 5 + slot[i][(lane_index() + warp) % 32];
    __syncwarp();
    if (ptx::elect()) ptx::mbarrier_arrive(ptx::shared_address(&empty[i]));
  }
  out[threadIdx.x - 64] = sum;
}

/// Every CTA writes to CTA 0 and arrives on its barrier; CTA 0 waits for all and reads.
KERNEL mbarrier_remote(uint32_t* out, int rounds) {
  __shared__ uint64_t ready, taken;
  __shared__ uint32_t value[8];
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t ranks = ptx::cluster_nctarank();
  const uint32_t ready_bar = ptx::shared_address(&ready);
  const uint32_t taken_bar = ptx::shared_address(&taken);
  init_one(ready_bar, 3 * ranks);
  init_one(taken_bar, 1);
  ptx::cluster_sync();
  for (int round = 0; round < rounds && threadIdx.x < 2; ++round) {
    if (threadIdx.x == 0) {
      const uint32_t to = ptx::mapa(ptx::shared_address(&value[rank]), 0);
      asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(to), "r"(100 * rank + round)
                   : "memory");
      ptx::mbarrier_arrive_remote(ptx::mapa(ready_bar, 0));
    } else {
      ptx::mbarrier_arrive_remote(ptx::mapa(ready_bar, 0), 2);
    }
    if (rank == 0 && threadIdx.x == 0) {
      while (!ptx::mbarrier_try_wait_parity_cluster(ready_bar, round & 1)) {
      }
      uint32_t sum = 0;
      for (uint32_t i = 0; i < ranks; ++i) sum += value[i];
      out[round] = sum;
      for (uint32_t i = 0; i < ranks; ++i) ptx::mbarrier_arrive_remote(ptx::mapa(taken_bar, i));
    }
    while (!ptx::mbarrier_try_wait_parity_cluster(taken_bar, round & 1)) {
    }
  }
  __syncwarp();
  ptx::cluster_sync();
}

/// The even CTA of a pair by clearing bit 24 of a shared address, as CTA-pair kernels reach the
/// leader's barrier.
KERNEL mbarrier_leader_by_mask(uint32_t* out) {
  __shared__ uint64_t barrier;
  const uint32_t bar = ptx::shared_address(&barrier);
  const uint32_t rank = ptx::cluster_ctarank();
  init_one(bar, 2 * blockDim.x);
  ptx::cluster_sync();
  ptx::mbarrier_arrive_remote(bar & 0xfefffff8u);
  if (rank == 0) {
    while (!ptx::mbarrier_try_wait_parity_cluster(bar, 0)) {
    }
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = ptx::mbarrier_test_wait_parity(bar, 0);
  ptx::cluster_sync();
}
