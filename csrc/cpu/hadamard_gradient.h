// A materialised gradient: each tile is loaded, transformed in L1, and added.
#pragma once

#include "hadamard_tile.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

// Add one gradient, seen as [rows, C, P], or as rows of ki numbers.
// tile: room for one.
inline void add_gradient(const Call& call, const float* gradient, i64 size, float* tile,
                         float* phi) {
  const TileMap& m = *call.map;
  const i64 spacing = m.vector ? 1 : m.positions;
  const i64 row_size = m.vector ? m.ki : m.channels * m.positions;
  const bool together = !m.per_position;
  const i64 width_of_all = together ? row_size : m.channels;
  const i64 ahead = m.vector ? m.ko * m.ki : m.ki;  // the next tile: runs too short for hardware
  for (i64 i = 0; i < m.row_blocks; ++i) {
    const i64 rows = smaller(m.ko, m.rows - i * m.ko);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const i64 p = together ? 0 : j / m.channel_blocks;
      const i64 first = (together ? j : j % m.channel_blocks) * m.ki;
      const float* sign = m.column_diagonal + first;
      for (i64 r = 0; r < rows; ++r) {
        const float* row = gradient + (i * m.ko + r) * row_size;
        const float d = call.diagonal[i * m.ko + r];
        float* to = tile + r * m.ki;
        const i64 left = m.vector ? size - (i * m.ko + r) * m.ki : width_of_all - first;
        const i64 width = smaller(m.ki, left);
        i64 c = 0;
        if (together && m.positions > 1) {  // column p * C + channel, of [C, P]
          for (; c < width; ++c) {
            const i64 at = first + c;
            to[c] = row[(at % m.channels) * spacing + at / m.channels] * d * sign[c];
          }
        } else if (spacing == 1) {
          const Vec scale = broadcast(d);
          for (; c + kLanes <= width; c += kLanes) {
            __builtin_prefetch(row + first + c + ahead);
            store(to + c, load(row + first + c) * (load(sign + c) * scale));
          }
          for (; c < width; ++c) to[c] = row[first + c] * d * sign[c];
        } else {
          for (; c < width; ++c) to[c] = row[(first + c) * spacing + p] * d * sign[c];
        }
        for (; c < m.ki; ++c) to[c] = 0.0f;
      }
      add_transformed(tile, rows, m.ko, place(call, i, i, j, phi));
    }
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
