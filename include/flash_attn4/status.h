// Result of every call of the C++ API.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace fa4 {

enum class Code : uint8_t {
  kOk,
  kInvalidValue,  // a shape, length, window or scale; Python: ValueError
  kInvalidType,   // an element type; Python: TypeError
  kUnsupported,   // right, but no kernel of this build serves it; Python: NotImplementedError
  kRuntime,       // the driver or the machine refused; Python: RuntimeError
};

/// A code and, unless ok, a message of the form "argument: rule, got value".
struct [[nodiscard]] Status {
  Code code = Code::kOk;
  std::string message;

  bool ok() const { return code == Code::kOk; }

  static Status invalid_value(std::string text) { return {Code::kInvalidValue, std::move(text)}; }
  static Status invalid_type(std::string text) { return {Code::kInvalidType, std::move(text)}; }
  static Status unsupported(std::string text) { return {Code::kUnsupported, std::move(text)}; }
  static Status runtime(std::string text) { return {Code::kRuntime, std::move(text)}; }
};

}  // namespace fa4
