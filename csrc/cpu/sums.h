// What a norm's scale and shift get: sums over positions of delta (x - mean), and of delta.
#pragma once

#include <cstdint>

namespace pntk {

struct Level;

// delta and x are [n, C, L], strides in elements; mean [C]; results [n, C] contiguous.
struct NormSums {
  std::int64_t samples, channels, positions;
  const float* delta;
  std::int64_t delta_sample, delta_channel, delta_position;
  const float* x;
  std::int64_t x_sample, x_channel, x_position;
  const float* mean;
  float *scale, *shift;
};

void norm_sums(const Level&, const NormSums&, int threads);

}  // namespace pntk
