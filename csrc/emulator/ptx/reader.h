// Tokens of one file with one token of look-ahead, and the first error. Private to the parser.
#pragma once

#include <string>
#include <string_view>

#include "csrc/emulator/ptx/lexer.h"
#include "flash_attn4/status.h"

namespace fa4::emulator::ptx {

class Reader {
 public:
  Reader(std::string_view text, std::string_view file);

  const Token& token() const { return token_; }
  /// The current token; moves on to the next.
  Token take();

  bool accept(char mark);
  bool accept(std::string_view word);
  bool expect(char mark, std::string_view what);
  /// An integer without sign, in [0, limit].
  bool integer(uint64_t limit, std::string_view what, uint64_t* value);
  /// Skips to the mark that closes `open`, which has just been taken.
  bool skip_to_close(char open, char close);

  /// Records "FILE:LINE: what, got X, expected Y: text of the line". Always false.
  bool fail(const Token& got, std::string_view what, std::string_view expected);
  bool fail(uint32_t line, std::string_view what, std::string_view got, std::string_view expected);
  const Status& status() const { return status_; }

 private:
  std::string_view text_;
  std::string file_;
  Lexer lexer_;
  Token token_;
  Status status_;
};

}  // namespace fa4::emulator::ptx
