// Who wrote a piece of memory last, and who has read it since.
//
// Tiles are read and written whole, so shared memory is kept in units of 16 bytes, and a unit is
// split into its words only where an access covers part of it. Readers are sets that many cells
// share: each set is stored once, under a number.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "csrc/emulator/check/clocks.h"

namespace fa4::emulator::check {

using SetNumber = uint32_t;  // 0: the empty set

struct Cell {
  Epoch write;
  SetNumber readers = 0;
  uint32_t words =
      0;  // of a unit of shared memory: 1 + index of its four words, 0 where it is whole
};

/// Sets of readers, at most one entry per agent: its latest.
class ReaderSets {
 public:
  ReaderSets() : sets_(1) {}
  const std::vector<Epoch>& of(SetNumber number) const { return sets_[number]; }
  /// The set with `reader` in it, in place of an earlier read of the same agent.
  SetNumber with(SetNumber number, Epoch reader);
  bool crowded() const { return sets_.size() > limit_; }
  /// Drops the sets that no cell uses; `cells` are all that exist.
  void compact(const std::vector<std::vector<Cell>*>& cells);

 private:
  struct Step {
    SetNumber from = 0, to = 0;
    Epoch reader;
  };
  std::vector<std::vector<Epoch>> sets_;
  std::array<Step, 1024> steps_{};  // recent results
  size_t limit_ = 1u << 16;
};

/// Shared memory of one CTA.
class SharedShadow {
 public:
  static constexpr uint32_t kUnit = 16, kWord = 4;
  explicit SharedShadow(size_t end) : units_((end + kUnit - 1) / kUnit) {}

  /// visit(cell, offset) for the cells of [offset, offset + bytes). Where all of a split unit is
  /// written it becomes whole again.
  template <class Visit>
  void each(uint32_t offset, uint32_t bytes, bool writes, Visit visit) {
    const uint32_t end = offset + bytes;
    for (uint32_t unit = offset / kUnit; unit * kUnit < end; ++unit) {
      Cell& cell = units_[unit];
      const uint32_t begin = unit * kUnit;
      const bool covered = begin >= offset && begin + kUnit <= end;
      if (covered && cell.words == 0) {
        visit(cell, begin);
        continue;
      }
      if (cell.words == 0) split(cell);
      const uint32_t index = cell.words - 1;
      for (uint32_t word = 0; word < kUnit / kWord; ++word) {
        const uint32_t at = begin + word * kWord;
        if (at + kWord > offset && at < end) visit(words_[4 * index + word], at);
      }
      if (covered && writes) merge(cell);
    }
  }
  const Cell& at(uint32_t offset) const {
    const Cell& unit = units_[offset / kUnit];
    return unit.words == 0 ? unit : words_[4 * (unit.words - 1) + offset % kUnit / kWord];
  }
  size_t end() const { return units_.size() * kUnit; }
  std::vector<Cell>& units() { return units_; }
  std::vector<Cell>& words() { return words_; }

 private:
  void split(Cell& cell);
  void merge(Cell& cell);
  std::vector<Cell> units_;
  std::vector<Cell> words_;
  std::vector<uint32_t> free_;  // indices of words that no unit uses
};

/// Tensor memory of one CTA: a cell is 16 lanes of a column, which is what every access has whole.
struct TensorShadow {
  static constexpr uint32_t kColumns = 512, kGroups = 8;
  std::vector<Cell> cells;
  Cell& at(uint32_t column, uint32_t group) { return cells[column * kGroups + group]; }
};

}  // namespace fa4::emulator::check
