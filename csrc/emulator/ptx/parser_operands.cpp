// Operands of instructions.
#include <utility>

#include "csrc/emulator/ptx/parser.h"

namespace fa4::emulator::ptx {

namespace {

constexpr std::string_view kOperand =
    "a register, symbol, number, address in [], vector in {} or _";

std::optional<Special> special_named(std::string_view name) {
  static const auto* const specials = [] {
    auto* const names = new std::unordered_map<std::string_view, Special>;
    for (int i = 0; i < static_cast<int>(Special::kCount); ++i) {
      names->emplace(special_name(static_cast<Special>(i)), static_cast<Special>(i));
    }
    return names;
  }();
  const auto found = specials->find(name);
  if (found == specials->end()) return {};
  return found->second;
}

/// Applies the unary operators before an integer, the nearest first.
int64_t applied(std::string_view prefix, uint64_t value) {
  for (size_t i = prefix.size(); i-- > 0;) {
    if (prefix[i] == '-') value = uint64_t{0} - value;
    if (prefix[i] == '~') value = ~value;
    if (prefix[i] == '!') value = value == 0;
  }
  return static_cast<int64_t>(value);
}

int64_t wrapping_sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

}  // namespace

bool Parser::operand(const Opcode& opcode, Operand* result) {
  if (reader_.accept('{')) {
    result->kind = Operand::kVector;
    return list(opcode, '}', result);
  }
  if (reader_.accept('[')) return address(opcode, result);
  if (opcode.is_call && reader_.accept('(')) {
    result->kind = Operand::kGroup;
    return reader_.accept(')') || list(opcode, ')', result);
  }
  if (!value(opcode, result)) return false;
  if (!reader_.accept('|')) return true;
  Operand first = std::move(*result);
  *result = {};
  result->kind = Operand::kPair;
  result->parts.push_back(std::move(first));
  return value(opcode, &result->parts.emplace_back());
}

bool Parser::list(const Opcode& opcode, char close, Operand* result) {
  do {
    if (!value(opcode, &result->parts.emplace_back())) return false;
  } while (reader_.accept(','));
  return reader_.expect(close, "list of operands");
}

/// What follows '['.
bool Parser::address(const Opcode& opcode, Operand* result) {
  result->kind = Operand::kAddress;
  const Token first = reader_.token();
  Operand base;
  if (!primary(opcode, &base)) return false;
  const bool plain_register = base.kind == Operand::kRegister && !base.negated;
  const bool integer = base.kind == Operand::kImmediate && !base.is_float;
  if (!plain_register && !integer && base.kind != Operand::kSymbol) {
    return reader_.fail(first, "base of an address", "a register, symbol or integer");
  }
  if (!terms(integer ? &base.value : &result->value)) return false;
  result->parts.push_back(std::move(base));
  if (reader_.accept(',')) {
    if (!reader_.expect('{', "coordinates of an address")) return false;
    Operand& coordinates = result->parts.emplace_back();
    coordinates.kind = Operand::kVector;
    if (!list(opcode, '}', &coordinates)) return false;
  }
  return reader_.expect(']', "address");
}

/// A scalar operand with the integers that are added to it.
bool Parser::value(const Opcode& opcode, Operand* result) {
  if (!primary(opcode, result)) return false;
  const bool integer = result->kind == Operand::kImmediate && !result->is_float;
  return !integer && result->kind != Operand::kSymbol ? true : terms(&result->value);
}

/// A number of an initialiser.
bool Parser::constant(Operand* result) {
  const std::string prefix = operators();
  const TokenKind kind = reader_.token().kind;
  if (kind != TokenKind::kInteger && kind != TokenKind::kFloat) {
    return reader_.fail(reader_.token(), "initialiser", "a number or a symbol");
  }
  return number(prefix, result) && (result->is_float || terms(&result->value));
}

/// The unary operators that come next.
std::string Parser::operators() {
  std::string result;
  while (reader_.token().is('-') || reader_.token().is('~') || reader_.token().is('!')) {
    result += reader_.take().text;
  }
  return result;
}

/// Any number of "+ 4" and "- 4".
bool Parser::terms(int64_t* value) {
  while (reader_.token().is('+') || reader_.token().is('-')) {
    const bool minus = reader_.take().is('-');
    const std::string prefix = (minus ? "-" : "") + operators();
    if (reader_.token().kind != TokenKind::kInteger) {
      return reader_.fail(reader_.token(), "offset", "an integer");
    }
    *value = wrapping_sum(*value, applied(prefix, reader_.take().value));
  }
  return true;
}

bool Parser::primary(const Opcode& opcode, Operand* result) {
  const std::string prefix = operators();
  const Token token = reader_.token();
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) {
    return number(prefix, result);
  }
  if (token.kind != TokenKind::kWord) return reader_.fail(token, "operand", kOperand);
  if (!name(opcode, result)) return false;
  if (prefix.empty()) return true;
  if (result->kind == Operand::kImmediate) {
    result->value = applied(prefix, static_cast<uint64_t>(result->value));
    return true;
  }
  if (result->kind != Operand::kRegister || prefix.size() != 1 || prefix[0] == '~') {
    return reader_.fail(token, "operand of the operators " + prefix,
                        "a number, or a register after one ! or -");
  }
  result->negated = true;
  return true;
}

bool Parser::number(std::string_view prefix, Operand* result) {
  const Token token = reader_.take();
  result->kind = Operand::kImmediate;
  if (token.kind == TokenKind::kInteger) {
    result->value = applied(prefix, token.value);
    return true;
  }
  if (!prefix.empty() && prefix != "-")
    return reader_.fail(token, "operand of the operators " + std::string(prefix),
                        "an integer; a float takes one -");
  result->is_float = true;
  result->float_bits = token.float_bits;
  const uint64_t sign = prefix.empty() ? 0 : uint64_t{1} << (token.float_bits - 1);
  result->value = static_cast<int64_t>(token.value ^ sign);
  return true;
}

bool Parser::name(const Opcode& opcode, Operand* result) {
  const Token word = reader_.take();
  if (word.text == "_") {
    result->kind = Operand::kSink;
    return true;
  }
  if (const auto found = scopes_.find(word.text, &kernel_->registers)) {
    result->kind = found->kind == Name::kRegister ? Operand::kRegister : Operand::kSymbol;
    result->index = found->index;
    return true;
  }
  if (const auto special = special_named(word.text)) {
    result->kind = Operand::kSpecial;
    result->special = *special;
    return true;
  }
  if (word.text == "WARP_SZ") {
    result->kind = Operand::kImmediate;
    result->value = 32;
    return true;
  }
  if (opcode.is_branch) {
    result->kind = Operand::kLabel;
    result->index = labels_.use(word.text, word.line);
    return true;
  }
  return reader_.fail(word, "operand",
                      "a declared register, symbol or function, or a modelled special register");
}

}  // namespace fa4::emulator::ptx
