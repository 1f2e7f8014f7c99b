// CPU calls on an emulated GPU: while it lasts, dispatch, launch code and kernels of that GPU serve
// them instead of the CPU backend. The state is the process's, not a thread's.
#pragma once

#include <atomic>
#include <cstddef>

#include "flash_attn4/status.h"

namespace fa4 {

namespace driver {
struct Table;
}

namespace detail {
inline std::atomic<const driver::Table*> emulator{nullptr};  // in use; null: none
}

/// Whether CPU calls run on an emulated GPU.
inline bool emulating() {
  return detail::emulator.load(std::memory_order_acquire) != nullptr;
}

/// Begins it, on a GPU of `arch`, "sm90" or "sm100"; fails where it has begun already. Null ends it.
/// No call may be under way at either moment.
Status use_emulator(const char* arch);

/// Form of kernels that calls take where there are several, by the CTAs that share a tile; 0: the
/// cheaper one by dispatch's prediction. For tests; of the process.
inline std::atomic<int> forced_ctas{0};

/// While emulating: kernels of this thread's calls may touch this memory, and none that was not
/// noted. forget_memory: any memory again.
void note_memory(const void* base, size_t bytes);
void forget_memory();

}  // namespace fa4
