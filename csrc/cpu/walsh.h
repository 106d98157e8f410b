// Walsh-Hadamard transforms (unnormalised, Sylvester order) of blocks in cache.
#pragma once

#include "simd.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

// Transform the lanes of x against each other, in blocks of `order` lanes.
template <int Distance = 1>
PNTK_INLINE Vec walsh_lanes(Vec x, std::int64_t order = kLanes) {
  if constexpr (Distance < kLanes) {
    if (Distance >= order) return x;
    x = fma(x, alternating<Distance>(), exchange<Distance>(x));
    return walsh_lanes<2 * Distance>(x, order);
  } else {
    return x;
  }
}

template <int Distance, int Count>
PNTK_INLINE void walsh_vectors(Vec (&x)[Count]) {
  if constexpr (Distance < Count) {
    for (int i = 0; i < Count; ++i) {
      if (i & Distance) continue;
      const Vec sum = x[i] + x[i + Distance];
      x[i + Distance] = x[i] - x[i + Distance];
      x[i] = sum;
    }
    walsh_vectors<2 * Distance>(x);
  }
}

// Transform Count vectors at x + i * stride against each other.
template <int Count>
PNTK_INLINE void walsh_across(float* x, std::int64_t stride) {
  Vec v[Count];
  for (int i = 0; i < Count; ++i) v[i] = load(x + i * stride);
  walsh_vectors<1>(v);
  for (int i = 0; i < Count; ++i) store(x + i * stride, v[i]);
}

// Transform the rows of x [order, columns] against each other, in place.
inline void walsh_rows(float* x, std::int64_t order, std::int64_t columns) {
  std::int64_t done = 1;
  while (done < order) {
    const std::int64_t radix = order / done >= 8 ? 8 : order / done;
    for (std::int64_t block = 0; block < order; block += done * radix)
      for (std::int64_t row = block; row < block + done; ++row)
        for (std::int64_t c = 0; c < columns; c += kLanes) {
          float* at = x + row * columns + c;
          if (radix == 8) walsh_across<8>(at, done * columns);
          else if (radix == 4) walsh_across<4>(at, done * columns);
          else walsh_across<2>(at, done * columns);
        }
    done *= radix;
  }
}

template <int Count>
PNTK_INLINE void walsh_block(float* x) {
  Vec v[Count];
  for (int i = 0; i < Count; ++i) v[i] = walsh_lanes(load(x + i * kLanes));
  walsh_vectors<1>(v);
  for (int i = 0; i < Count; ++i) store(x + i * kLanes, v[i]);
}

// Transform each row of x [count, order], in place.
inline void walsh_columns(float* x, std::int64_t count, std::int64_t order) {
  if (order < kLanes) {  // several rows a vector; the last ones in a copy
    const std::int64_t size = count * order;
    for (std::int64_t i = 0; i < size; i += kLanes) {
      float part[kLanes] = {};
      const std::int64_t left = size - i < kLanes ? size - i : kLanes;
      std::memcpy(part, x + i, left * sizeof(float));
      store(part, walsh_lanes(load(part), order));
      std::memcpy(x + i, part, left * sizeof(float));
    }
    return;
  }
  constexpr int kMost = 8;
  const std::int64_t vectors = order / kLanes;
  for (std::int64_t row = 0; row < count; ++row, x += order) {
    if (vectors == 1) walsh_block<1>(x);
    else if (vectors == 2) walsh_block<2>(x);
    else if (vectors == 4) walsh_block<4>(x);
    else {
      for (std::int64_t i = 0; i < order; i += kMost * kLanes) walsh_block<kMost>(x + i);
      walsh_rows(x, vectors / kMost, kMost * kLanes);
    }
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
