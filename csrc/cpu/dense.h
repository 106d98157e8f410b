// A dense random projection of gradients: phi[b, :] += scale * P g[b].
//
// P [k, p] is made from Philox words as it is used, a little at a time, and never stored: entry
// (j, i) comes from word (i / per_word) * k4 + j of the stream, k4 = k rounded up to a multiple of
// 4. rademacher: per_word = 32, bit i % 32 is a sign; normal: per_word = 4, byte i % 4 is a level.
#pragma once

#include <cstdint>

namespace pntk {

struct Level;

struct DenseMap {
  bool normal;  // levels of the normal table, or else signs
  bool bf16;    // round gradients to bfloat16 where there is AMX; elsewhere float32 all the same
  std::int64_t size, proj_dim;  // p, k
  float scale;
  std::uint64_t seed, stream;
};

// gradient [b, p], out [b, k], both contiguous. out is the same for any number of threads.
void dense_project(const Level&, const DenseMap&, std::int64_t batch, const float* gradient,
                   float* out, int threads);

}  // namespace pntk
