#include "csrc/emulator/ptx/scopes.h"

#include <string>
#include <utility>

namespace fa4::emulator::ptx {

namespace {

/// The number that follows `prefix` in `name`, written without leading zeros; nullopt: none does.
std::optional<uint32_t> number_after(std::string_view prefix, std::string_view name) {
  constexpr size_t kMostDigits = 9;
  if (name.size() <= prefix.size() || name.size() > prefix.size() + kMostDigits) return {};
  if (name.substr(0, prefix.size()) != prefix) return {};
  const std::string_view digits = name.substr(prefix.size());
  if (digits[0] == '0' && digits.size() > 1) return {};
  uint32_t number = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return {};
    number = 10 * number + static_cast<uint32_t>(c - '0');
  }
  return number;
}

}  // namespace

bool Scopes::declare(std::string_view name, Name meaning) {
  Scope& scope = scopes_.back();
  for (const Range& range : scope.ranges) {
    const std::optional<uint32_t> number = number_after(range.prefix, name);
    if (number && *number < range.count) return false;
  }
  return scope.names.emplace(name, meaning).second;
}

bool Scopes::declare_range(std::string_view prefix, Type type, uint32_t count) {
  Scope& scope = scopes_.back();
  for (const Range& range : scope.ranges) {
    if (range.prefix == prefix) return false;
  }
  for (const auto& entry : scope.names) {
    const std::optional<uint32_t> number = number_after(prefix, entry.first);
    if (number && *number < count) return false;
  }
  scope.ranges.push_back({prefix, type, count, {}});
  return true;
}

std::optional<Name> Scopes::find(std::string_view name, std::vector<Register>* registers) {
  for (size_t depth = scopes_.size(); depth-- > 0;) {
    Scope& scope = scopes_[depth];
    for (Range& range : scope.ranges) {
      const std::optional<uint32_t> number = number_after(range.prefix, name);
      if (!number || *number >= range.count) continue;
      if (range.registers.size() <= *number) range.registers.resize(*number + size_t{1});
      uint32_t& entry = range.registers[*number];
      if (entry == 0) {
        registers->push_back({range.type, std::string(name)});
        entry = static_cast<uint32_t>(registers->size());
      }
      return Name{Name::kRegister, entry - 1};
    }
    if (scope.names.empty()) continue;
    const auto found = scope.names.find(name);
    if (found != scope.names.end()) return found->second;
  }
  return {};
}

const Name* Scopes::own(std::string_view name) const {
  const auto found = scopes_.back().names.find(name);
  return found == scopes_.back().names.end() ? nullptr : &found->second;
}

void Labels::leave() {
  const auto scope = std::move(scopes_.back());
  scopes_.pop_back();
  if (scopes_.empty()) return;
  for (const auto& [name, index] : scope) {
    if (entries_[index].state != Entry::kUndefined) continue;
    const auto [outer, added] = scopes_.back().emplace(name, index);
    if (added) continue;
    entries_[index].state = Entry::kForwarded;
    entries_[index].target = outer->second;
  }
}

uint32_t Labels::use(std::string_view name, uint32_t line) {
  const auto index = static_cast<uint32_t>(entries_.size());
  const auto [found, added] = scopes_.back().emplace(name, index);
  if (added) entries_.push_back({Entry::kUndefined, name, line, 0, {}, 0});
  return found->second;
}

Labels::Entry* Labels::define_entry(std::string_view name, uint32_t line) {
  Entry& entry = entries_[use(name, line)];
  if (entry.state != Entry::kUndefined) return nullptr;
  entry.line = line;
  return &entry;
}

bool Labels::define(std::string_view name, uint32_t line, uint32_t target) {
  Entry* const entry = define_entry(name, line);
  if (entry == nullptr) return false;
  entry->state = Entry::kLabel;
  entry->target = target;
  return true;
}

bool Labels::define_table(std::string_view name, uint32_t line, std::vector<uint32_t> targets) {
  Entry* const entry = define_entry(name, line);
  if (entry == nullptr) return false;
  entry->state = Entry::kTable;
  entry->targets = std::move(targets);
  return true;
}

void Labels::number(std::vector<Label>* labels) {
  for (Entry& entry : entries_) {
    if (entry.state != Entry::kLabel) continue;
    entry.index = static_cast<uint32_t>(labels->size());
    labels->push_back({std::string(entry.name), entry.target});
  }
}

const Labels::Entry& Labels::resolve(uint32_t provisional) const {
  const Entry* entry = &entries_[provisional];
  while (entry->state == Entry::kForwarded) entry = &entries_[entry->target];
  return *entry;
}

}  // namespace fa4::emulator::ptx
