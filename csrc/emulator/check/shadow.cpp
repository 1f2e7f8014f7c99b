#include "csrc/emulator/check/shadow.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace fa4::emulator::check {

SetNumber ReaderSets::with(SetNumber number, Epoch reader) {
  const uint64_t hash = (reader.bits() * 0x9e3779b97f4a7c15u) ^ (uint64_t{number} * 0xff51afd7u);
  Step& step = steps_[(hash >> 20) % steps_.size()];
  if (step.to != 0 && step.from == number && step.reader == reader) return step.to;
  std::vector<Epoch> set = sets_[number];
  const auto same = std::find_if(set.begin(), set.end(),
                                 [&](const Epoch& e) { return e.agent() == reader.agent(); });
  if (same == set.end()) {
    set.push_back(reader);
  } else if (*same == reader) {
    return number;
  } else {
    *same = reader;
  }
  sets_.push_back(std::move(set));
  step = {number, static_cast<SetNumber>(sets_.size() - 1), reader};
  return step.to;
}

void ReaderSets::compact(const std::vector<std::vector<Cell>*>& cells) {
  std::vector<SetNumber> renamed(sets_.size(), 0);
  std::vector<std::vector<Epoch>> kept(1);
  for (std::vector<Cell>* const list : cells) {
    for (Cell& cell : *list) {
      if (cell.readers == 0) continue;
      SetNumber& name = renamed[cell.readers];
      if (name == 0) {
        kept.push_back(std::move(sets_[cell.readers]));
        name = static_cast<SetNumber>(kept.size() - 1);
      }
      cell.readers = name;
    }
  }
  sets_ = std::move(kept);
  steps_.fill({});
  limit_ = std::max<size_t>(1u << 16, 2 * sets_.size());
}

void SharedShadow::split(Cell& cell) {
  uint32_t index = static_cast<uint32_t>(words_.size() / 4);
  if (free_.empty()) {
    words_.resize(words_.size() + 4);
  } else {
    index = free_.back();
    free_.pop_back();
  }
  std::fill_n(words_.begin() + 4 * index, 4, Cell{cell.write, cell.readers, 0});
  cell.readers = 0;
  cell.words = index + 1;
}

/// All words have just been written by one operation.
void SharedShadow::merge(Cell& cell) {
  const uint32_t index = cell.words - 1;
  cell = {words_[4 * index].write, 0, 0};
  std::fill_n(words_.begin() + 4 * index, 4, Cell{});
  free_.push_back(index);
}

}  // namespace fa4::emulator::check
