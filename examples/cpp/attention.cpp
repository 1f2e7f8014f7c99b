// Causal attention from C++, without torch: forward and backward on the CPU.
#include <flash_attn4/flash_attn4.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  constexpr int64_t kBatch = 2, kSeqlen = 100, kHeads = 4, kHeadDim = 64;
  constexpr int64_t kSize = kBatch * kSeqlen * kHeads * kHeadDim;
  constexpr fa4::Strides kStrides{kSeqlen * kHeads * kHeadDim, kHeads * kHeadDim, kHeadDim};

  std::vector<float> q(kSize), k(kSize), v(kSize, 1.0f), out(kSize), lse(kBatch * kHeads * kSeqlen);
  for (int64_t i = 0; i < kSize; ++i) {
    q[i] = std::sin(0.1f * i);
    k[i] = std::cos(0.3f * i);
  }

  fa4::FwdParams fwd;
  fwd.dtype = fa4::DType::kFloat32;
  fwd.batch = kBatch;
  fwd.seqlen_q = fwd.seqlen_k = kSeqlen;
  fwd.heads_q = fwd.heads_k = kHeads;
  fwd.head_dim = fwd.head_dim_v = kHeadDim;
  fwd.softmax_scale = 1.0f / std::sqrt(float(kHeadDim));
  fwd.causal = true;
  fwd.q = {q.data(), kStrides};
  fwd.k = {k.data(), kStrides};
  fwd.v = {v.data(), kStrides};
  fwd.out = {out.data(), kStrides};
  fwd.lse = {lse.data(), {kHeads * kSeqlen, 1, kSeqlen}};
  if (const fa4::Status status = fa4::fwd(fwd, {}); !status.ok()) {
    std::printf("fwd: %s\n", status.message.c_str());
    return 1;
  }
  // Every value vector is 1, and so is every weighted mean of them.
  for (const float value : out) {
    if (std::abs(value - 1.0f) > 1e-5f) return std::printf("fwd: expected 1, got %f\n", value), 1;
  }

  std::vector<float> dout(kSize, 1.0f), dq(kSize), dk(kSize), dv(kSize);
  fa4::BwdParams bwd;
  static_cast<fa4::Problem&>(bwd) = fwd;
  bwd.dout = {dout.data(), kStrides};
  bwd.q = fwd.q;
  bwd.k = fwd.k;
  bwd.v = fwd.v;
  bwd.out = {out.data(), kStrides};
  bwd.lse = {lse.data(), fwd.lse.stride};
  bwd.dq = {dq.data(), kStrides};
  bwd.dk = {dk.data(), kStrides};
  bwd.dv = {dv.data(), kStrides};
  if (const fa4::Status status = fa4::bwd(bwd, {}); !status.ok()) {
    std::printf("bwd: %s\n", status.message.c_str());
    return 1;
  }
  // Each row hands out weights that sum to 1, so dv sums to the number of elements.
  double total = 0;
  for (const float value : dv) total += value;
  if (std::abs(total - double(kSize)) > 1e-3 * kSize) {
    return std::printf("bwd: expected dv to sum to %ld, got %f\n", long(kSize), total), 1;
  }
  std::printf("flash_attn4 %s: forward and backward of (%ld, %ld, %ld, %ld) are right\n",
              fa4::version(), long(kBatch), long(kSeqlen), long(kHeads), long(kHeadDim));
  return 0;
}
