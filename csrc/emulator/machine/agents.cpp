#include "csrc/emulator/machine/agents.h"

#include <iterator>
#include <utility>

#include "csrc/emulator/machine/fault.h"

namespace fa4::emulator {

void Agents::reset(Policy policy, uint64_t seed) {
  policy_ = policy;
  random_ = Random(seed);
  issued_ = 0;
  loose_.clear();
  pipes_.clear();
}

bool Agents::advance(Entry& entry) {
  Operation& operation = *entry.operation;
  try {
    if (!entry.was_read) {
      operation.read();
      entry.was_read = true;
      return false;
    }
    operation.write();
  } catch (const Fault& fault) {
    throw OperationFault(fault.what(), operation.name(), operation.line);
  }
  return true;
}

void Agents::finish(Entry& entry) {
  while (!advance(entry)) {
  }
}

void Agents::submit(std::unique_ptr<Operation> operation, int pipe) {
  Entry entry{std::move(operation), false, issued_++};
  if (pipe == kNoPipe) {
    if (policy_ == Policy::kEager) {
      finish(entry);
    } else {
      loose_.push_back(std::move(entry));
    }
    return;
  }
  const auto index = static_cast<size_t>(pipe);
  if (pipes_.size() <= index) pipes_.resize(index + 1);
  std::deque<Entry>& queue = pipes_[index];
  // A random schedule keeps operations apart: each has its own moments.
  const bool may_absorb = policy_ != Policy::kRandom && !queue.empty() && !queue.back().was_read;
  if (may_absorb && queue.back().operation->absorb(*entry.operation)) return;
  if (policy_ == Policy::kEager) settle();
  queue.push_back(std::move(entry));
}

void Agents::settle() {
  if (policy_ != Policy::kEager) return;
  for (std::deque<Entry>& queue : pipes_) {
    while (!queue.empty()) {
      finish(queue.front());
      queue.pop_front();
    }
  }
}

bool Agents::step_oldest() {
  std::deque<Entry>* oldest_pipe = nullptr;
  uint64_t oldest = loose_.empty() ? UINT64_MAX : loose_.front().number;
  for (std::deque<Entry>& queue : pipes_) {
    if (queue.empty() || queue.front().number > oldest) continue;
    oldest = queue.front().number;
    oldest_pipe = &queue;
  }
  if (oldest_pipe != nullptr) {
    if (advance(oldest_pipe->front())) oldest_pipe->pop_front();
    return true;
  }
  if (loose_.empty()) return false;
  if (advance(loose_.front())) loose_.pop_front();
  return true;
}

bool Agents::step_random() {
  if (policy_ != Policy::kRandom || empty() || !random_.one_in(2)) return false;
  size_t candidates = loose_.size();
  for (const std::deque<Entry>& queue : pipes_) candidates += queue.empty() ? 0 : 1;
  size_t chosen = random_.below(static_cast<uint32_t>(candidates));
  if (chosen < loose_.size()) {
    const auto entry = std::next(loose_.begin(), static_cast<std::ptrdiff_t>(chosen));
    if (advance(*entry)) loose_.erase(entry);
    return true;
  }
  chosen -= loose_.size();
  for (std::deque<Entry>& queue : pipes_) {
    if (queue.empty() || chosen-- != 0) continue;
    if (advance(queue.front())) queue.pop_front();
    break;
  }
  return true;
}

bool Agents::pipes_empty() const {
  for (const std::deque<Entry>& queue : pipes_) {
    if (!queue.empty()) return false;
  }
  return true;
}

std::vector<std::string> Agents::pending() const {
  std::vector<std::string> names;
  const auto add = [&names](const Entry& entry) {
    names.push_back(entry.operation->name() + " of line " + std::to_string(entry.operation->line));
  };
  for (const Entry& entry : loose_) add(entry);
  for (const std::deque<Entry>& queue : pipes_) {
    for (const Entry& entry : queue) add(entry);
  }
  return names;
}

}  // namespace fa4::emulator
