// Barriers of the CTA, of the warp and of the cluster, shared memory of other CTAs, registers.
#include "ptx.cuh"

/// Warps w and w + 4 meet at barrier 3 + w, whose number is in a register: the first four hand over
/// with bar.arrive, the others wait with bar.sync; a second barrier goes the other way.
KERNEL __launch_bounds__(256) named_barriers(uint32_t* out, int rounds) {
  __shared__ uint32_t value[4][32];
  const uint32_t pair = warp_index() % 4;
  const uint32_t lane = lane_index();
  if (warp_index() < 4) {
    for (int round = 0; round < rounds; ++round) {
      if (round > 0) ptx::bar_sync(7 + pair, 64);
      value[pair][lane] = 1000 * pair + 10 * round + lane;
      ptx::bar_arrive(3 + pair, 64);
    }
    return;
  }
  uint32_t sum = 0;
  for (int round = 0; round < rounds; ++round) {
    ptx::bar_sync(3 + pair, 64);
    sum = 7 * sum + value[pair][31 - lane];
    if (round + 1 < rounds) ptx::bar_arrive(7 + pair, 64);
  }
  out[threadIdx.x - 128] = sum;
}

/// Ping-pong of three groups of four warps: each waits for its turn and passes it on.
KERNEL __launch_bounds__(384) named_turns(uint32_t* out, int rounds) {
  __shared__ uint32_t counter;
  const uint32_t group = threadIdx.x / 128;
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  if (group == 2) ptx::bar_arrive(1, 256);  // opens the first turn of group 0
  for (int round = 0; round < rounds; ++round) {
    ptx::bar_sync(1 + group, 256);
    const uint32_t seen = counter;
    ptx::bar_sync(8 + group, 128);
    if (threadIdx.x % 128 == 0) counter = seen + 1;
    if (threadIdx.x % 128 == 0) out[round * 3 + group] = seen;
    if (round + 1 < rounds || group < 2) ptx::bar_arrive(1 + (group + 1) % 3, 256);
  }
}

/// bar.red: every thread gets the count, the conjunction and the disjunction.
KERNEL barrier_reductions(const int* in, int* out) {
  const int value = in[threadIdx.x];
  out[3 * threadIdx.x] = __syncthreads_count(value);
  out[3 * threadIdx.x + 1] = __syncthreads_and(value >= 0);
  out[3 * threadIdx.x + 2] = __syncthreads_or(value > 1000);
}

/// Half a warp synchronises, then the whole warp.
KERNEL warp_barriers(uint32_t* out) {
  __shared__ uint32_t value[32];
  const uint32_t lane = lane_index();
  value[lane] = 2 * lane;
  if (lane < 16) {
    asm volatile("bar.warp.sync 0x0000ffff;" ::: "memory");
    const uint32_t other = value[15 - lane];
    asm volatile("bar.warp.sync 0x0000ffff;" ::: "memory");
    value[lane] = other + 1;
  }
  asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
  out[lane] = value[lane ^ 8] + value[31 - lane];
}

/// Twelve special registers of each CTA.
KERNEL cluster_registers(uint32_t* out) {
  const uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  if (threadIdx.x != 0) return;
  uint32_t* to = out + 12 * block;
  to[0] = ptx::clusterid_x();
  to[1] = ptx::clusterid_y();
  to[2] = ptx::clusterid_z();
  to[3] = ptx::nclusterid_x();
  to[4] = ptx::nclusterid_y();
  to[5] = ptx::cluster_ctaid_x();
  to[6] = ptx::cluster_ctaid_y();
  to[7] = ptx::cluster_ctaid_z();
  to[8] = ptx::cluster_nctaid_x();
  to[9] = ptx::cluster_nctaid_y();
  to[10] = ptx::cluster_ctarank();
  to[11] = ptx::cluster_nctarank();
}

/// Thread, lane, warp and size registers.
KERNEL thread_registers(uint32_t* out) {
  const uint32_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  uint32_t* to = out + 12 * thread;
  to[0] = threadIdx.x;
  to[1] = threadIdx.y;
  to[2] = threadIdx.z;
  to[3] = ptx::laneid();
  to[4] = ptx::warpid();
  to[5] = ptx::lanemask_eq();
  to[6] = ptx::lanemask_lt();
  to[7] = ptx::lanemask_le();
  to[8] = ptx::lanemask_gt();
  to[9] = ptx::lanemask_ge();
  to[10] = ptx::dynamic_smem_size();
  to[11] = blockDim.x * blockDim.y * blockDim.z;
}

