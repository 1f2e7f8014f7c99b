// Body of a kernel file: everything of this folder, as one table.
#pragma once

#include "csrc/cpu/isa/bwd_tile.h"
#include "csrc/cpu/isa/combine_row.h"
#include "csrc/cpu/isa/fwd_few_rows.h"

namespace fa4::cpu {
namespace {

constexpr Kernels kernel_table(const char* name) {
  return {name,        kLanes / 2, fwd_tile, fwd_few_rows, bwd_tile,
          combine_row, store_row,  load_row, dot_row};
}

}  // namespace
}  // namespace fa4::cpu
