// The online softmax recurrence against fp64 on whole rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "combinations.h"
#include "flash_attn4/core/softmax.h"

namespace fa4 {
namespace {

constexpr double kLn2Exact = 0.693147180559945309417;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Row {
  std::vector<float> scores;  // log2 units, -inf where masked
  std::vector<float> values;
  std::optional<float> sink_log2;
};

struct Result {
  double out = 0;
  double lse = 0;
  int rescales = 0;          // after the first visible block
  float largest_weight = 0;  // before rescaling
};

/// The recurrence as the header describes it, in fp32 with blocks of `block_size` keys.
Result recurrence(const Row& row, size_t block_size, float slack) {
  Result result;
  float reference = kMinusInfinity;
  float sum = 0;
  float out = 0;
  for (size_t first = 0; first < row.scores.size(); first += block_size) {
    const size_t last = std::min(first + block_size, row.scores.size());
    float block_max = kMinusInfinity;
    for (size_t j = first; j < last; ++j) block_max = std::max(block_max, row.scores[j]);
    const float next = next_reference(reference, block_max, slack);
    const float factor = std::exp2(reference - usable_reference(next));
    if (reference != kMinusInfinity && next != reference) ++result.rescales;
    sum *= factor;
    out *= factor;
    reference = next;
    for (size_t j = first; j < last; ++j) {
      const float weight = std::exp2(row.scores[j] - usable_reference(reference));
      result.largest_weight = std::max(result.largest_weight, weight);
      sum += weight;
      out += weight * row.values[j];
    }
  }
  if (row.sink_log2) out *= add_sink(reference, sum, *row.sink_log2);
  result.out = out * final_scale(sum);
  result.lse = row_lse(reference, sum);
  return result;
}

/// The definition in fp64.
Result definition(const Row& row) {
  double largest = kMinusInfinity;
  for (float score : row.scores) largest = std::max(largest, double{score});
  if (row.sink_log2) largest = std::max(largest, double{*row.sink_log2});
  if (largest == kMinusInfinity) return {.out = 0, .lse = kMinusInfinity};
  double sum = row.sink_log2 ? std::exp2(*row.sink_log2 - largest) : 0;
  double out = 0;
  for (size_t j = 0; j < row.scores.size(); ++j) {
    const double weight = std::exp2(row.scores[j] - largest);
    sum += weight;
    out += weight * row.values[j];
  }
  return {.out = out / sum, .lse = kLn2Exact * (largest + std::log2(sum))};
}

/// The fp32 sums round once per key; a weight that matters is 2^(-30) or more, so its exponent, and
/// with it the weight, is off by at most 30 ulp; the log-sum-exp rounds at its own magnitude.
void expect_close(const Result& got, const Result& want, const Row& row) {
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  const double bound = kEpsilon * (32 + static_cast<double>(row.scores.size()) / 8);
  EXPECT_NEAR(got.out, want.out, 4 * bound);  // values up to about 4
  if (std::isinf(want.lse)) {
    EXPECT_EQ(got.lse, want.lse);
    EXPECT_EQ(got.out, 0.0);
  } else {
    EXPECT_NEAR(got.lse, want.lse, bound + kEpsilon * std::fabs(want.lse));
  }
}

using Scores = std::function<float(std::mt19937&, size_t index)>;

struct Kind {
  const char* name;
  Scores score;
};

float normal(std::mt19937& random) {
  return std::normal_distribution<float>()(random);
}

const Kind kKinds[] = {
    {"normal", [](std::mt19937& random, size_t) { return normal(random); }},
    {"peaked", [](std::mt19937& random, size_t) { return 40 * normal(random); }},
    {"rising", [](std::mt19937&, size_t index) { return 3.0f * static_cast<float>(index); }},
    {"rising slowly", [](std::mt19937&, size_t index) { return 0.1f * static_cast<float>(index); }},
    {"falling", [](std::mt19937&, size_t index) { return -3.0f * static_cast<float>(index); }},
    {"far below zero", [](std::mt19937& random, size_t) { return normal(random) - 3000; }},
    {"half masked",
     [](std::mt19937& random, size_t) {
       const float score = 5 * normal(random);
       return random() % 2 ? score : kMinusInfinity;
     }},
    {"masked at the start",
     [](std::mt19937& random, size_t index) {
       return index < 33 ? kMinusInfinity : normal(random);
     }},
    {"masked at the end",
     [](std::mt19937& random, size_t index) {
       return index < 33 ? normal(random) : kMinusInfinity;
     }},
    {"one visible",
     [](std::mt19937&, size_t index) { return index == 40 ? 12.5f : kMinusInfinity; }},
    {"empty", [](std::mt19937&, size_t) { return kMinusInfinity; }},
};

Row make_row(const Kind& kind, size_t keys, std::mt19937& random) {
  Row row;
  for (size_t j = 0; j < keys; ++j) {
    row.scores.push_back(kind.score(random, j));
    row.values.push_back(normal(random));
  }
  return row;
}

template <class Body>
void for_each_row(const Body& body) {
  std::mt19937 random(1);
  for_each_combination(
      [&](const Kind& kind, size_t keys, size_t block_size) {
        SCOPED_TRACE(testing::Message()
                     << kind.name << ", " << keys << " keys in blocks of " << block_size);
        body(make_row(kind, keys, random), block_size);
      },
      kKinds, std::array{0, 1, 5, 41, 64, 300, 1000}, std::array{1, 4, 32, 128});
}

TEST(OnlineSoftmax, EqualsTheDefinition) {
  for_each_row([](const Row& row, size_t block_size) {
    for (float slack : {0.0f, kRescaleSlackLog2})
      expect_close(recurrence(row, block_size, slack), definition(row), row);
  });
}

TEST(OnlineSoftmax, SinkIsAKeyWithoutValue) {
  for_each_row([](Row row, size_t block_size) {
    for (float sink : {kMinusInfinity, -2900.0f, -500.0f, -3.0f, 0.0f, 7.0f, 9.0f, 500.0f}) {
      row.sink_log2 = sink;
      for (float slack : {0.0f, kRescaleSlackLog2})
        expect_close(recurrence(row, block_size, slack), definition(row), row);
    }
  });
}

TEST(OnlineSoftmax, NoWeightExceedsTheSlack) {
  for_each_row([](const Row& row, size_t block_size) {
    EXPECT_LE(recurrence(row, block_size, 0).largest_weight, 1.0f);
    EXPECT_LE(recurrence(row, block_size, kRescaleSlackLog2).largest_weight, 256.0f);
  });
}

TEST(OnlineSoftmax, SlackSavesRescales) {
  Row row;
  for (int j = 0; j < 20; ++j) {
    row.scores.push_back(static_cast<float>(j));  // a new maximum in every block
    row.values.push_back(1);
  }
  EXPECT_EQ(recurrence(row, 1, 0).rescales, 19);
  EXPECT_EQ(recurrence(row, 1, kRescaleSlackLog2).rescales, 2);  // at 9 and 18: more than 8 above
}

TEST(OnlineSoftmax, EmptyRowTakesTheSink) {
  float reference = kMinusInfinity;
  float sum = 0;
  EXPECT_EQ(add_sink(reference, sum, 2.5f), 1.0f);
  EXPECT_EQ(reference, 2.5f);
  EXPECT_EQ(sum, 1.0f);
  EXPECT_FLOAT_EQ(row_lse(reference, sum), 2.5f * kLn2);
}

TEST(OnlineSoftmax, EmptyRowWithoutSink) {
  EXPECT_EQ(row_lse(kMinusInfinity, 0), kMinusInfinity);
  EXPECT_EQ(final_scale(0), 0.0f);
  EXPECT_EQ(next_reference(kMinusInfinity, kMinusInfinity, 0), kMinusInfinity);
  EXPECT_EQ(usable_reference(kMinusInfinity), 0.0f);
}

TEST(OnlineSoftmax, FirstVisibleBlockSetsTheReference) {
  for (float slack : {0.0f, kRescaleSlackLog2})
    for (float score : {-3000.0f, -1.0f, 0.0f, 5.0f})
      EXPECT_EQ(next_reference(kMinusInfinity, score, slack), score);
}

TEST(OnlineSoftmax, NaNScoresShowInOutAndLse) {
  const auto check = [](float other, size_t block_size, bool sink) {
    Row row{.scores = {other, kNaN, other}, .values = {1, 2, 3}, .sink_log2 = std::nullopt};
    if (sink) row.sink_log2 = 4.0f;
    const Result result = recurrence(row, block_size, kRescaleSlackLog2);
    EXPECT_TRUE(std::isnan(result.out)) << other << " " << block_size << " " << sink;
    EXPECT_TRUE(std::isnan(result.lse)) << other << " " << block_size << " " << sink;
  };
  for_each_combination(check, std::array{kNaN, 1.0f, kMinusInfinity}, std::array{1, 3},
                       std::array{false, true});
}

}  // namespace
}  // namespace fa4
