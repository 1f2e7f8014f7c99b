// Matrices spread over the registers of a warp: ldmatrix, stmatrix, movmatrix, mma.sync.
#include <cstring>

#include "csrc/emulator/check/checker.h"
#include "csrc/emulator/isa/access.h"
#include "csrc/emulator/isa/families.h"
#include "csrc/emulator/isa/scalar.h"
#include "csrc/emulator/tensor/tensor_core.h"

namespace fa4::emulator {

using ptx::Operand;

namespace {

/// An 8x8 matrix of 16-bit elements: lane l holds elements (l/4, 2*(l%4)) and the next of its row.
struct Matrix {
  uint16_t element[8][8];
};

void from_lanes(const uint32_t* plane, Matrix* m) {
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    m->element[l / 4][2 * (l % 4)] = static_cast<uint16_t>(plane[l]);
    m->element[l / 4][2 * (l % 4) + 1] = static_cast<uint16_t>(plane[l] >> 16);
  }
}

void to_lanes(const Matrix& m, uint32_t* plane) {
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    plane[l] = m.element[l / 4][2 * (l % 4)] |
               static_cast<uint32_t>(m.element[l / 4][2 * (l % 4) + 1]) << 16;
  }
}

Matrix transposed(const Matrix& m) {
  Matrix result;
  for (int r = 0; r < 8; ++r) {
    for (int c = 0; c < 8; ++c) result.element[c][r] = m.element[r][c];
  }
  return result;
}

/// Lanes that give addresses of rows.
uint32_t row_lanes(const Op& op) {
  return op.list_count == 4 ? kAllLanes : (1u << 8 * op.list_count) - 1;
}

/// Row r of matrix k lies at the address in lane 8k + r. mode: transposed.
void run_ldmatrix(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->access(w, op, row_lanes(op), 16, false);
  Matrix matrices[4];
  const bool check = w.cta->cluster->options->check_uninitialized;
  for (uint32_t k = 0; k < op.list_count; ++k) {
    for (uint32_t r = 0; r < 8; ++r) {
      const uint32_t lane = 8 * k + r;
      const uint64_t address = lane_address(w, op, lane, kA);
      const uint8_t* const row = resolve(w, static_cast<AccessSpace>(op.space), address, 16, lane);
      std::memcpy(matrices[k].element[r], row, 16);
      // Whole words: the rows may hold halves of 32-bit data, of which one may look like poison.
      for (int c = 0; check && c < 8; c += 2) {
        const uint16_t* const pair = &matrices[k].element[r][c];
        if (pair[0] != kPoison16 || pair[1] != kPoison16) continue;
        throw Fault("ldmatrix: shared memory at " + hex(address & 0xffffffffu) +
                    " was never written, or is read before a copy into it has completed");
      }
    }
  }
  for (uint32_t k = 0; k < op.list_count; ++k) {
    to_lanes(op.mode != 0 ? transposed(matrices[k]) : matrices[k],
             w.target(w.code->lists[op.list + k]));
  }
}

void run_stmatrix(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  if (auto* const checker = w.cta->cluster->checker.get())
    checker->access(w, op, row_lanes(op), 16, true);
  for (uint32_t k = 0; k < op.list_count; ++k) {
    Matrix m;
    from_lanes(w.source(w.code->lists[op.list + k]), &m);
    if (op.mode != 0) m = transposed(m);
    for (uint32_t r = 0; r < 8; ++r) {
      const uint32_t lane = 8 * k + r;
      const uint64_t address = lane_address(w, op, lane, kA);
      std::memcpy(resolve(w, static_cast<AccessSpace>(op.space), address, 16, lane), m.element[r],
                  16);
    }
  }
  w.cta->cluster->notify();
}

void run_movmatrix(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  Matrix m;
  from_lanes(w.source(op.r[kA]), &m);
  to_lanes(transposed(m), w.target(op.r[kD]));
}

