// How a finished tile, or a vector of one, gets its signs and shifts and is added to phi.
#pragma once

#include "arithmetic.h"
#include "hadamard_call.h"
#include "walsh.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

constexpr i64 kGroup = 8;  // gamma moves whole groups of columns

// Where one tile goes: phi[r, c] += bit of signs * tile[r ^ rho, c ^ 8 shift].
struct Place {
  float* phi;  // [ko, ki]
  const std::uint8_t* signs;
  i64 ki, rho, shift;
};

// Add one vector of a tile's row, which starts at `column`.
PNTK_INLINE void add_vector(const Place& at, i64 row, i64 column, Vec x) {
  const i64 to_row = row ^ at.rho;
  i64 shift = at.shift;
  if constexpr (kLanes > kGroup) {
    if (shift & 1) x = exchange<kGroup>(x);
    shift &= ~i64{1};
  }
  const i64 to = column ^ (shift * kGroup);
  float* phi = at.phi + to_row * at.ki + to;
  store(phi, load(phi) + flip_at(x, at.signs + to_row * (at.ki / 8), to));
}

// slot: of row block i among the call's entry signs.
inline Place place(const Call& call, i64 slot, i64 i, i64 j, float* phi) {
  const TileMap& m = *call.map;
  return {phi, call.signs + (j * call.slots + slot) * (m.ko * m.ki / 8), m.ki, m.rho[j],
          m.gamma_columns[j] ^ m.gamma_rows[i]};
}

// Transform a tile [rows of ko, ki], whose diagonals are already in, and add it to phi.
inline void add_transformed(float* tile, i64 rows, i64 ko, const Place& at) {
  walsh_columns(tile, rows, at.ki);
  i64 order = 1;  // zeros past it only repeat the transform of the rows before
  while (order < rows) order *= 2;
  fill_zeros(tile + rows * at.ki, (order - rows) * at.ki);
  walsh_rows(tile, order, at.ki);
  for (i64 r = 0; r < ko; ++r) {
    const float* row = tile + (r & (order - 1)) * at.ki;
    for (i64 c = 0; c < at.ki; c += kLanes) add_vector(at, r, c, load(row + c));
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
