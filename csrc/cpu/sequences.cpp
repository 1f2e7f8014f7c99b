#include "csrc/cpu/sequences.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace fa4::cpu {
namespace {

Status out_of_rule(const char* name, const std::string& rule, int64_t got, int64_t index) {
  return Status::invalid_value(std::string(name) + ": must " + rule + ", got " +
                               std::to_string(got) + " at index " + std::to_string(index));
}

Status check_offsets(const char* name, const Side& side) {
  const int32_t* offsets = side.cu_seqlens;
  if (offsets[0] != 0) return out_of_rule(name, "start at 0", offsets[0], 0);
  for (int64_t i = 1; i <= side.batch; ++i) {
    if (offsets[i] < offsets[i - 1]) {
      return out_of_rule(name, "not decrease from " + std::to_string(offsets[i - 1]), offsets[i],
                         i);
    }
    if (offsets[i] > side.total) {
      return out_of_rule(name,
                         "not exceed the " + std::to_string(side.total) + " rows of the tensor",
                         offsets[i], i);
    }
    const int64_t length = int64_t{offsets[i]} - offsets[i - 1];
    if (length > side.capacity) {
      return out_of_rule(
          name, "have lengths of at most max_seqlen = " + std::to_string(side.capacity), length, i);
    }
  }
  return {};
}

Status check_used(const char* name, const Side& side) {
  for (int64_t i = 0; i < side.batch; ++i) {
    const int64_t used = side.seqused[i];
    if (used < 0 || used > side.owned(i)) {
      return out_of_rule(
          name, "lie in [0, " + std::to_string(side.owned(i)) + "], the rows present", used, i);
    }
  }
  return {};
}

}  // namespace

Side query_side(const Problem& p) {
  return {p.batch, p.seqlen_q, p.total_q, p.cu_seqlens_q, p.seqused_q};
}

Side key_side(const Problem& p) {
  return {p.batch, p.seqlen_k, p.total_k, p.cu_seqlens_k, p.seqused_k};
}

Status check_sequences(const Problem& problem) {
  const Side q = query_side(problem);
  const Side k = key_side(problem);
  Status status;
  if (q.cu_seqlens != nullptr) status = check_offsets("cu_seqlens_q", q);
  if (status.ok() && k.cu_seqlens != nullptr) status = check_offsets("cu_seqlens_k", k);
  if (status.ok() && q.seqused != nullptr) status = check_used("seqused_q", q);
  if (status.ok() && k.seqused != nullptr) status = check_used("seqused_k", k);
  return status;
}

Status check_pages(const FwdParams& params) {
  if (params.page_table == nullptr) return {};
  const Side k = key_side(params);
  for (int64_t sequence = 0; sequence < params.batch; ++sequence) {
    const int64_t used = ceil_div<int64_t>(k.span(sequence).length, params.page_size);
    const int32_t* pages = params.page_table + sequence * params.page_table_stride;
    for (int64_t i = 0; i < used; ++i) {
      if (pages[i] >= 0 && pages[i] < params.num_pages) continue;
      return Status::invalid_value("page_table: used entries must lie in [0, " +
                                   std::to_string(params.num_pages) + "), got " +
                                   std::to_string(pages[i]) + " at index (" +
                                   std::to_string(sequence) + ", " + std::to_string(i) + ")");
    }
  }
  return {};
}

void zero_unused(const Side& side, DType dtype, const View<void>& tensor, int64_t heads,
                 int64_t dim) {
  const int64_t bytes = dtype_bytes(dtype);
  for_each_unused(side, tensor.stride, [&](int64_t offset, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t at = offset + row * tensor.stride.row + head * tensor.stride.head;
        std::memset(static_cast<char*>(tensor.data) + at * bytes, 0, dim * bytes);
      }
    }
  });
}

void TileOrder::clear(int64_t heads) {
  heads_ = heads;
  work_ = 0.0;
  entries_.clear();
}

void TileOrder::add(int64_t sequence, int64_t tiles, double work) {
  if (tiles == 0) return;
  entries_.push_back({work, sequence, tiles, 0});
  work_ += work;
}

void TileOrder::finish() {
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return a.work != b.work ? a.work > b.work : a.sequence < b.sequence;
  });
  int64_t end = 0;
  for (Entry& entry : entries_) {
    end += entry.tiles * heads_;
    entry.end = end;
  }
}

TileIndex TileOrder::at(int64_t index) const {
  const auto entry = std::upper_bound(entries_.begin(), entries_.end(), index,
                                      [](int64_t i, const Entry& e) { return i < e.end; });
  const int64_t within = index - (entry->end - entry->tiles * heads_);
  return {entry->sequence, within / entry->tiles, within % entry->tiles, entry->tiles};
}

}  // namespace fa4::cpu
