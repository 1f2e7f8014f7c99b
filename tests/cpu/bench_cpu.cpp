// Speed of the CPU backend without torch, for work on the kernels: one line per case.
//
//     fa4_bench_cpu [threads] 1 (default): CPU time of the thread, steady on a busy machine
//                             more: wall-clock time, with threads started by the library
//
// Times are the best of the calls of half a second. FA4_CPU_ISA chooses narrower kernels.
#include <time.h>

#include <cstdio>
#include <cstdlib>

#include "tests/cpu/cases.h"

namespace fa4::test {
namespace {

double seconds(const Context& context) {
  timespec now;
  clock_gettime(context.num_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Seconds of one call: the best of batches that are long enough for the clock.
template <class Call>
double best(const Context& context, Call call) {
  call();
  int batch = 1;
  double fastest = 1e9;
  const double start = seconds(context);
  for (int round = 0; round < 3 || seconds(context) - start < 0.5; ++round) {
    const double before = seconds(context);
    for (int i = 0; i < batch; ++i) call();
    const double elapsed = seconds(context) - before;
    fastest = std::min(fastest, elapsed / batch);
    if (elapsed < 20e-6) batch *= 2;
  }
  return fastest;
}

void measure(const Case& spec, const Context& context) {
  Data data(spec);
  const FwdParams fwd = data.fwd_params();
  const BwdParams bwd = data.bwd_params();
  const double pairs = static_cast<double>(spec.batch * spec.heads_q * spec.seqlen_q) *
                       static_cast<double>(spec.seqlen_k) / (spec.causal ? 2 : 1);
  const double operations = 2e-9 * pairs * static_cast<double>(spec.head_dim);
  const double fwd_time = best(context, [&] { (void)cpu::fwd(fwd, context); });
  const double bwd_time = best(context, [&] { (void)cpu::bwd(bwd, context); });
  std::printf(
      "%-8s b%-3ld q%-5ld k%-5ld h%ld/%ld d%-4ld %-7s fwd %9.1f us %4.0f GFLOP/s   bwd %9.1f us "
      "%4.0f GFLOP/s\n",
      dtype_name(spec.dtype), spec.batch, spec.seqlen_q, spec.seqlen_k, spec.heads_q, spec.heads_k,
      spec.head_dim, spec.causal ? "causal" : "full", fwd_time * 1e6, 2 * operations / fwd_time,
      bwd_time * 1e6, 5 * operations / bwd_time);
  std::fflush(stdout);
}

Case bench_case(DType dtype, int64_t batch, int64_t seqlen, int64_t heads_q, int64_t heads_k,
                int64_t dim) {
  return {.dtype = dtype,
          .batch = batch,
          .seqlen_q = seqlen,
          .seqlen_k = seqlen,
          .heads_q = heads_q,
          .heads_k = heads_k,
          .head_dim = dim,
          .head_dim_v = dim};
}

void run(const Context& context) {
  for (DType dtype : {kF32, kBF16}) {
    for (int64_t dim : {64, 128}) {
      for (int64_t seqlen : {128, 1024, 4096}) {
        Case c = bench_case(dtype, std::max<int64_t>(1, 512 / seqlen), seqlen, 4, 4, dim);
        measure(c, context);
        c.causal = true;
        measure(c, context);
      }
    }
    Case c = bench_case(dtype, 2, 512, 8, 2, 64);
    c.causal = true;
    measure(c, context);
    measure(bench_case(dtype, 16, 32, 8, 8, 64), context);
    c = bench_case(dtype, 8, 2048, 8, 2, 128);
    c.seqlen_q = 1;
    measure(c, context);
    c.heads_k = 8;
    measure(c, context);
    measure(bench_case(dtype, 1, 4, 2, 2, 16), context);
  }
}

}  // namespace
}  // namespace fa4::test

int main(int argc, char** argv) {
  fa4::Context context;
  context.num_threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::printf("kernels: %s, threads: %d\n", fa4::cpu::kernels().name, context.num_threads);
  fa4::test::run(context);
}
