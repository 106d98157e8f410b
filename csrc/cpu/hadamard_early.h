// The early road: both factors are transformed, once each, and every tile is a plain product.
#pragma once

#include "hadamard_pack.h"
#include "hadamard_product.h"
#include "hadamard_tile.h"
#include "scratch.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

constexpr i64 kPanelFloats = 1 << 17;  // of row factors at a time, half of a common L2

// Floats of the panels [channel_blocks, pixels, ki].
inline i64 panel_size(const Call& call) {
  return call.map->channel_blocks * call.pixels * call.map->ki;
}

// Write the transformed panels of sample b; zeros where no pixel lies.
inline void pack_columns(const Call& call, i64 b, float* panels) {
  const Factors& f = *call.factors;
  const TileMap& m = *call.map;
  const float* data = f.columns + b * f.columns_batch;
  const i64 *n = f.size, *step = f.columns_axis;
  for (i64 block = 0; block < m.channel_blocks; ++block) {
    float* panel = panels + block * call.pixels * m.ki;
    if (call.padded) fill_zeros(panel, call.pixels * m.ki);
    const auto write = [&](const float* from, i64 count, const i64* where) {
      pack({from, m.channels, count, f.columns_channel, step[2]}, block * m.ki, m.ki,
           m.column_diagonal, true, where, panel);
    };
    if (call.flat) {
      write(data, n[0] * n[1] * n[2], call.where);
      continue;
    }
    const i64* where = call.where;
    for (i64 i = 0; i < n[0]; ++i)
      for (i64 j = 0; j < n[1]; ++j, where += n[2])
        write(data + i * step[0] + j * step[1], n[2], where);
  }
}

// Some row blocks at a time, so that their panels stay in L2.
inline void add_early(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 block_size = call.positions * m.ko;
  const i64 blocks = larger(1, smaller(m.row_blocks, kPanelFloats / block_size));
  float* columns = scratch(panel_size(call) + blocks * block_size);
  float* rows = columns + panel_size(call);
  pack_columns(call, b, columns);
  const Source source = row_source(call, b);
  for (i64 first = 0; first < m.row_blocks; first += blocks) {
    const i64 end = smaller(m.row_blocks, first + blocks);
    for (i64 i = first; i < end; ++i)
      pack(source, i * m.ko, m.ko, call.diagonal, true, nullptr, rows + (i - first) * block_size);
    for (i64 chunk = 0; chunk < call.chunk_count; ++chunk)
      for (i64 j = 0; j < m.column_blocks; ++j) {
        const i64 block = j % m.channel_blocks, offset = call.offsets[j / m.channel_blocks];
        const float* column = columns + (block * call.pixels + offset) * m.ki;
        for (i64 i = first; i < end; ++i) {
          const Place at = place(call, i, i, j, phi);
          const float* row = rows + (i - first) * block_size + call.chunks[chunk].position * m.ko;
          const Panels panels{row, m.ko, column, m.ki, call.step,
                              call.segments + call.chunks[chunk].segment,
                              call.segments + call.chunks[chunk + 1].segment};
          product_tile(panels, m.ko, m.ki,
                       [&](i64 r, i64 c, Vec x) { add_vector(at, r, c, x); });
        }
      }
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
