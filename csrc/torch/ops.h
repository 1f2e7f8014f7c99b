// The ops as C++ functions; library.cpp registers them. Shapes and conventions: the schemas there
// and flash_attn4/interface.py.
#pragma once

#include <optional>
#include <tuple>

#include "csrc/torch/problem.h"

namespace fa4::torch_ops {

using OutLse = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

OutLse fwd(Tensor q, Tensor k, Tensor v, std::optional<double> softmax_scale, bool causal,
           int64_t window_left, int64_t window_right, double softcap, OptionalTensor learnable_sink,
           OptionalTensor seqused_k, OptionalTensor page_table, int64_t num_splits);
void fwd_out(Tensor q, Tensor k, Tensor v, std::optional<double> softmax_scale, bool causal,
             int64_t window_left, int64_t window_right, double softcap,
             OptionalTensor learnable_sink, OptionalTensor seqused_k, OptionalTensor page_table,
             int64_t num_splits, Tensor out, Tensor lse);
OutLse varlen_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                  int64_t max_seqlen_q, int64_t max_seqlen_k, std::optional<double> softmax_scale,
                  bool causal, int64_t window_left, int64_t window_right, double softcap,
                  OptionalTensor learnable_sink, OptionalTensor seqused_q, OptionalTensor seqused_k,
                  OptionalTensor page_table, int64_t num_splits);
void varlen_fwd_out(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                    int64_t max_seqlen_q, int64_t max_seqlen_k, std::optional<double> softmax_scale,
                    bool causal, int64_t window_left, int64_t window_right, double softcap,
                    OptionalTensor learnable_sink, OptionalTensor seqused_q,
                    OptionalTensor seqused_k, OptionalTensor page_table, int64_t num_splits,
                    Tensor out, Tensor lse);
Gradients bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
              OptionalTensor dlse, std::optional<double> softmax_scale, bool causal,
              int64_t window_left, int64_t window_right, double softcap,
              OptionalTensor learnable_sink, OptionalTensor seqused_k, bool deterministic);
void bwd_out(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, OptionalTensor dlse,
             std::optional<double> softmax_scale, bool causal, int64_t window_left,
             int64_t window_right, double softcap, OptionalTensor learnable_sink,
             OptionalTensor seqused_k, bool deterministic, Tensor dq, Tensor dk, Tensor dv,
             OptionalTensor dsink);
Gradients varlen_bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                     Tensor cu_seqlens_q, Tensor cu_seqlens_k, int64_t max_seqlen_q,
                     int64_t max_seqlen_k, OptionalTensor dlse, std::optional<double> softmax_scale,
                     bool causal, int64_t window_left, int64_t window_right, double softcap,
                     OptionalTensor learnable_sink, OptionalTensor seqused_q,
                     OptionalTensor seqused_k, bool deterministic);
void varlen_bwd_out(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
                    Tensor cu_seqlens_q, Tensor cu_seqlens_k, int64_t max_seqlen_q,
                    int64_t max_seqlen_k, OptionalTensor dlse, std::optional<double> softmax_scale,
                    bool causal, int64_t window_left, int64_t window_right, double softcap,
                    OptionalTensor learnable_sink, OptionalTensor seqused_q,
                    OptionalTensor seqused_k, bool deterministic, Tensor dq, Tensor dk, Tensor dv,
                    OptionalTensor dsink);
OutLse combine(Tensor out_partial, Tensor lse_partial,
               std::optional<torch::headeronly::ScalarType> out_dtype);

}  // namespace fa4::torch_ops
