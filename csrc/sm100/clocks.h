// What the cost functions of the SM100 kernels' forms rest on. Nothing here was measured by us.
#pragma once

namespace fa4::sm100 {

// Products of 128 columns and 16 of the inner dimension: published times of single ones, by others
// and on a GB300, for one CTA and for a pair, which reads half of B and is faster therefore. Both
// operands in shared memory; and A in tensor memory, a tenth less.
inline constexpr double kSharedProductClocks[] = {80.0, 70.0};
inline constexpr double kTmemProductClocks[] = {72.0, 63.0};
inline constexpr double kSharedBytesPerClock = 128.0;
// What a pair has to save: its times are nobody's on this chip, and two SMs start and end together.
inline constexpr double kPairMargin = 1.1;

}  // namespace fa4::sm100