/// m16n8k16 with fp32 accumulators. The list: four of D, four of A, two of B, four of C. mode: bf16.
void run_mma_sync(Warp& w, const Op& op) {
  if (!converged(w, kAllLanes)) return;
  const Half type = op.mode != 0 ? Half::kBF16 : Half::kF16;
  const PlaneRef* const list = w.code->lists.data() + op.list;
  const uint32_t* a_planes[4];
  for (int k = 0; k < 4; ++k) a_planes[k] = w.source(list[4 + k]);
  float a[kK * 16], b[kK * 8];
  read_fragment_operand(a_planes, type, a);
  // B: register i of lane l holds rows k = 2*(l%4) + 8i and the next, of column l/4.
  for (uint32_t l = 0; l < kWarpLanes; ++l) {
    for (uint32_t i = 0; i < 2; ++i) {
      const uint32_t pair = w.source(list[8 + i])[l], k = 2 * (l % 4) + 8 * i, n = l / 4;
      b[k * 8 + n] = half_value(pair & 0xffff, op.mode != 0);
      b[(k + 1) * 8 + n] = half_value(pair >> 16, op.mode != 0);
    }
  }
  alignas(64) float d[4][kWarpLanes];
  float* planes[4];
  for (int k = 0; k < 4; ++k) {
    std::memcpy(d[k], w.source(list[10 + k]), sizeof d[k]);
    planes[k] = d[k];
  }
  multiply_fragments(planes, a, b, 8, true, w.cta->cluster->options->accumulate);
  for (int k = 0; k < 4; ++k) std::memcpy(w.target(list[k]), d[k], sizeof d[k]);
  ++w.cta->cluster->statistics.mma;
  w.cta->cluster->statistics.fma += 16 * 8 * 16;
}

/// Refuses another number of registers than .x1, .x2, .x4 name.
void check_matrices(const Lowering& l, const Draft& draft) {
  const size_t count = l.has("x4") ? 4 : l.has("x2") ? 2 : 1;
  if (draft.list.size() != count) l.unmodelled("the number of registers");
}

}  // namespace

void lower_ldmatrix(Lowering& l) {
  Draft& draft = l.emit(run_ldmatrix, OpClass::kShared);
  draft.op.mode = l.has("trans");
  l.writes_list(draft, l.operand(0), 4);
  check_matrices(l, draft);
  l.address(draft, l.operand(1));
  draft.op.space = static_cast<uint8_t>(access_space(l));
}

void lower_stmatrix(Lowering& l) {
  Draft& draft = l.emit(run_stmatrix, OpClass::kShared);
  draft.op.mode = l.has("trans");
  l.address(draft, l.operand(0));
  l.reads_list(draft, l.operand(1), 4);
  check_matrices(l, draft);
  draft.op.space = static_cast<uint8_t>(access_space(l));
}

void lower_movmatrix(Lowering& l) {
  Draft& draft = l.emit(run_movmatrix, OpClass::kWarp);
  l.writes(draft, kD, l.operand(0), 4);
  l.reads(draft, kA, l.operand(1), 4);
}

void lower_mma(Lowering& l) {
  const bool bf16 = l.part(7) == "bf16";
  const bool known = l.part(3) == "m16n8k16" && l.has("row") && l.has("col") &&
                     l.part(6) == "f32" && l.part(9) == "f32" && (bf16 || l.part(7) == "f16") &&
                     l.part(7) == l.part(8);
  if (!known) l.unmodelled();
  Draft& draft = l.emit(run_mma_sync, OpClass::kMma);
  draft.op.mode = bf16;
  l.writes_list(draft, l.operand(0), 4);
  if (draft.list.size() != 4) l.unmodelled("the number of registers");
  for (size_t k = 1; k < 4; ++k) l.reads_list(draft, l.operand(k), 4);
  if (draft.list.size() != 14) l.unmodelled("the number of registers");
}

}  // namespace fa4::emulator
