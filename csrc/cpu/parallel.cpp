#include "csrc/cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fa4::cpu {
namespace {

// Multiply-adds below which the calling thread works alone: 5 us of work where a pool waits
// (OpenMP's takes part within 1 us while it spins), 40 us where threads have to be started and
// joined (19 us). A thread does about 50 per nanosecond. Measured, see docs/cpu.md.
constexpr double kWorthPool = 2.5e5;
constexpr double kWorthThreads = 2e6;

struct Queue {
  const ItemBody& body;
  int64_t count;
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};

  void drain() {
    try {
      for (int64_t item = next++; item < count; item = next++) body(item);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  }
};

void drain_with_own_threads(Queue& queue, int64_t workers) {
  std::vector<std::thread> threads;
  try {
    threads.reserve(workers - 1);
    while (static_cast<int64_t>(threads.size()) < workers - 1)
      threads.emplace_back(&Queue::drain, &queue);
  } catch (const std::system_error&) {
    // The machine gives no more threads: those that run do the work.
  } catch (const std::bad_alloc&) {
    queue.out_of_memory = true;
  }
  queue.drain();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int num_threads(const Context& context) {
  if (context.num_threads > 0) return context.num_threads;
  static const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return cores;
}

Status for_each_item(const Context& context, int64_t count, double multiply_adds, ItemBody body) {
  Queue queue{body, count};
  const int64_t workers = std::min<int64_t>(num_threads(context), count);
  const double worth = context.parallel_for != nullptr ? kWorthPool : kWorthThreads;
  if (workers <= 1 || multiply_adds < worth) {
    queue.drain();
  } else if (context.parallel_for != nullptr) {
    // The caller's pool splits statically. One piece per thread that draws items balances the load.
    const auto piece = [](int64_t, int64_t, void* shared) { static_cast<Queue*>(shared)->drain(); };
    context.parallel_for(workers, piece, &queue);
  } else {
    drain_with_own_threads(queue, workers);
  }
  if (queue.out_of_memory) return Status::runtime("out of memory for the scratch of a thread");
  return {};
}

Workspace& thread_workspace() {
  thread_local std::unique_ptr<Workspace> workspace;
  if (workspace == nullptr) workspace.reset(new Workspace);
  return *workspace;
}

}  // namespace fa4::cpu
