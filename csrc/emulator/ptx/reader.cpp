#include "csrc/emulator/ptx/reader.h"

#include "csrc/emulator/ptx/module.h"

namespace fa4::emulator::ptx {

namespace {

/// A piece of the file for a message: bounded, and without bytes that are not ASCII text.
std::string quote(std::string_view text) {
  constexpr size_t kLongest = 200;
  std::string result(text.substr(0, kLongest));
  for (char& c : result) {
    if (c == '\t') c = ' ';
    if (c < ' ' || c > '~') c = '?';
  }
  if (text.size() > kLongest) result += "...";
  return result;
}

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "the end of the file";
    case TokenKind::kInvalid:
      return token.problem;
    case TokenKind::kString:
      return '"' + quote(token.text) + '"';
    default:
      return quote(token.text);
  }
}

/// Line `number` (from 1) without surrounding blanks; empty where the text has fewer.
std::string_view line_of(std::string_view text, uint32_t number) {
  constexpr std::string_view kBlanks = " \t\r\f\v";
  for (uint32_t i = 1; i < number; ++i) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return {};
    text.remove_prefix(end + 1);
  }
  text = text.substr(0, text.find('\n'));
  const size_t first = text.find_first_not_of(kBlanks);
  if (number == 0 || first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

}  // namespace

Reader::Reader(std::string_view text, std::string_view file)
    : text_(text), file_(file), lexer_(text), token_(lexer_.next()) {}

Token Reader::take() {
  const Token taken = token_;
  token_ = lexer_.next();
  return taken;
}

bool Reader::accept(char mark) {
  if (!token_.is(mark)) return false;
  token_ = lexer_.next();
  return true;
}

bool Reader::accept(std::string_view word) {
  if (!token_.is(word)) return false;
  token_ = lexer_.next();
  return true;
}

bool Reader::expect(char mark, std::string_view what) {
  return accept(mark) || fail(token_, what, std::string("'") + mark + "'");
}

bool Reader::integer(uint64_t limit, std::string_view what, uint64_t* value) {
  if (token_.kind != TokenKind::kInteger || token_.value > limit) {
    return fail(token_, what, "an integer from 0 to " + std::to_string(limit));
  }
  *value = take().value;
  return true;
}

bool Reader::skip_to_close(char open, char close) {
  for (uint64_t depth = 1; depth > 0;) {
    if (token_.kind == TokenKind::kEnd || token_.kind == TokenKind::kInvalid) {
      return fail(token_, std::string("block of '") + open + "'", std::string("'") + close + "'");
    }
    if (token_.is(open)) ++depth;
    if (token_.is(close)) --depth;
    token_ = lexer_.next();
  }
  return true;
}

bool Reader::fail(const Token& got, std::string_view what, std::string_view expected) {
  return fail(got.line, what, describe(got), expected);
}

bool Reader::fail(uint32_t line, std::string_view what, std::string_view got,
                  std::string_view expected) {
  if (!status_.ok()) return false;
  std::string message = file_ + ":" + std::to_string(line) + ": ";
  message.append(what).append(", got ").append(got);
  message.append(", expected ").append(expected);
  status_ = Status::invalid_value(message + ": " + quote(line_of(text_, line)));
  return false;
}

std::string_view Module::line(uint32_t number) const {
  return line_of(text, number);
}

}  // namespace fa4::emulator::ptx
