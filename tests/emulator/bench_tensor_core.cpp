// Speed of the tensor-core arithmetic of the emulator, on one core: one line per instruction set,
// operation, rounding mode and shape. Best of many repetitions, because others may share the
// machine.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "csrc/emulator/isa_choice.h"
#include "csrc/emulator/tensor/kernels.h"
#include "flash_attn4/core/descriptors.h"

namespace fa4::emulator::test {
namespace {

constexpr int kMostRows = 256;
constexpr int kColumnCells = 128;  // of tensor memory: its lanes

/// Seconds of a call: the best batch of a tenth of a second.
template <class Body>
double best_seconds(const Body& body) {
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  constexpr int kCalls = 10;
  double best = 1e9;
  const auto end = Clock::now() + std::chrono::milliseconds(100);
  while (Clock::now() < end) {
    const auto start = Clock::now();
    for (int call = 0; call < kCalls; ++call) body();
    best = std::min(best, Seconds(Clock::now() - start).count() / kCalls);
  }
  return best;
}

std::vector<float> numbers(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i * 37 % 64) / 64 - 0.5f;
  return values;
}

const char* name(Accumulate mode) {
  return mode == Accumulate::kExact ? "exact" : "sequential";
}

void bench_multiply(const TensorKernels& kernels, Accumulate mode, int m, int n, int k) {
  const std::vector<float> a = numbers(size_t{1} * k * m);
  const std::vector<float> b = numbers(size_t{1} * k * n);
  std::vector<float> d(size_t{kColumnCells} * n);
  Product product{};
  product.d = d.data();
  product.d_stride = kColumnCells;
  product.a = a.data();
  product.a_stride = m;
  product.b = b.data();
  product.b_stride = n;
  product.m = m;
  product.n = n;
  product.k = k;
  product.accumulate = true;
  const double seconds = best_seconds([&] { kernels.multiply(product, mode); });
  std::printf("%-8s  multiply            %-10s  m %3d  n %3d  k %3d  %7.2f G FMA/s\n", kernels.name,
              name(mode), m, n, k, 1e-9 * m * n * k / seconds);
}

void bench_fragments(const TensorKernels& kernels, Accumulate mode, int n) {
  const std::vector<float> a = numbers(size_t{kK} * 16);
  const std::vector<float> b = numbers(size_t{1} * kK * n);
  std::vector<float> d(size_t{16} * n);
  std::vector<float*> planes(n / 2);
  for (int i = 0; i < n / 2; ++i) planes[i] = d.data() + 32 * i;
  const double seconds = best_seconds(
      [&] { kernels.multiply_fragments(planes.data(), a.data(), b.data(), n, true, mode); });
  std::printf("%-8s  multiply_fragments  %-10s  m  16  n %3d  k  16  %7.2f G FMA/s\n", kernels.name,
              name(mode), n, 1e-9 * 16 * n * kK / seconds);
}

void bench_reading(OperandMajor major, Half type, int rows) {
  const bool k_major = major == OperandMajor::kK;
  const TileLayout tile{static_cast<uint32_t>(k_major ? rows : kK), Swizzle::k128B};
  const std::vector<uint8_t> shared(64 << 10);
  std::vector<float> to(size_t{kK} * kMostRows);
  const uint64_t descriptor = umma_descriptor(1024, tile, k_major ? Major::kK : Major::kMN);
  const SharedOperand operand{DescriptorKind::kUmma, descriptor, major, type, rows};
  const double seconds =
      best_seconds([&] { read_operand(operand, shared.data(), to.data(), rows); });
  uint32_t offset = 0;
  const double search =
      best_seconds([&] { find_element(operand, shared.data(), 0x7fff, &offset); });
  const double check = best_seconds([&] { descriptor_problem(operand, shared.size()); });
  std::printf(
      "host      read_operand        %s-major %s  rows %3d  %7.2f G elements/s; "
      "find_element %.0f ns, descriptor_problem %.0f ns\n",
      k_major ? "K " : "MN", type == Half::kF16 ? "fp16" : "bf16", rows, 1e-9 * kK * rows / seconds,
      1e9 * search, 1e9 * check);
}

void bench(const TensorKernels& kernels) {
  for (Accumulate mode : {Accumulate::kSequential, Accumulate::kExact}) {
    for (int n : {64, 128, 256}) {
      for (int k : {16, 64, 128}) bench_multiply(kernels, mode, 128, n, k);
    }
    bench_multiply(kernels, mode, 64, 128, 16);
    for (int n : {64, 128, 256}) bench_fragments(kernels, mode, n);
  }
}

void bench_all() {
  bench(kTensorKernelsBaseline);
#if defined(__x86_64__)
  if (host_supports(Isa::kAvx2)) bench(kTensorKernelsAvx2);
  if (host_supports(Isa::kAvx512)) bench(kTensorKernelsAvx512);
#endif
  for (Half type : {Half::kF16, Half::kBF16}) {
    bench_reading(OperandMajor::kK, type, 128);
    bench_reading(OperandMajor::kMN, type, 128);
  }
}

}  // namespace
}  // namespace fa4::emulator::test

int main() {
  fa4::emulator::test::bench_all();
}
