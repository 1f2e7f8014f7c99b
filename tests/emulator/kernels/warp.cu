// Exchange between the lanes of a warp, and lanes that part ways.
#include "ptx.cuh"

#define SHUFFLE(function, mode)                                                                \
  DEVICE uint32_t function(uint32_t value, uint32_t source, uint32_t clamp, uint32_t* valid) { \
    uint32_t result;                                                                           \
    asm volatile(                                                                              \
        "{\n"                                                                                  \
        ".reg .pred p;\n"                                                                      \
        "shfl.sync." mode                                                                      \
        ".b32 %0|p, %2, %3, %4, 0xffffffff;\n"                                                 \
        "selp.b32 %1, 1, 0, p;\n"                                                              \
        "}"                                                                                    \
        : "=r"(result), "=r"(*valid)                                                           \
        : "r"(value), "r"(source), "r"(clamp));                                                \
    return result;                                                                             \
  }                                                                                            \
  KERNEL function##_lanes(const uint32_t* in, const uint32_t* source, uint32_t clamp,          \
                          uint32_t* out) {                                                     \
    const uint32_t lane = threadIdx.x;                                                         \
    uint32_t valid;                                                                            \
    out[lane] = function(in[lane], source[lane], clamp, &valid);                               \
    out[32 + lane] = valid;                                                                    \
  }
SHUFFLE(shfl_idx, "idx")
SHUFFLE(shfl_up, "up")
SHUFFLE(shfl_down, "down")
SHUFFLE(shfl_bfly, "bfly")

/// Row maximum and sum over the four lanes of a quad, as softmax does on fragments.
KERNEL shfl_quads(const float* in, float* out) {
  float largest = in[threadIdx.x], sum = in[threadIdx.x];
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
    sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  }
  out[threadIdx.x] = largest;
  out[32 + threadIdx.x] = sum;
}

KERNEL votes(const int* in, uint32_t* out) {
  const uint32_t lane = threadIdx.x;
  const int value = in[lane];
  uint32_t* to = out + 6 * lane;
  to[0] = __any_sync(kAllLanes, value > 0);
  to[1] = __all_sync(kAllLanes, value > 0);
  to[2] = __ballot_sync(kAllLanes, value > 0);
  uint32_t uniform;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.gt.s32 p, %1, 0;\n"
      "vote.sync.uni.pred q, p, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, q;\n"
      "}"
      : "=r"(uniform)
      : "r"(value));
  to[3] = uniform;
  to[4] = lane < 20 ? __ballot_sync(0x000fffff, value & 1) : __ballot_sync(0xfff00000, value < 0);
  to[5] = __activemask();
}

KERNEL reductions(const int* in, int* out) {
  const int value = in[threadIdx.x];
  const uint32_t bits = static_cast<uint32_t>(value);
  int* to = out + 9 * threadIdx.x;
  to[0] = __reduce_add_sync(kAllLanes, value);
  to[1] = __reduce_min_sync(kAllLanes, value);
  to[2] = __reduce_max_sync(kAllLanes, value);
  to[3] = static_cast<int>(__reduce_min_sync(kAllLanes, bits));
  to[4] = static_cast<int>(__reduce_max_sync(kAllLanes, bits));
  to[5] = static_cast<int>(__reduce_and_sync(kAllLanes, bits));
  to[6] = static_cast<int>(__reduce_or_sync(kAllLanes, bits));
  to[7] = static_cast<int>(__reduce_xor_sync(kAllLanes, bits));
  to[8] = threadIdx.x < 8 ? __reduce_add_sync(0xff, value) : 0;
}

/// One lane per warp is elected, the same one every time.
KERNEL elections(uint32_t* out) {
  const bool first = ptx::elect();
  const bool second = ptx::elect();
  uint32_t leader;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync %0|p, 0xffffffff;\n"
      "}"
      : "=r"(leader));
  out[3 * threadIdx.x] = first;
  out[3 * threadIdx.x + 1] = second;
  out[3 * threadIdx.x + 2] = leader;
}

KERNEL matches(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = threadIdx.x;
  int same = 0;
  out[lane] = __match_any_sync(kAllLanes, in[lane]);
  out[32 + lane] = __match_all_sync(kAllLanes, in[lane], &same);
  out[64 + lane] = same;
}

/// As many rounds as the lane's value says.
KERNEL loops(const uint32_t* in, uint32_t* out) {
  uint32_t value = in[threadIdx.x];
  uint32_t rounds = 0;
  while (value != 1) {
    value = value & 1 ? 3 * value + 1 : value / 2;
    ++rounds;
  }
  out[threadIdx.x] = rounds;
}

/// Nested branches with a reconvergence and a shuffle in between.
KERNEL branches(const int* in, int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = in[lane];
  if (value > 0) {
    if (value & 1) {
      for (int i = 0; i < (value & 7); ++i) value += __popc(value) + i;
    } else {
      value = value > 50 ? -value : value * 3;
      if (lane & 4) value ^= 0x55;
    }
  } else if (value < -20) {
    value = value / 3 - lane;
  }
  __syncwarp();
  const int other = __shfl_xor_sync(kAllLanes, value, 5);
  switch (in[lane] & 3) {
    case 0:
      value += other;
      break;
    case 1:
      value -= other;
      break;
    case 2:
      value ^= other;
      break;
    default:
      value = other;
      break;
  }
  out[lane] = value;
}

/// Some lanes leave; the rest go on with the mask of those who stay.
KERNEL early_return(const int* in, int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const bool stays = in[lane] >= 0;
  const uint32_t mask = __ballot_sync(kAllLanes, stays);
  if (!stays) return;
  int sum = 0;
  for (int i = 0; i < 32; ++i) {
    if (mask >> i & 1) sum += __shfl_sync(mask, in[lane], i);
  }
  out[lane] = sum + static_cast<int>(__reduce_max_sync(mask, static_cast<uint32_t>(lane)));
}

/// Lane 31 of warp 0 spins until lane 0 of warp 1 writes; warp 1 first waits for lane 0 of warp 0.
/// The lanes of warp 0 must make progress independently of each other.
KERNEL spins(int* out) {
  __shared__ volatile int ready, answer;
  if (threadIdx.x == 0) {
    ready = 0;
    answer = 0;
  }
  __syncthreads();
  const uint32_t thread = threadIdx.x;
  if (thread == 31) {
    while (answer == 0) {
    }
    out[0] = answer;
  } else if (thread == 0) {
    ready = 5;
  } else if (thread == 32) {
    while (ready == 0) __nanosleep(20);
    answer = ready + 1;
  }
  __syncthreads();
  out[1 + thread] = ready + answer;
}

/// Lanes of one warp take a lock one after the other.
KERNEL locks(int* lock, int* counter, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    bool done = false;
    while (!done) {
      if (atomicCAS(lock, 0, 1) == 0) {
        __threadfence();
        *static_cast<volatile int*>(counter) = *static_cast<volatile int*>(counter) + 1;
        __threadfence();
        atomicExch(lock, 0);
        done = true;
      }
    }
  }
}

/// A local array that is indexed at run time.
KERNEL local_memory(const int* in, int* out) {
  int table[16];
  for (int i = 0; i < 16; ++i) table[i] = in[(threadIdx.x + i) % 32];
  int sum = 0;
  for (int i = 0; i < 16; ++i) sum = sum * 31 + table[in[i] & 15];
  out[threadIdx.x] = sum;
}