/// Reads and writes the next CTA's shared memory, through 32-bit and generic addresses.
KERNEL cluster_shared(uint32_t* out) {
  __shared__ uint32_t mine[32], received[32], generic[32];
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t ranks = ptx::cluster_nctarank();
  const uint32_t next = (rank + 1) % ranks;
  const uint32_t lane = threadIdx.x;
  mine[lane] = 100 * rank + lane;
  ptx::cluster_sync();
  uint32_t loaded;
  asm volatile("ld.shared::cluster.u32 %0, [%1];"
               : "=r"(loaded)
               : "r"(ptx::mapa(ptx::shared_address(&mine[lane]), next))
               : "memory");
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(
                   ptx::mapa(ptx::shared_address(&received[lane]), next)),
               "r"(loaded + 1000)
               : "memory");
  uint32_t* remote = ptx::mapa_generic(&generic[31 - lane], next);
  *remote = 5000 + 100 * rank + lane;
  ptx::cluster_sync();
  uint32_t* to = out + blockIdx.x * 96;
  to[lane] = loaded;
  to[32 + lane] = received[lane];
  to[64 + lane] = generic[lane];
}

/// The relaxed arrive with the wait apart from it; a counter in CTA 0 that all CTAs add to.
KERNEL cluster_relaxed(uint32_t* out) {
  __shared__ uint32_t counter;
  const uint32_t rank = ptx::cluster_ctarank();
  if (threadIdx.x == 0) counter = 0;
  __syncthreads();
  ptx::cluster_sync();
  const uint32_t to = ptx::mapa(ptx::shared_address(&counter), 0);
  asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(to), "r"(rank + 1)
               : "memory");
  ptx::cluster_arrive();
  const uint32_t unrelated = threadIdx.x * threadIdx.x;
  ptx::cluster_wait();
  if (rank == 0) out[threadIdx.x] = counter + unrelated;
  asm volatile("fence.acq_rel.cluster;" ::: "memory");
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
}

/// st.async: the value and its bytes go to the next CTA's memory and barrier.
KERNEL cluster_store_async(uint32_t* out) {
  __shared__ alignas(16) uint32_t received[32][8];
  __shared__ uint64_t full;
  const uint32_t bar = ptx::shared_address(&full);
  const uint32_t rank = ptx::cluster_ctarank();
  const uint32_t next = (rank + 1) % ptx::cluster_nctarank();
  const uint32_t lane = threadIdx.x;
  init_one(bar, 1);
  if (lane == 0) ptx::mbarrier_arrive_expect_tx(bar, sizeof(received));
  ptx::cluster_sync();
  const uint32_t to = ptx::mapa(ptx::shared_address(received[lane]), next);
  const uint32_t remote = ptx::mapa(bar, next);
  const uint32_t value = 1000 * rank + 10 * lane;
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "r"(value), "r"(value + 1), "r"(value + 2), "r"(value + 3), "r"(remote)
      : "memory");
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to + 16),
      "l"(uint64_t{value + 5} << 32 | (value + 4)), "r"(remote)
      : "memory");
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to + 24),
      "r"(value + 6), "r"(remote)
      : "memory");
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to + 28),
      "f"(__uint_as_float(value + 7)), "r"(remote)
      : "memory");
  ptx::mbarrier_wait(bar, 0);
  for (int i = 0; i < 8; ++i) out[(blockIdx.x * 32 + lane) * 8 + i] = received[lane][i];
  ptx::cluster_sync();
}

/// Three warpgroups: one gives registers back and hands values to the two that took them.
KERNEL __launch_bounds__(384, 1) registers_moved(const float* in, float* out, int steps) {
  __shared__ float value[2][128];
  const uint32_t group = threadIdx.x / 128;
  const uint32_t thread = threadIdx.x % 128;
  if (group == 0) {
    ptx::setmaxnreg_dec<24>();
    for (int step = 0; step < steps; ++step) {
      if (step >= 2) ptx::bar_sync(3 + step % 2, 384);
      value[step % 2][thread] = in[step * 128 + thread];
      ptx::bar_arrive(1 + step % 2, 384);
    }
    return;
  }
  ptx::setmaxnreg_inc<240>();
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    ptx::bar_sync(1 + step % 2, 384);
    sum += value[step % 2][thread] * group;
    if (step + 2 < steps) ptx::bar_arrive(3 + step % 2, 384);
  }
  out[(group - 1) * 128 + thread] = sum;
}

/// Without the launch attribute both instructions do nothing.
KERNEL dependent_launch(const uint32_t* in, uint32_t* out) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  out[threadIdx.x] = in[threadIdx.x] + 1;
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
