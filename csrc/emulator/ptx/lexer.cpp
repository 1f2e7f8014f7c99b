#include "csrc/emulator/ptx/lexer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <system_error>

namespace fa4::emulator::ptx {

namespace {

enum Class : uint8_t { kOther = 0, kBlank = 1, kLetter = 2, kDigit = 4, kPunctuation = 8 };

// Built once by the compiler: the lexer looks at every character of the text.
constexpr std::array<uint8_t, 256> make_classes() {
  std::array<uint8_t, 256> classes{};
  for (const char c : std::string_view(" \t\r\n\f\v")) classes[static_cast<uint8_t>(c)] = kBlank;
  for (int c = 'a'; c <= 'z'; ++c) classes[c] = classes[c - 'a' + 'A'] = kLetter;
  for (int c = '0'; c <= '9'; ++c) classes[c] = kDigit;
  classes['_'] = classes['$'] = kLetter;
  for (const char c : std::string_view("@{}[]()<>,;:!|+-~=*/&^?")) {
    classes[static_cast<uint8_t>(c)] = kPunctuation;
  }
  return classes;
}
constexpr std::array<uint8_t, 256> kClasses = make_classes();

uint8_t class_of(char c) {
  return kClasses[static_cast<uint8_t>(c)];
}
bool continues_word(char c) {
  return (class_of(c) & (kLetter | kDigit)) != 0;
}

/// Reads all of `digits` as an unsigned number.
bool read_digits(std::string_view digits, int base, uint64_t* value) {
  const char* const end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, *value, base);
  return !digits.empty() && error == std::errc() && stop == end;
}

/// 10, 0x1f, 0b101, 017, each with an optional U.
bool read_integer(std::string_view text, uint64_t* value) {
  if (text.size() > 1 && text.back() == 'U') text.remove_suffix(1);
  if (text.size() < 2 || text[0] != '0') return read_digits(text, 10, value);
  if (text[1] == 'x' || text[1] == 'X') return read_digits(text.substr(2), 16, value);
  if (text[1] == 'b' || text[1] == 'B') return read_digits(text.substr(2), 2, value);
  return read_digits(text.substr(1), 8, value);
}

bool read_decimal_float(std::string_view text, uint64_t* bits) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  *bits = std::bit_cast<uint64_t>(value);
  return error == std::errc() && stop == end;
}

/// Digits of 0f3f800000 and 0d3ff0000000000000; 0: the text is no such literal.
size_t float_digits(std::string_view text) {
  if (text.size() < 2 || text[0] != '0') return 0;
  if (text[1] == 'f' || text[1] == 'F') return 8;
  return text[1] == 'd' || text[1] == 'D' ? 16 : 0;
}

}  // namespace

bool Lexer::skip_blanks() {
  for (;;) {
    const char c = at(position_);
    if (class_of(c) == kBlank) {
      line_ += c == '\n';
      ++position_;
    } else if (c == '/' && at(position_ + 1) == '/') {
      position_ = std::min(text_.find('\n', position_), text_.size());
    } else if (c == '/' && at(position_ + 1) == '*') {
      const size_t end = text_.find("*/", position_ + 2);
      if (end == std::string_view::npos) return false;
      for (; position_ < end + 2; ++position_) line_ += text_[position_] == '\n';
    } else {
      return true;
    }
  }
}

size_t Lexer::end_of_word(size_t begin) const {
  // A directive ends before the next dot (.reg.b32 is two), an opcode or %tid.x goes on.
  const bool directive = text_[begin] == '.';
  size_t end = begin + 1;
  for (;;) {
    while (continues_word(at(end))) ++end;
    if (at(end) == '.' && !directive && continues_word(at(end + 1))) {
      ++end;
    } else if (at(end) == ':' && at(end + 1) == ':' && continues_word(at(end + 2))) {
      end += 2;
    } else {
      return end;
    }
  }
}

void Lexer::string(Token* token) {
  size_t end = position_ + 1;
  while (end < text_.size() && text_[end] != '"' && text_[end] != '\n') {
    end += text_[end] == '\\' && at(end + 1) != '\n' ? 2 : 1;
  }
  if (at(end) != '"') {
    token->kind = TokenKind::kInvalid;
    token->problem = "a string without its closing quote";
    return;
  }
  token->kind = TokenKind::kString;
  token->text = text_.substr(position_ + 1, end - position_ - 1);
  position_ = end + 1;
}

void Lexer::number(Token* token) {
  const size_t begin = position_;
  const size_t bit_digits = float_digits(text_.substr(begin, 2));
  const bool decimal = at(begin) != '0' || !continues_word(at(begin + 1));
  bool fraction = false;
  size_t end = begin;
  for (;; ++end) {
    const char c = at(end);
    const bool exponent_sign = fraction && (c == '+' || c == '-') && (at(end - 1) | 0x20) == 'e';
    if (continues_word(c)) {
      fraction |= decimal && (c | 0x20) == 'e';
    } else if (c == '.' && decimal) {
      fraction = true;
    } else if (!exponent_sign) {
      break;
    }
  }
  token->text = text_.substr(begin, end - begin);
  position_ = end;
  bool valid = false;
  if (bit_digits != 0) {
    token->float_bits = static_cast<uint8_t>(4 * bit_digits);
    valid = token->text.size() == 2 + bit_digits &&
            read_digits(token->text.substr(2), 16, &token->value);
  } else if (fraction) {
    token->float_bits = 64;
    valid = read_decimal_float(token->text, &token->value);
  } else {
    valid = read_integer(token->text, &token->value);
  }
  token->kind = token->float_bits != 0 ? TokenKind::kFloat : TokenKind::kInteger;
  if (!valid) {
    token->kind = TokenKind::kInvalid;
    token->problem = "a malformed number or one of more than 64 bits";
  }
}

Token Lexer::next() {
  Token token;
  const bool comments_end = skip_blanks();
  token.line = line_;
  if (position_ >= text_.size()) return token;
  const char c = text_[position_];
  token.text = text_.substr(position_, 1);
  if (!comments_end) {
    token.kind = TokenKind::kInvalid;
    token.problem = "a comment without its end";
  } else if (class_of(c) == kLetter ||
             ((c == '.' || c == '%') && continues_word(at(position_ + 1)))) {
    token.kind = TokenKind::kWord;
    const size_t end = end_of_word(position_);
    token.text = text_.substr(position_, end - position_);
    position_ = end;
  } else if (class_of(c) == kDigit) {
    number(&token);
  } else if (c == '"') {
    string(&token);
  } else if (class_of(c) == kPunctuation) {
    token.kind = TokenKind::kMark;
    ++position_;
  } else {
    token.kind = TokenKind::kInvalid;
    token.problem = "a character that PTX does not use here";
  }
  return token;
}

}  // namespace fa4::emulator::ptx
