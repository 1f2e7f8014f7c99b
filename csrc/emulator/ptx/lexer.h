// Splits PTX text into tokens. Views of the text, no allocation.
#pragma once

#include <cstdint>
#include <string_view>

namespace fa4::emulator::ptx {

enum class TokenKind : uint8_t {
  kEnd,
  kWord,  // add.s32, %tid.x, $L__BB0_1, _ with its modifiers; .reg and other directives one by one
  kInteger,  // value
  kFloat,    // value: bits of float_bits
  kString,   // text without the quotes, escapes as they stand
  kMark,     // one character of punctuation
  kInvalid,  // problem says why
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  uint8_t float_bits = 0;  // 32 or 64
  uint32_t line = 1;
  uint64_t value = 0;
  std::string_view text;
  const char* problem = "";

  bool is(char mark) const { return kind == TokenKind::kMark && text[0] == mark; }
  bool is(std::string_view word) const { return kind == TokenKind::kWord && text == word; }
  bool is_directive() const { return kind == TokenKind::kWord && text[0] == '.'; }
};

class Lexer {
 public:
  /// `text` must outlive the tokens.
  explicit Lexer(std::string_view text) : text_(text) {}

  /// The next token; kEnd for ever after the last one.
  Token next();

 private:
  /// Skips blanks and comments; false: a comment has no end.
  bool skip_blanks();
  size_t end_of_word(size_t begin) const;
  void string(Token* token);
  void number(Token* token);
  char at(size_t position) const { return position < text_.size() ? text_[position] : '\0'; }

  std::string_view text_;
  size_t position_ = 0;
  uint32_t line_ = 1;
};

}  // namespace fa4::emulator::ptx
