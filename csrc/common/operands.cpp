#include "csrc/common/operands.h"

#include <cstdio>
#include <string>

namespace fa4 {

namespace {

Status check_count(const char* what, int64_t value, int64_t limit) {
  if (value <= limit) return {};
  return Status::unsupported(std::string(what) + ": must be at most " + std::to_string(limit) +
                             " on this device, got " + std::to_string(value));
}

}  // namespace

Extents query_extents(const Problem& p) {
  return packed(p) ? Extents{1, p.total_q, p.heads_q} : Extents{p.batch, p.seqlen_q, p.heads_q};
}

Extents key_extents(const Problem& p) {
  return packed(p) ? Extents{1, p.total_k, p.heads_k} : Extents{p.batch, p.seqlen_k, p.heads_k};
}

bool copy_engine_serves(const void* data, const Strides& stride, const Extents& extents) {
  const int64_t size[] = {extents.batch, extents.rows, extents.heads};
  const int64_t step[] = {stride.batch, stride.row, stride.head};
  return driver::tensor_map_fits(data, 3, size, step);
}

Status check_operand(const char* name, const Input& operand, const Extents& extents) {
  if (copy_engine_serves(operand.data, operand.stride, extents)) return {};
  const Strides& s = operand.stride;
  char address[32];
  std::snprintf(address, sizeof address, "%p", operand.data);
  return Status::unsupported(
      std::string(name) +
      ": strides must be multiples of 8 elements and the address of 16 bytes on this device, got "
      "strides of batch " +
      std::to_string(s.batch) + ", row " + std::to_string(s.row) + ", head " +
      std::to_string(s.head) + " and address " + address);
}

Status check_sizes(const Problem& p) {
  if (packed(p) != (p.cu_seqlens_k != nullptr)) {
    return Status::unsupported(std::string("cu_seqlens_k: must be given exactly when cu_seqlens_q "
                                           "is on this device, got ") +
                               (packed(p) ? "None" : "a tensor"));
  }
  const int64_t rows_q = query_extents(p).rows, rows_k = key_extents(p).rows;
  if (Status s = check_count("q: batch", p.batch, INT32_MAX); !s.ok()) return s;
  if (Status s = check_count("q: heads_q", p.heads_q, INT32_MAX); !s.ok()) return s;
  if (Status s = check_count("k: heads_k", p.heads_k, INT32_MAX); !s.ok()) return s;
  if (Status s = check_count(packed(p) ? "q: total_q" : "q: seqlen_q", rows_q, kMostRows);
      !s.ok()) {
    return s;
  }
  return check_count(packed(p) ? "k: total_k" : "k: seqlen_k", rows_k, kMostRows);
}

driver::L2Fetch l2_fetch(int64_t head_dim) {
  return head_dim > 64 ? driver::L2Fetch::k256Bytes : driver::L2Fetch::k128Bytes;
}

}  // namespace fa4
