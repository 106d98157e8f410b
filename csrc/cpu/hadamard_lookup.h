// Look-ups of an embedding: tokens of one row block are the positions of one product.
#pragma once

#include "hadamard_pack.h"
#include "hadamard_product.h"
#include "hadamard_tile.h"
#include "scratch.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

void lookup_sample(const Call& call, const Lookup& lookup, const float* delta, float* phi) {
  const TileMap& m = *call.map;
  const i64 tokens = lookup.tokens;
  float* columns = scratch(tokens * (m.channel_blocks * m.ki + m.ko));
  float* rows = columns + tokens * m.channel_blocks * m.ki;
  for (i64 j = 0; j < m.channel_blocks; ++j)
    pack({delta, m.channels, tokens, 1, m.channels}, j * m.ki, m.ki, m.column_diagonal, true,
         nullptr, columns + j * tokens * m.ki);
  for (i64 t = 0; t < tokens; ++t) {
    float* row = rows + t * m.ko;
    fill_zeros(row, m.ko);
    row[lookup.ids[t] % m.ko] = call.diagonal[lookup.ids[t]];
    walsh_columns(row, 1, m.ko);
  }
  for (i64 t = 0; t < tokens;) {  // tokens of one row block are one product
    const i64 start = t, slot = lookup.slots[t], block = lookup.ids[t] / m.ko;
    while (t < tokens && lookup.slots[t] == slot) ++t;
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const Place at = place(call, slot, block, j, phi);
      const Panels panels{rows + start * m.ko,       m.ko, columns + j * tokens * m.ki, m.ki, 1,
                          lookup.segments + start, lookup.segments + t};
      product_tile(panels, m.ko, m.ki,
                   [&](i64 row, i64 column, Vec x) { add_vector(at, row, column, x); });
    }
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
