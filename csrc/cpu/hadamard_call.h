// What hadamard.cpp prepares for the samples of one call, and what a level does with it. Plain data,
// so that no code of one level's making can end up in another's.
#pragma once

#include "hadamard.h"

namespace pntk {

// Consecutive positions of the row factor, whose windows lie `step` pixels apart.
struct Segment {
  std::int64_t pixel, count;
};

// Where a chunk of positions starts.
struct Chunk {
  std::int64_t segment, position;
};

struct Call {
  const TileMap* map;
  const float* diagonal;  // of the rows, times 1 / sqrt(k): makes both transforms orthonormal

  // Entry signs, a bit each, of `slots` row blocks: [column_blocks, slots, ko, ki], every row moved
  // by gamma of its row block, so that bit c belongs to column c of phi.
  const std::uint8_t* signs;
  std::int64_t slots;

  // Factors only: how positions meet pixels of the zero-padded input.
  const Factors* factors;
  bool together;          // all kernel positions side by side, as one wide position
  bool late;              // transform products, not factors
  bool padded;            // there are pixels that are no input
  bool flat;              // the input's axes lie in a row, so that pixels have one stride
  std::int64_t channels;  // of one position
  std::int64_t positions, pixels, step;
  const std::int64_t* where;      // pixel of each input element
  const std::int64_t* offsets;    // pixel offset of each kernel position
  const Segment* segments;        // of the first kernel position
  const Chunk* chunks;            // chunk_count starts, and the end
  std::int64_t chunk_count;
};

// One sample's tokens, sorted by row block.
struct Lookup {
  std::int64_t tokens;
  const std::int64_t* ids;
  const std::int64_t* slots;  // of the entry signs of each token's row block
  const Segment* segments;    // where each token's delta lies
};

constexpr std::int64_t kSamplesTogether = 3;  // of an outer product, at most, in a call

// Each adds samples to phi [k] of the first. bias: null, or the call of a vector whose gradients are
// the sums of the row factors.
struct HadamardKernels {
  void (*factors)(const Call&, const Call* bias, std::int64_t first, std::int64_t count,
                  float* phi);
  void (*gradient)(const Call&, const float* gradient, std::int64_t size, float* phi);
  void (*lookup)(const Call&, const Lookup&, const float* delta, float* phi);
};

}  // namespace pntk
