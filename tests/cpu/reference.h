// Attention in double precision from the definition, and the tensors that the tests of the CPU
// backend hand to it and to the backend.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "csrc/cpu/backend.h"
#include "csrc/cpu/kernels.h"
#include "flash_attn4/core/mask.h"
#include "flash_attn4/core/seqlen.h"

namespace fa4::test {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// How a (batch, row, head, dim) tensor lies in memory.
enum class Layout { kRowMajor, kHeadMajor, kGaps };

inline double read(DType dtype, const void* data, int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  if (dtype == DType::kBFloat16) {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::nan("") : sign * kInfinity;
  return sign *
         (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

/// Stores a value that the type holds exactly, or rounds float32 to it.
inline void write(DType dtype, double value, void* data, int64_t index) {
  const float row[8] = {static_cast<float>(value)};
  float eight[8];
  cpu::kKernelsBaseline.store_row(dtype, row, 1.0f, eight, 8);
  std::memcpy(static_cast<char*>(data) + index * dtype_bytes(dtype), eight, dtype_bytes(dtype));
}

/// A tensor whose every byte that is not written holds NaN. dim 1 and Strides make an lse of it.
struct Tensor {
  DType dtype = DType::kFloat32;
  int64_t batch = 0, rows = 0, heads = 0, dim = 0;
  Strides stride;
  std::vector<uint64_t> storage;

  Tensor() = default;
  Tensor(DType type, int64_t b, int64_t r, int64_t h, int64_t d, Layout layout)
      : dtype(type), batch(b), rows(r), heads(h), dim(d) {
    if (layout == Layout::kRowMajor) stride = {r * h * d, h * d, d};
    if (layout == Layout::kHeadMajor) stride = {r * h * d, d, r * d};
    if (layout == Layout::kGaps) stride = {(r + 1) * (h + 1) * (d + 8), (h + 1) * (d + 8), d + 8};
    storage.assign((b * (r + 1) * (h + 1) * (d + 8) * dtype_bytes(type) + 7) / 8 + 1, ~uint64_t{0});
  }

  int64_t at(int64_t b, int64_t r, int64_t h, int64_t d = 0) const {
    return b * stride.batch + r * stride.row + h * stride.head + d;
  }
  void* data() { return storage.data(); }
  const void* data() const { return storage.data(); }
  double get(int64_t b, int64_t r, int64_t h, int64_t d = 0) const {
    return read(dtype, data(), at(b, r, h, d));
  }
  void set(int64_t b, int64_t r, int64_t h, int64_t d, double value) {
    write(dtype, value, data(), at(b, r, h, d));
  }
  Input input() const { return {data(), stride}; }
  Output output() { return {data(), stride}; }
  InputF32 input_f32() const { return {static_cast<const float*>(data()), stride}; }
  OutputF32 output_f32() { return {static_cast<float*>(data()), stride}; }
};

struct Case {
  std::string name = {};
  DType dtype = DType::kFloat32;
  int64_t batch = 1, seqlen_q = 1, seqlen_k = 1;
  int64_t heads_q = 1, heads_k = 1, head_dim = 16, head_dim_v = 16;
  bool causal = false;
  int64_t window_left = -1, window_right = -1;
  float softcap = 0.0f;
  bool sink = false;
  DType sink_dtype = DType::kFloat32;
  bool dlse = false;
  std::vector<int32_t> lengths_q = {}, lengths_k = {};  // packed when given
  std::vector<int32_t> used_q = {}, used_k = {};        // seqused when given
  int64_t page_size = 0;                                // paged when not 0
  Layout layout = Layout::kRowMajor;
  int64_t num_splits = 1;
  double magnitude = 1.0;  // of q
  float scale = 0.0f;      // 0: head_dim^-0.5
};

inline std::ostream& operator<<(std::ostream& stream, const Case& c) {
  return stream << c.name;
}

inline std::vector<int32_t> running_sum(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> sums{0};
  for (int32_t length : lengths) sums.push_back(sums.back() + length);
  return sums;
}

/// All tensors of a case. Rows outside the sequences keep the NaN they were born with.
struct Data {
  Case spec;
  std::vector<int32_t> cu_q, cu_k;
  std::vector<int32_t> page_table;
  int64_t pages_per_sequence = 0;
  Tensor q, k, v, out, dout, lse, dlse, dq, dk, dv;
  std::vector<float> sink_values;
  std::vector<uint32_t> sink, dsink;

  explicit Data(const Case& c, unsigned seed = 1) : spec(c) {
    constexpr int64_t kSlack = 3;  // rows of a packed tensor past the last sequence
    const bool packed_q = !c.lengths_q.empty();
    const bool packed_k = !c.lengths_k.empty();
    if (packed_q) cu_q = running_sum(c.lengths_q);
    if (packed_k) cu_k = running_sum(c.lengths_k);
    const int64_t batch_q = packed_q ? 1 : c.batch;
    const int64_t rows_q = packed_q ? cu_q.back() + kSlack : c.seqlen_q;
    int64_t batch_k = packed_k ? 1 : c.batch;
    int64_t rows_k = packed_k ? cu_k.back() + kSlack : c.seqlen_k;
    if (c.page_size != 0) {
      make_pages(seed);
      batch_k = static_cast<int64_t>(page_table.size()) + 2;
      rows_k = c.page_size;
    }
    const auto query = [&](int64_t dim) {
      return Tensor(c.dtype, batch_q, rows_q, c.heads_q, dim, c.layout);
    };
    q = query(c.head_dim), dq = query(c.head_dim);
    out = query(c.head_dim_v), dout = query(c.head_dim_v);
    const auto key = [&](int64_t dim) {
      return Tensor(c.dtype, batch_k, rows_k, c.heads_k, dim, c.layout);
    };
    k = key(c.head_dim), dk = key(c.head_dim);
    v = key(c.head_dim_v), dv = key(c.head_dim_v);
    lse = Tensor(DType::kFloat32, batch_q, rows_q, c.heads_q, 1, Layout::kHeadMajor);
    dlse = lse;
    fill(seed);
  }

  SeqSpan span_q(int64_t b) const { return span(b, cu_q, spec.seqlen_q, spec.used_q); }
  SeqSpan span_k(int64_t b) const { return span(b, cu_k, spec.seqlen_k, spec.used_k); }
  int64_t batch_of_q(int64_t b) const { return cu_q.empty() ? b : 0; }

  /// Where key `row` of a sequence is stored, as (batch, row) of k and v.
  std::pair<int64_t, int64_t> key_at(int64_t b, int64_t row) const {
    if (spec.page_size != 0) {
      return {page_table[b * pages_per_sequence + row / spec.page_size], row % spec.page_size};
    }
    return {cu_k.empty() ? b : 0, span_k(b).first_row + row};
  }

  FwdParams fwd_params() {
    FwdParams p;
    describe(p);
    p.q = q.input(), p.k = k.input(), p.v = v.input();
    p.out = out.output(), p.lse = lse.output_f32();
    p.num_splits = spec.num_splits;
    if (spec.page_size != 0) {
      p.page_table = page_table.data();
      p.page_table_stride = pages_per_sequence;
      p.num_pages = k.batch;
      p.page_size = spec.page_size;
    }
    return p;
  }

  BwdParams bwd_params() {
    BwdParams p;
    describe(p);
    p.q = q.input(), p.k = k.input(), p.v = v.input();
    p.out = out.input(), p.lse = lse.input_f32(), p.dout = dout.input();
    if (spec.dlse) p.dlse = dlse.input_f32();
    p.dq = dq.output(), p.dk = dk.output(), p.dv = dv.output();
    p.dsink = spec.sink ? dsink.data() : nullptr;
    return p;
  }

  float scale() const {
    return spec.scale != 0.0f ? spec.scale : 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  }

 private:
  static SeqSpan span(int64_t b, const std::vector<int32_t>& cu, int64_t capacity,
                      const std::vector<int32_t>& used) {
    return seq_span(b, capacity, cu.empty() ? nullptr : cu.data(),
                    used.empty() ? nullptr : used.data());
  }

  /// Pages of all sequences in random order; entries that no sequence uses are out of range.
  void make_pages(unsigned seed) {
    pages_per_sequence = spec.seqlen_k / spec.page_size;
    std::vector<int32_t> order(spec.batch * pages_per_sequence);
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i) + 1;
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    page_table = order;
    for (int64_t b = 0; b < spec.batch; ++b) {
      for (int64_t i = ceil_div<int64_t>(span_k(b).length, spec.page_size); i < pages_per_sequence;
           ++i) {
        page_table[b * pages_per_sequence + i] = -7;
      }
    }
  }

  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto fill_row = [&](Tensor& t, int64_t b, int64_t row, double magnitude) {
      for (int64_t h = 0; h < t.heads; ++h) {
        for (int64_t d = 0; d < t.dim; ++d) t.set(b, row, h, d, magnitude * normal(random));
      }
    };
    for (int64_t b = 0; b < spec.batch; ++b) {
      for (int64_t r = 0; r < span_q(b).length; ++r) {
        const int64_t row = span_q(b).first_row + r;
        fill_row(q, batch_of_q(b), row, spec.magnitude);
        fill_row(dout, batch_of_q(b), row, 1.0);
        fill_row(dlse, batch_of_q(b), row, 1.0);
      }
      for (int64_t r = 0; r < span_k(b).length; ++r) {
        const auto [batch, row] = key_at(b, r);
        fill_row(k, batch, row, 1.0);
        fill_row(v, batch, row, 1.0);
      }
    }
    sink.assign(spec.heads_q, 0);
    dsink.assign(spec.heads_q, ~uint32_t{0});
    for (int64_t h = 0; h < spec.heads_q; ++h) {
      write(spec.sink_dtype, normal(random), sink.data(), h);
      sink_values.push_back(static_cast<float>(read(spec.sink_dtype, sink.data(), h)));
    }
  }

  void describe(Problem& p) const {
    const auto pointer = [](const std::vector<int32_t>& v) {
      return v.empty() ? nullptr : v.data();
    };
    p.dtype = spec.dtype;
    p.batch = spec.batch, p.seqlen_q = spec.seqlen_q, p.seqlen_k = spec.seqlen_k;
    p.heads_q = spec.heads_q, p.heads_k = spec.heads_k;
    p.head_dim = spec.head_dim, p.head_dim_v = spec.head_dim_v;
    p.cu_seqlens_q = pointer(cu_q), p.cu_seqlens_k = pointer(cu_k);
    p.total_q = q.rows, p.total_k = k.rows;
    p.seqused_q = pointer(spec.used_q), p.seqused_k = pointer(spec.used_k);
    p.softmax_scale = scale(), p.softcap = spec.softcap;
    p.causal = spec.causal;
    p.window_left = spec.window_left, p.window_right = spec.window_right;
    p.sink = spec.sink ? sink.data() : nullptr;
    p.sink_dtype = spec.sink_dtype;
  }
};

/// Weights of one query row: probabilities of its visible keys, derivative of the softcap, lse.
struct RowWeights {
  Interval keys;
  std::vector<double> p, cap_slope;
  double lse = -kInfinity;
};

inline RowWeights row_weights(const Data& d, int64_t b, int64_t row, int64_t head) {
  const Case& c = d.spec;
  const SeqSpan sq = d.span_q(b);
  const Window window = make_window(c.causal, c.window_left, c.window_right);
  RowWeights w;
  w.keys = visible_keys(static_cast<int32_t>(row), sq.length, d.span_k(b).length, window);
  double maximum = c.sink ? d.sink_values[head] : -kInfinity;
  const int64_t head_k = head / (c.heads_q / c.heads_k);
  for (int32_t j = w.keys.first; j < w.keys.last; ++j) {
    const auto [kb, kr] = d.key_at(b, j);
    double s = 0.0;
    for (int64_t i = 0; i < c.head_dim; ++i) {
      s += d.q.get(d.batch_of_q(b), sq.first_row + row, head, i) * d.k.get(kb, kr, head_k, i);
    }
    s *= d.scale();
    const double t = c.softcap != 0.0f ? std::tanh(s / c.softcap) : 0.0;
    w.cap_slope.push_back(1.0 - t * t);
    w.p.push_back(c.softcap != 0.0f ? c.softcap * t : s);
    maximum = std::max(maximum, w.p.back());
  }
  if (maximum == -kInfinity) return w;
  double sum = c.sink ? std::exp(d.sink_values[head] - maximum) : 0.0;
  for (double s : w.p) sum += std::exp(s - maximum);
  w.lse = maximum + std::log(sum);
  for (double& s : w.p) s = std::exp(s - w.lse);
  return w;
}

/// Dense double arrays indexed like the tensors they belong to.
struct Array {
  const Tensor* like = nullptr;
  std::vector<double> value;

  Array() = default;
  Array(const Tensor& tensor, double initial)
      : like(&tensor), value(tensor.batch * tensor.rows * tensor.heads * tensor.dim, initial) {}
  double& at(int64_t b, int64_t r, int64_t h, int64_t d = 0) {
    return value[((b * like->rows + r) * like->heads + h) * like->dim + d];
  }
};

struct FwdResult {
  Array out, lse;
};

inline FwdResult reference_fwd(const Data& d) {
  const Case& c = d.spec;
  FwdResult result{Array(d.out, 0.0), Array(d.lse, -kInfinity)};
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t row = 0; row < d.span_q(b).length; ++row) {
      const int64_t at = d.span_q(b).first_row + row;
      for (int64_t head = 0; head < c.heads_q; ++head) {
        const RowWeights w = row_weights(d, b, row, head);
        result.lse.at(d.batch_of_q(b), at, head) = w.lse;
        for (int32_t j = w.keys.first; j < w.keys.last; ++j) {
          const auto [kb, kr] = d.key_at(b, j);
          for (int64_t i = 0; i < c.head_dim_v; ++i) {
            result.out.at(d.batch_of_q(b), at, head, i) +=
                w.p[j - w.keys.first] * d.v.get(kb, kr, head / (c.heads_q / c.heads_k), i);
          }
        }
      }
    }
  }
  return result;
}

