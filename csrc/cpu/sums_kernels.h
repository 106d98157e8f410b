// norm_sums of one sample at one level; see sums.h.
#pragma once

#include "simd.h"
#include "sums.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

constexpr std::int64_t kSummedNorm = 256;  // positions at a time, so that rounding errors stay small

PNTK_INLINE float total(Vec x) {
  float lanes[kLanes], sum = 0.0f;
  store(lanes, x);
  for (const float lane : lanes) sum += lane;
  return sum;
}

// One channel over positions [start, end); consecutive where both strides are 1.
inline void add_channel(const NormSums& s, const float* delta, const float* x, float mean,
                        std::int64_t start, std::int64_t end, float* scale, float* shift) {
  Vec scales = broadcast(0.0f), shifts = scales;
  std::int64_t t = start;
  if (s.delta_position == 1 && s.x_position == 1)
    for (; t + kLanes <= end; t += kLanes) {
      const Vec d = load(delta + t);
      scales = fma(d, load(x + t) - broadcast(mean), scales);
      shifts = shifts + d;
    }
  float last_scale = 0.0f, last_shift = 0.0f;
  for (; t < end; ++t) {
    const float d = delta[t * s.delta_position];
    last_scale += d * (x[t * s.x_position] - mean);
    last_shift += d;
  }
  *scale += total(scales) + last_scale;
  *shift += total(shifts) + last_shift;
}

void norm_sums_sample(const NormSums& s, std::int64_t n) {
  const float *delta = s.delta + n * s.delta_sample, *x = s.x + n * s.x_sample;
  float *scale = s.scale + n * s.channels, *shift = s.shift + n * s.channels;
  for (std::int64_t c = 0; c < s.channels; ++c) scale[c] = shift[c] = 0.0f;
  const bool lanes_are_channels = s.delta_channel == 1 && s.x_channel == 1;
  for (std::int64_t start = 0; start < s.positions; start += kSummedNorm) {
    const std::int64_t left = s.positions - start;
    const std::int64_t end = start + (left < kSummedNorm ? left : kSummedNorm);
    std::int64_t c = 0;
    if (lanes_are_channels)
      for (; c + kLanes <= s.channels; c += kLanes) {
        const Vec mean = load(s.mean + c);
        Vec scales = broadcast(0.0f), shifts = scales;
        for (std::int64_t t = start; t < end; ++t) {
          const Vec d = load(delta + t * s.delta_position + c);
          scales = fma(d, load(x + t * s.x_position + c) - mean, scales);
          shifts = shifts + d;
        }
        store(scale + c, load(scale + c) + scales);
        store(shift + c, load(shift + c) + shifts);
      }
    for (; c < s.channels; ++c)
      add_channel(s, delta + c * s.delta_channel, x + c * s.x_channel, s.mean[c], start, end,
                  scale + c, shift + c);
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
