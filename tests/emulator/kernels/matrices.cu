// Matrices of a warp: ldmatrix, stmatrix, mma.sync.
#include "ptx.cuh"

// in: 32 rows of 16 bytes, row i is what lane i's address points to. out: registers per lane.
#define LDMATRIX(name, text, count, outputs)                                                \
  KERNEL name(const uint8_t* in, uint32_t* out) {                                           \
    __shared__ alignas(16) uint8_t rows[32 * 48];                                           \
    const uint32_t lane = threadIdx.x;                                                      \
    uint32_t d[4] = {};                                                                     \
    /* 48 bytes apart: the rows of a matrix need not be dense. */                           \
    *reinterpret_cast<uint4*>(rows + 48 * lane) = reinterpret_cast<const uint4*>(in)[lane]; \
    __syncwarp();                                                                           \
    const uint32_t from = ptx::shared_address(rows + 48 * lane);                            \
    asm volatile(text : outputs : "r"(from) : "memory");                                    \
    for (int i = 0; i < count; ++i) out[count * lane + i] = d[i];                           \
  }
#define OUTPUTS_1 "=r"(d[0])
#define OUTPUTS_2 "=r"(d[0]), "=r"(d[1])
#define OUTPUTS_4 "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
#define LIST(...) __VA_ARGS__
LDMATRIX(ldmatrix_x1, "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];", 1, LIST(OUTPUTS_1))
LDMATRIX(ldmatrix_x2, "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];", 2,
         LIST(OUTPUTS_2))
LDMATRIX(ldmatrix_x4, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];", 4,
         LIST(OUTPUTS_4))
LDMATRIX(ldmatrix_x1_trans, "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];", 1,
         LIST(OUTPUTS_1))
LDMATRIX(ldmatrix_x2_trans, "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];", 2,
         LIST(OUTPUTS_2))
LDMATRIX(ldmatrix_x4_trans,
         "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];", 4,
         LIST(OUTPUTS_4))

// in: registers per lane. out: 32 rows of 16 bytes; rows that are not written stay 0xff.
#define STMATRIX(name, text, count, inputs)                                           \
  KERNEL name(const uint32_t* in, uint8_t* out) {                                     \
    __shared__ alignas(16) uint8_t rows[32 * 16];                                     \
    const uint32_t lane = threadIdx.x;                                                \
    uint32_t d[4] = {};                                                               \
    for (int i = 0; i < count; ++i) d[i] = in[count * lane + i];                      \
    reinterpret_cast<uint4*>(rows)[lane] = make_uint4(~0u, ~0u, ~0u, ~0u);            \
    __syncwarp();                                                                     \
    const uint32_t to = ptx::shared_address(rows + 16 * lane);                        \
    asm volatile(text::"r"(to), inputs : "memory");                                   \
    __syncwarp();                                                                     \
    reinterpret_cast<uint4*>(out)[lane] = reinterpret_cast<const uint4*>(rows)[lane]; \
  }
#define INPUTS_1 "r"(d[0])
#define INPUTS_2 "r"(d[0]), "r"(d[1])
#define INPUTS_4 "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3])
STMATRIX(stmatrix_x1, "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};", 1, LIST(INPUTS_1))
STMATRIX(stmatrix_x2, "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};", 2, LIST(INPUTS_2))
STMATRIX(stmatrix_x4, "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};", 4,
         LIST(INPUTS_4))
STMATRIX(stmatrix_x1_trans, "stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};", 1,
         LIST(INPUTS_1))
STMATRIX(stmatrix_x2_trans, "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};", 2,
         LIST(INPUTS_2))
STMATRIX(stmatrix_x4_trans,
         "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};", 4,
         LIST(INPUTS_4))

// A 16 x 16 row-major, B stored as N x K (8 x 16), C and D 16 x 8 row-major, all dense.
#define MMA(name, type)                                                                          \
  KERNEL name(const uint16_t* a, const uint16_t* b, const float* c, float* d) {                  \
    const uint32_t row = threadIdx.x / 4, pair = 2 * (threadIdx.x % 4);                          \
    const auto word = [](const uint16_t* from) {                                                 \
      return *reinterpret_cast<const uint32_t*>(from);                                           \
    };                                                                                           \
    float x[4] = {c[8 * row + pair], c[8 * row + pair + 1], c[8 * (row + 8) + pair],             \
                  c[8 * (row + 8) + pair + 1]};                                                  \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                          \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"          \
                 : "+f"(x[0]), "+f"(x[1]), "+f"(x[2]), "+f"(x[3])                                \
                 : "r"(word(a + 16 * row + pair)), "r"(word(a + 16 * (row + 8) + pair)),         \
                   "r"(word(a + 16 * row + pair + 8)), "r"(word(a + 16 * (row + 8) + pair + 8)), \
                   "r"(word(b + 16 * row + pair)), "r"(word(b + 16 * row + pair + 8)));          \
    d[8 * row + pair] = x[0];                                                                    \
    d[8 * row + pair + 1] = x[1];                                                                \
    d[8 * (row + 8) + pair] = x[2];                                                              \
    d[8 * (row + 8) + pair + 1] = x[3];                                                          \
  }
MMA(mma_m16n8k16_bf16, "bf16")
MMA(mma_m16n8k16_f16, "f16")