struct BwdResult {
  Array dq, dk, dv;
  std::vector<double> dsink;
};

/// One row's share of all gradients. D comes from the stored, rounded out.
inline void add_row_gradients(const Data& d, int64_t b, int64_t row, int64_t head,
                              BwdResult& result) {
  const Case& c = d.spec;
  const RowWeights w = row_weights(d, b, row, head);
  if (w.lse == -kInfinity) return;
  const int64_t qb = d.batch_of_q(b);
  const int64_t at = d.span_q(b).first_row + row;
  const int64_t head_k = head / (c.heads_q / c.heads_k);
  double delta = c.dlse ? -d.dlse.get(qb, at, head) : 0.0;
  for (int64_t i = 0; i < c.head_dim_v; ++i)
    delta += d.dout.get(qb, at, head, i) * d.out.get(qb, at, head, i);
  if (c.sink) result.dsink[head] -= std::exp(d.sink_values[head] - w.lse) * delta;
  for (int32_t j = w.keys.first; j < w.keys.last; ++j) {
    const auto [kb, kr] = d.key_at(b, j);
    const double p = w.p[j - w.keys.first];
    double dp = 0.0;
    for (int64_t i = 0; i < c.head_dim_v; ++i) {
      dp += d.dout.get(qb, at, head, i) * d.v.get(kb, kr, head_k, i);
      result.dv.at(kb, kr, head_k, i) += p * d.dout.get(qb, at, head, i);
    }
    const double ds = p * (dp - delta) * w.cap_slope[j - w.keys.first] * d.scale();
    for (int64_t i = 0; i < c.head_dim; ++i) {
      result.dq.at(qb, at, head, i) += ds * d.k.get(kb, kr, head_k, i);
      result.dk.at(kb, kr, head_k, i) += ds * d.q.get(qb, at, head, i);
    }
  }
}

