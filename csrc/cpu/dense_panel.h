// What the dense kernels of one level share: words of a row of P, gradients with samples in lanes,
// and sums back from lanes to rows.
#pragma once

#include "arithmetic.h"
#include "dense_call.h"
#include "dense_words.h"
#include "scratch.h"
#include "simd.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {
namespace dense {

// Words `entry` on of one row of words; entry and count are multiples of kDenseGroup.
inline void row_words(const DenseMap& map, i64 row, i64 entry, i64 count, std::uint32_t* to) {
  constexpr int kVectors = 2;
  constexpr i64 kBlocks = kVectors * kWideLanes;
  static_assert(kDenseGroup % (4 * kBlocks) == 0, "groups are whole runs of blocks");
  const i64 first = row * (round_up(map.proj_dim, 4) / 4) + entry / 4;
  for (i64 block = first; block < first + count / 4; block += kBlocks, to += 4 * kBlocks)
    make_words<kVectors>(map.seed, map.stream, static_cast<std::uint64_t>(block), to);
}

// Write coordinates [first, first + count) of samples [sample, sample + kLanes) to `to`: lane s of
// vector i is coordinate first + i of sample s; zero where there is none. count: a multiple of
// kLanes.
inline void pack_samples(const DenseTask& task, i64 sample, i64 first, i64 count, float* to,
                         i64 stride) {
  const i64 size = task.map->size, samples = smaller(kLanes, task.samples - sample);
  const float* from = task.gradient + sample * size;
  for (i64 i = 0; i < count; i += kLanes) {
    const i64 there = smaller(kLanes, task.last - first - i);
    Vec x[kLanes];
    for (int s = 0; s < kLanes; ++s) {
      if (s >= samples || there <= 0) {
        x[s] = broadcast(0.0f);
      } else if (there == kLanes) {
        x[s] = load(from + s * size + first + i);
      } else {
        float tail[kLanes] = {};
        std::memcpy(tail, from + s * size + first + i,
                    static_cast<std::size_t>(there) * sizeof *tail);
        x[s] = load(tail);
      }
    }
    transpose(x);
    for (int c = 0; c < kLanes; ++c) store(to + (i + c) * stride, x[c]);
  }
}

// The reverse for sums: vector j, `stride` floats apart, has entry j of samples [sample, + kLanes).
// Vectors up to the next multiple of kLanes are read.
inline void unpack_sums(const DenseTask& task, i64 sample, const float* from, i64 stride) {
  const i64 samples = smaller(kLanes, task.samples - sample);
  for (i64 j = 0; j < task.entries; j += kLanes) {
    const i64 there = smaller(kLanes, task.entries - j);
    Vec x[kLanes];
    for (int c = 0; c < kLanes; ++c) x[c] = load(from + (j + c) * stride);
    transpose(x);
    for (i64 s = 0; s < samples; ++s) {
      float row[kLanes];
      store(row, x[s]);
      std::memcpy(task.sums + (sample + s) * task.entries + j, row,
                  static_cast<std::size_t>(there) * sizeof *row);
    }
  }
}

}  // namespace dense
}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
