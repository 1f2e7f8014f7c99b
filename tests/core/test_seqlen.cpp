// Spans of dense and packed sequences.
#include <gtest/gtest.h>

#include <cstdint>

#include "flash_attn4/core/seqlen.h"

namespace fa4 {
namespace {

constexpr int32_t kOffsets[] = {0, 3, 3, 8};
constexpr int32_t kUsed[] = {2, 0, 5};

TEST(SeqSpan, DenseSequencesHaveTheirBatchDimension) {
  for (int batch = 0; batch < 3; ++batch) {
    const SeqSpan span = seq_span(batch, 7, nullptr, nullptr);
    EXPECT_EQ(span.first_row, 0);
    EXPECT_EQ(span.length, 7);
  }
}

TEST(SeqSpan, PackedSequencesFollowEachOther) {
  const int32_t lengths[] = {3, 0, 5};
  for (int batch = 0; batch < 3; ++batch) {
    const SeqSpan span = seq_span(batch, /*capacity=*/100, kOffsets, nullptr);
    EXPECT_EQ(span.first_row, kOffsets[batch]);
    EXPECT_EQ(span.length, lengths[batch]);
  }
}

TEST(SeqSpan, SequsedShortensBothKinds) {
  for (int batch = 0; batch < 3; ++batch) {
    const SeqSpan dense = seq_span(batch, 7, nullptr, kUsed);
    EXPECT_EQ(dense.first_row, 0);
    EXPECT_EQ(dense.length, kUsed[batch]);
    const SeqSpan packed = seq_span(batch, 100, kOffsets, kUsed);
    EXPECT_EQ(packed.first_row, kOffsets[batch]);
    EXPECT_EQ(packed.length, kUsed[batch]);
  }
}

}  // namespace
}  // namespace fa4
