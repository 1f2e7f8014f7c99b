// What names mean inside nested scopes. Private to the parser.
#pragma once

#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/emulator/ptx/module.h"

namespace fa4::emulator::ptx {

struct Name {
  enum Kind : uint8_t { kRegister, kSymbol };
  Kind kind = kRegister;
  uint32_t index = 0;
};

/// Registers and symbols. The outermost scope is the module. Views must outlive the object.
class Scopes {
 public:
  Scopes() { enter(); }
  void enter() { scopes_.emplace_back(); }
  void leave() { scopes_.pop_back(); }
  size_t depth() const { return scopes_.size(); }

  /// False: the innermost scope has the name already.
  bool declare(std::string_view name, Name meaning);
  /// `.reg .b32 %r<count>`: the names prefix0 to prefix(count-1).
  bool declare_range(std::string_view prefix, Type type, uint32_t count);
  /// Innermost meaning. A register of a range joins `registers` when it is first named: kernels
  /// declare many more than they use.
  std::optional<Name> find(std::string_view name, std::vector<Register>* registers);
  /// The meaning in the innermost scope only.
  const Name* own(std::string_view name) const;

 private:
  struct Range {
    std::string_view prefix;
    Type type = Type::kNone;
    uint32_t count = 0;
    std::vector<uint32_t> registers;  // 1 + index into Kernel::registers; 0: not named so far
  };
  struct Scope {
    std::unordered_map<std::string_view, Name> names;
    std::vector<Range> ranges;
  };

  std::vector<Scope> scopes_;
};

/// Labels of one kernel. Uses may precede the definition, and a name may stand for another label in
/// each scope, so uses get a provisional number that resolve() translates at the end.
class Labels {
 public:
  void enter() { scopes_.emplace_back(); }
  /// Names without definition in the scope are looked for in the enclosing one.
  void leave();

  /// The provisional number of a use.
  uint32_t use(std::string_view name, uint32_t line);
  /// False: the scope has the label already.
  bool define(std::string_view name, uint32_t line, uint32_t target);
  /// `name: .branchtargets ...`, by provisional numbers.
  bool define_table(std::string_view name, uint32_t line, std::vector<uint32_t> targets);

  struct Entry {
    enum State : uint8_t { kUndefined, kForwarded, kLabel, kTable };
    State state = kUndefined;
    std::string_view name;
    uint32_t line = 0;    // of the definition, or of the first use
    uint32_t target = 0;  // kLabel: instruction; kForwarded: entry
    std::vector<uint32_t> targets;
    uint32_t index = 0;  // kLabel: into Kernel::labels, after number()
  };
  /// Copies the defined labels to `labels`.
  void number(std::vector<Label>* labels);
  /// What a provisional number stands for, once every scope is left.
  const Entry& resolve(uint32_t provisional) const;

 private:
  Entry* define_entry(std::string_view name, uint32_t line);

  std::vector<Entry> entries_;
  std::vector<std::unordered_map<std::string_view, uint32_t>> scopes_;
};

}  // namespace fa4::emulator::ptx
