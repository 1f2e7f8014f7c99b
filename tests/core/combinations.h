// Exhaustive tests without towers of loops.
#pragma once

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace fa4 {

/// first, first + 1, ..., last.
inline std::vector<int> from_to(int first, int last) {
  std::vector<int> values(last - first + 1);
  std::iota(values.begin(), values.end(), first);
  return values;
}

/// Calls body(a, b, ...) with every combination of elements of the ranges, until one call fails an
/// assertion.
template <class Body>
void for_each_combination(const Body& body) {
  body();
}

template <class Body, class First, class... Rest>
void for_each_combination(const Body& body, const First& first, const Rest&... rest) {
  for (const auto& value : first) {
    for_each_combination([&](const auto&... others) { body(value, others...); }, rest...);
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace fa4
