// Items of work over threads, and the scratch that each thread keeps.
#pragma once

#include <cstdint>

#include "csrc/cpu/kernels.h"
#include "flash_attn4/flash_attn4.h"

namespace fa4::cpu {

/// A callable by reference, without the allocation of std::function.
class ItemBody {
 public:
  template <class Body>
  ItemBody(const Body& body)
      : body_(&body),
        call_([](const void* b, int64_t item) { (*static_cast<const Body*>(b))(item); }) {}
  void operator()(int64_t item) const { call_(body_, item); }

 private:
  const void* body_;
  void (*call_)(const void*, int64_t);
};

/// Threads that a call may use.
int num_threads(const Context& context);

/// Runs body once for every item of [0, count). Threads draw items in rising order, so the heaviest
/// come first. `multiply_adds` is the size of the whole: small work stays on the calling thread. An
/// allocation that fails in the body becomes a Status.
Status for_each_item(const Context& context, int64_t count, double multiply_adds, ItemBody body);

/// Scratch of the calling thread, kept until the thread ends. Throws std::bad_alloc.
Workspace& thread_workspace();

}  // namespace fa4::cpu
