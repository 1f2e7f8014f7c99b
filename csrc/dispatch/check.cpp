#include "csrc/dispatch/check.h"

#include <cmath>
#include <string>

#include "csrc/common/combine.h"

namespace fa4 {

namespace {

using std::to_string;

Status check_head_dim(const char* argument, int64_t value) {
  if (value > 0 && value % 8 == 0) return {};
  return Status::invalid_value(std::string(argument) +
                               ": head_dim must be a positive multiple of 8, got " +
                               to_string(value));
}

Status check_window(const char* argument, int64_t value) {
  if (value >= -1) return {};
  return Status::invalid_value(std::string(argument) +
                               ": must be -1 (unbounded) or a number of tokens >= 0, got " +
                               to_string(value));
}

Status check_length(const char* argument, int64_t value) {
  if (value >= 0 && value <= INT32_MAX) return {};
  return Status::invalid_value(std::string(argument) + ": must be within 0..2^31-1, got " +
                               to_string(value));
}

Status check_problem(const Problem& p) {
  if (p.heads_k <= 0 || p.heads_q % p.heads_k != 0) {
    return Status::invalid_value("k: heads_k must be positive and divide heads_q, got heads_q=" +
                                 to_string(p.heads_q) + ", heads_k=" + to_string(p.heads_k));
  }
  if (Status s = check_head_dim("q", p.head_dim); !s.ok()) return s;
  if (Status s = check_head_dim("v", p.head_dim_v); !s.ok()) return s;
  const char* length_q = p.cu_seqlens_q ? "max_seqlen_q" : "q: seqlen_q";
  const char* length_k = p.cu_seqlens_k ? "max_seqlen_k" : "k: seqlen_k";
  if (Status s = check_length(length_q, p.seqlen_q); !s.ok()) return s;
  if (Status s = check_length(length_k, p.seqlen_k); !s.ok()) return s;
  // Offsets in cu_seqlens are int32; so the packed rows must be counted by one.
  if (Status s = check_length("q: total_q", p.cu_seqlens_q ? p.total_q : 0); !s.ok()) return s;
  if (Status s = check_length("k: total_k", p.cu_seqlens_k ? p.total_k : 0); !s.ok()) return s;
  if (!std::isfinite(p.softmax_scale) || p.softmax_scale <= 0.0f) {
    return Status::invalid_value("softmax_scale: must be finite and > 0, got " +
                                 to_string(p.softmax_scale));
  }
  if (!std::isfinite(p.softcap) || p.softcap < 0.0f) {
    return Status::invalid_value("softcap: must be finite and >= 0 (0 is off), got " +
                                 to_string(p.softcap));
  }
  if (Status s = check_window("window_left", p.window_left); !s.ok()) return s;
  return check_window("window_right", p.window_right);
}

}  // namespace

Status check(const FwdParams& params) {
  if (Status s = check_problem(params); !s.ok()) return s;
  if (params.num_splits < 0 || params.num_splits > kCombineMaxSplits) {
    return Status::invalid_value("num_splits: must be within 0 (automatic).." +
                                 to_string(kCombineMaxSplits) + ", got " +
                                 to_string(params.num_splits));
  }
  if (params.page_table != nullptr && params.seqused_k == nullptr) {
    return Status::invalid_value("seqused_k: must be given with page_table, got None");
  }
  if (params.page_table != nullptr && params.cu_seqlens_k != nullptr) {
    return Status::invalid_value("cu_seqlens_k: must be None with page_table, got a tensor");
  }
  return {};
}

Status check(const BwdParams& params) {
  return check_problem(params);
}

Status check(const CombineParams& params) {
  if (params.num_splits < 1 || params.num_splits > kCombineMaxSplits) {
    return Status::invalid_value("out_partial: number of splits must be within 1.." +
                                 to_string(kCombineMaxSplits) + ", got " +
                                 to_string(params.num_splits));
  }
  return check_head_dim("out_partial", params.head_dim_v);
}

}  // namespace fa4