inline BwdResult reference_bwd(const Data& d) {
  const Case& c = d.spec;
  BwdResult result{Array(d.dq, 0.0), Array(d.dk, 0.0), Array(d.dv, 0.0), {}};
  result.dsink.assign(c.heads_q, 0.0);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t row = 0; row < d.span_q(b).length; ++row) {
      for (int64_t head = 0; head < c.heads_q; ++head) add_row_gradients(d, b, row, head, result);
    }
  }
  return result;
}

/// What float32 arithmetic may cost relative to the largest value of a tensor: sums of a few
/// hundred terms, and scores whose error grows with their size.
inline double arithmetic_error(const Case& c) {
  return 2e-6 * std::max(1.0, c.magnitude / 2);
}

/// Largest relative error of rounding to a type.
inline double rounding_error(DType dtype) {
  return dtype == DType::kBFloat16 ? 0x1p-8 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-23;
}

/// Checks every element: |got - expected| <= rounding * |expected| + arithmetic * largest
/// |expected|, and equality where infinite. Returns the worst element when it is over the bound,
/// and nothing otherwise.
inline std::string compare(const Tensor& got, Array expected, double arithmetic) {
  // Gradients that cancel to nothing are made of terms of unit size.
  double largest = 0.5;
  for (double value : expected.value) {
    if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
  }
  double worst = 1.0;
  std::string report;
  for (size_t n = 0; n < expected.value.size(); ++n) {
    const int64_t i = n % got.dim, h = n / got.dim % got.heads;
    const int64_t r = n / got.dim / got.heads % got.rows, b = n / got.dim / got.heads / got.rows;
    const double x = got.get(b, r, h, i);
    const double ref = expected.value[n];
    const double bound = rounding_error(got.dtype) * std::fabs(ref) + arithmetic * largest;
    double error = x == ref ? 0.0 : std::fabs(x - ref) / bound;
    if (std::isnan(error) || (std::isinf(ref) && x != ref)) error = kInfinity;
    if (error <= worst) continue;
    worst = error;
    report = "(" + std::to_string(b) + ", " + std::to_string(r) + ", " + std::to_string(h) + ", " +
             std::to_string(i) + "): got " + std::to_string(x) + ", expected " +
             std::to_string(ref) + ", error " + std::to_string(error) + " bounds";
  }
  return report;
}

/// Bytes of everything that a call has written.
inline std::vector<uint64_t> bytes(std::initializer_list<const Tensor*> tensors) {
  std::vector<uint64_t> all;
  for (const Tensor* t : tensors) all.insert(all.end(), t->storage.begin(), t->storage.end());
  return all;
}

/// Name of a parameterised test.
template <class Info>
std::string case_name(const Info& info) {
  return info.param.name + "_" + std::to_string(info.index);
}

/// A pool for Context: every piece runs on a thread of its own.
inline void own_threads(int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(body, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
}

inline Context with_threads(int threads) {
  Context context;
  context.parallel_for = own_threads;
  context.num_threads = threads;
  return context;
}

}  // namespace fa4::test
