// What stops a launch. Thrown by instruction handlers and agents; the launch turns it into a Status.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fa4::emulator {

/// Carries what went wrong; where (line, block, warp) is added by whoever runs the warp.
class Fault : public std::runtime_error {
 public:
  explicit Fault(const std::string& what) : std::runtime_error(what) {}
};

/// A fault of an asynchronous operation, which happens long after the instruction that issued it.
class OperationFault : public Fault {
 public:
  OperationFault(const std::string& what, const std::string& operation, uint32_t line)
      : Fault(what), operation(operation), line(line) {}
  std::string operation;  // "cp.async.bulk.tensor"
  uint32_t line;          // of the PTX
};

/// "0x1f00"
std::string hex(uint64_t value);

/// "lanes 0-3,7"
std::string lanes_text(uint32_t mask);

}  // namespace fa4::emulator
