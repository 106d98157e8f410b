// The tile-Hadamard sketch of one sample at one level; hadamard.h says what it computes.
//
// Two roads lead from factors to a tile. Early: the transforms go onto the factors, once each, and
// every tile is a plain product. Late: the product comes first and each tile is transformed, which
// wins where early tiles would be mostly padding. A single position is a rank-one early road.
//
// Nothing here may instantiate a template of the standard library: its code would carry this
// level's instructions, and the linker could give it to another level.
#pragma once

#include <cstring>

#include "hadamard_call.h"
#include "scratch.h"
#include "walsh.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

using i64 = std::int64_t;

constexpr i64 kGroup = 8;              // gamma moves whole groups of columns
constexpr i64 kPanelFloats = 1 << 17;  // of row factors at a time, half of a common L2

PNTK_INLINE i64 round_up(i64 a, i64 b) { return (a + b - 1) / b * b; }
PNTK_INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
PNTK_INLINE i64 larger(i64 a, i64 b) { return a < b ? b : a; }

inline void fill_zeros(float* to, i64 count) {
  std::memset(to, 0, static_cast<std::size_t>(count) * sizeof(float));
}

// ---- adding tiles to phi -----------------------------------------------------------------------

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
  store(phi, load(phi) + flip(x, at.signs + to_row * (at.ki / 8), to));
}

// ---- products ----------------------------------------------------------------------------------

// A product over positions: rows [t, lda], columns [pixel, ldb].
struct Panels {
  const float* rows;
  i64 lda;
  const float* columns;
  i64 ldb, step;
  const Segment *begin, *end;
};

template <int Rows, int Vectors>
PNTK_INLINE void product(const Panels& p, i64 row, i64 column, Vec (&sum)[Rows][Vectors]) {
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sum[r][v] = broadcast(0.0f);
  const float* a = p.rows + row;
  for (const Segment* s = p.begin; s != p.end; ++s) {
    const float* b = p.columns + s->pixel * p.ldb + column;
    for (i64 t = 0; t < s->count; ++t, a += p.lda, b += p.step * p.ldb) {
      Vec x[Vectors];
      for (int v = 0; v < Vectors; ++v) x[v] = load(b + v * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const Vec y = broadcast(a[r]);
        for (int v = 0; v < Vectors; ++v) sum[r][v] = fma(y, x[v], sum[r][v]);
      }
    }
  }
}

// Call finish(row, column, vector) for every vector of the product [rows, columns].
template <int Rows, int Vectors, typename Finish>
inline void product_rows(const Panels& p, i64 rows, i64 columns, Finish&& finish) {
  for (i64 row = 0; row < rows; row += Rows)
    for (i64 column = 0; column < columns; column += Vectors * kLanes) {
      Vec sum[Rows][Vectors];
      product(p, row, column, sum);
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) finish(row + r, column + v * kLanes, sum[r][v]);
    }
}

// columns: a multiple of kLanes; rows: 1, 2, or a multiple of 4.
template <typename Finish>
inline void product_tile(const Panels& p, i64 rows, i64 columns, Finish&& finish) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;  // accumulators: 16 of 32 registers, or 8 of 16
  if (rows % 4 == 0) {
    if (columns % (kWide * kLanes) == 0) product_rows<4, kWide>(p, rows, columns, finish);
    else if (columns % (2 * kLanes) == 0) product_rows<4, 2>(p, rows, columns, finish);
    else product_rows<4, 1>(p, rows, columns, finish);
  } else if (rows == 2) {
    product_rows<2, 1>(p, rows, columns, finish);
  } else {
    product_rows<1, 1>(p, rows, columns, finish);
  }
}

// ---- packing -----------------------------------------------------------------------------------

// A factor of one sample: element (feature f, position t) at data[f * feature + t * position].
struct Source {
  const float* data;
  i64 features, positions, feature, position;
};

// Write features [first, first + width) of all positions to rows of `to` [., width], position t
// to row where[t] (or t), each feature times diagonal[feature] (or 1), transformed if wanted.
// Features past the last are zeros.
inline void pack(const Source& x, i64 first, i64 width, const float* diagonal, bool transform,
                 const i64* where, float* to) {
  const i64 known = larger(0, smaller(width, x.features - first));
  const float* from = x.data + first * x.feature;
  for (i64 t = 0; t < x.positions; t += kLanes) {
    const i64 count = smaller(kLanes, x.positions - t);
    float* row[kLanes];
    for (i64 i = 0; i < count; ++i) row[i] = to + (where ? where[t + i] : t + i) * width;
    i64 f = 0;
    if (x.feature == 1) {
      for (; f + kLanes <= known; f += kLanes) {
        const Vec d = diagonal ? load(diagonal + first + f) : broadcast(1.0f);
        for (i64 i = 0; i < count; ++i)
          store(row[i] + f, load(from + (t + i) * x.position + f) * d);
      }
    } else if (x.position == 1 && count == kLanes) {
      for (; f + kLanes <= known; f += kLanes) {
        const Vec d = diagonal ? load(diagonal + first + f) : broadcast(1.0f);
        Vec block[kLanes];
        for (int i = 0; i < kLanes; ++i) block[i] = load(from + (f + i) * x.feature + t);
        transpose(block);
        for (int i = 0; i < kLanes; ++i) store(row[i] + f, block[i] * d);
      }
    }
    for (i64 i = 0; i < count; ++i) {
      for (i64 g = f; g < known; ++g)
        row[i][g] = from[g * x.feature + (t + i) * x.position] * (diagonal ? diagonal[first + g] : 1.0f);
      for (i64 g = known; g < width; ++g) row[i][g] = 0.0f;
      if (transform) walsh_columns(row[i], 1, width);
    }
  }
}

// ---- one sample's gradient, tile by tile -------------------------------------------------------

// Transform a tile [rows of ko, ki], whose diagonals are already in, and add it to phi.
inline void add_transformed(float* tile, i64 rows, i64 ko, const Place& at) {
  walsh_columns(tile, rows, at.ki);
  if (rows == 1) {  // each row of the result is this one
    for (i64 r = 0; r < ko; ++r)
      for (i64 c = 0; c < at.ki; c += kLanes) add_vector(at, r, c, load(tile + c));
    return;
  }
  fill_zeros(tile + rows * at.ki, (ko - rows) * at.ki);
  walsh_rows(tile, ko, at.ki);
  for (i64 r = 0; r < ko; ++r)
    for (i64 c = 0; c < at.ki; c += kLanes) add_vector(at, r, c, load(tile + r * at.ki + c));
}

// slot: of row block i among the call's entry signs.
inline Place place(const Call& call, i64 slot, i64 i, i64 j, float* phi) {
  const TileMap& m = *call.map;
  return {phi, call.signs + (j * call.slots + slot) * (m.ko * m.ki / 8), m.ki, m.rho[j],
          m.gamma_columns[j] ^ m.gamma_rows[i]};
}

// Add one gradient, seen as [rows, C, P], or as rows of ki numbers.
// tile: room for one.
inline void add_gradient(const Call& call, const float* gradient, i64 size, float* tile,
                         float* phi) {
  const TileMap& m = *call.map;
  const i64 spacing = m.vector ? 1 : m.positions;
  const i64 row_size = m.vector ? m.ki : m.channels * m.positions;
  const bool together = !m.per_position;
  const i64 width_of_all = together ? row_size : m.channels;
  for (i64 j = 0; j < m.column_blocks; ++j) {
    const i64 p = together ? 0 : j / m.channel_blocks;
    const i64 first = (together ? j : j % m.channel_blocks) * m.ki;
    const float* sign = m.column_diagonal + first;
    for (i64 i = 0; i < m.row_blocks; ++i) {
      const i64 rows = smaller(m.ko, m.rows - i * m.ko);
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
          for (; c + kLanes <= width; c += kLanes)
            store(to + c, load(row + first + c) * (load(sign + c) * scale));
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

// ---- panels of the columns' factor ------------------------------------------------------------------

// Write [P * C, T]: what each kernel position sees of each channel.
inline void unfold(const Factors& f, const float* columns, i64 channels, float* to) {
  for (i64 kx = 0; kx < f.kernel[0]; ++kx)
    for (i64 ky = 0; ky < f.kernel[1]; ++ky)
      for (i64 kz = 0; kz < f.kernel[2]; ++kz)
        for (i64 c = 0; c < channels; ++c)
          for (i64 gx = 0; gx < f.grid[0]; ++gx)
            for (i64 gy = 0; gy < f.grid[1]; ++gy) {
              const i64 x = gx * f.stride[0] + kx * f.dilation[0] - f.padding[0];
              const i64 y = gy * f.stride[1] + ky * f.dilation[1] - f.padding[1];
              const bool row = x >= 0 && x < f.size[0] && y >= 0 && y < f.size[1];
              const float* from = columns + c * f.columns_channel;
              if (row) from += x * f.columns_axis[0] + y * f.columns_axis[1];
              for (i64 gz = 0; gz < f.grid[2]; ++gz) {
                const i64 z = gz * f.stride[2] + kz * f.dilation[2] - f.padding[2];
                *to++ = row && z >= 0 && z < f.size[2] ? from[z * f.columns_axis[2]] : 0.0f;
              }
            }
}


inline Source row_source(const Call& call, i64 b) {
  const Factors& f = *call.factors;
  return {f.rows + b * f.rows_batch, call.map->rows, call.positions, f.rows_feature,
          f.rows_position};
}

// Floats of the panels [channel_blocks, pixels, columns_ld], and of what unfold() writes.
inline i64 panel_size(const Call& call) {
  return call.map->channel_blocks * call.pixels * call.columns_ld;
}
inline i64 unfolded_size(const Call& call) {
  return call.together ? call.channels * call.positions : 0;
}

// pack() an input [features, n0, n1, n2] to its pixels; panel: zeros where no pixel lies.
inline void pack_image(const Call& call, const float* data, i64 features, i64 first, i64 width,
                       const float* diagonal, bool transform, float* panel) {
  const Factors& f = *call.factors;
  const i64 *n = f.size, *step = f.columns_axis;
  if (step[1] == n[2] * step[2] && step[0] == n[1] * step[1]) {
    pack({data, features, n[0] * n[1] * n[2], f.columns_channel, step[2]}, first, width, diagonal,
         transform, call.where, panel);
    return;
  }
  const i64* where = call.where;
  for (i64 i = 0; i < n[0]; ++i)
    for (i64 j = 0; j < n[1]; ++j, where += n[2])
      pack({data + i * step[0] + j * step[1], features, n[2], f.columns_channel, step[2]}, first,
           width, diagonal, transform, where, panel);
}

// Write the panels of sample b; unfolded: room for unfolded_size().
inline void pack_columns(const Call& call, i64 b, float* unfolded, float* panels) {
  const Factors& f = *call.factors;
  const TileMap& m = *call.map;
  const float* data = f.columns + b * f.columns_batch;
  if (call.together) unfold(f, data, m.channels, unfolded);
  for (i64 block = 0; block < m.channel_blocks; ++block) {
    float* panel = panels + block * call.pixels * call.columns_ld;
    if (call.together) {
      pack({unfolded, call.channels, call.positions, call.positions, 1}, block * m.ki,
           call.columns_ld, m.column_diagonal, !call.late, nullptr, panel);
    } else {
      if (call.padded) fill_zeros(panel, call.pixels * call.columns_ld);
      pack_image(call, data, m.channels, block * m.ki, call.columns_ld, m.column_diagonal,
                 !call.late, panel);
    }
  }
}

// The panels of a product over chunks [chunk, end) of positions, in column block j.
inline Panels panels_of(const Call& call, const float* rows, i64 lda, const float* columns, i64 j,
                        i64 chunk, i64 end) {
  const i64 blocks = call.map->channel_blocks;
  const i64 offset = call.together ? 0 : call.offsets[j / blocks];
  return {rows + call.chunks[chunk].position * lda,
          lda,
          columns + (j % blocks * call.pixels + offset) * call.columns_ld,
          call.columns_ld,
          call.step,
          call.segments + call.chunks[chunk].segment,
          call.segments + call.chunks[end].segment};
}

// ---- factors -----------------------------------------------------------------------------------

// Some row blocks at a time, so that their panels stay in L2.
inline void add_early(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 block_size = call.positions * m.ko;
  const i64 blocks = larger(1, smaller(m.row_blocks, kPanelFloats / block_size));
  float* columns = scratch(panel_size(call) + unfolded_size(call) + blocks * block_size);
  float* rows = columns + panel_size(call);
  pack_columns(call, b, rows + blocks * block_size, columns);
  const Source source = row_source(call, b);
  for (i64 first = 0; first < m.row_blocks; first += blocks) {
    const i64 end = smaller(m.row_blocks, first + blocks);
    for (i64 i = first; i < end; ++i)
      pack(source, i * m.ko, m.ko, call.diagonal, true, nullptr,
           rows + (i - first) * block_size);
    for (i64 chunk = 0; chunk < call.chunk_count; ++chunk)
      for (i64 j = 0; j < m.column_blocks; ++j)
        for (i64 i = first; i < end; ++i) {
          const Place at = place(call, i, i, j, phi);
          const float* panel = rows + (i - first) * block_size;
          product_tile(panels_of(call, panel, m.ko, columns, j, chunk, chunk + 1), m.ko, m.ki,
                       [&](i64 row, i64 column, Vec x) { add_vector(at, row, column, x); });
        }
  }
}

inline void add_late(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 lda = m.ko < 4 ? m.ko : round_up(smaller(m.ko, m.rows), 4);
  const i64 rows_size = call.positions * lda;
  float* columns =
      scratch(panel_size(call) + unfolded_size(call) + m.ko * m.ki + rows_size);
  float* tile = columns + panel_size(call);
  float* rows = tile + m.ko * m.ki;
  pack_columns(call, b, rows + rows_size, columns);
  const Source source = row_source(call, b);
  for (i64 i = 0; i < m.row_blocks; ++i) {
    const i64 known = smaller(m.ko, m.rows - i * m.ko);
    pack(source, i * m.ko, lda, call.diagonal, false, nullptr, rows);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const i64 width = smaller(m.ki, call.channels - j % m.channel_blocks * m.ki);
      const i64 vectors = round_up(width, kLanes);
      if (vectors < m.ki)
        fill_zeros(tile, m.ko * m.ki);
      product_tile(panels_of(call, rows, lda, columns, j, 0, call.chunk_count),
                   m.ko < 4 ? m.ko : round_up(known, 4), vectors,
                   [&](i64 row, i64 column, Vec x) { store(tile + row * m.ki + column, x); });
      add_transformed(tile, known, m.ko, place(call, i, i, j, phi));
    }
  }
}

// phi[r, c] += sum over J of +-rows[r ^ rho] * columns[c ^ 8 shift], for rows [first, first + Rows).
template <int Rows, int Vectors>
inline void add_outer(const Call& call, i64 i, const float* rows, const float* columns, i64 first,
                      float* phi) {
  const TileMap& m = *call.map;
  for (i64 column = 0; column < m.ki; column += Vectors * kLanes) {
    Vec sum[Rows][Vectors];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v)
        sum[r][v] = load(phi + (first + r) * m.ki + column + v * kLanes);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const float* b = columns + j * m.ki + column;
      const std::uint8_t* bits = place(call, i, i, j, phi).signs + first * (m.ki / 8);
      Vec x[Vectors];
      for (int v = 0; v < Vectors; ++v) x[v] = load(b + v * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const Vec y = broadcast(rows[(first + r) ^ m.rho[j]]);
        for (int v = 0; v < Vectors; ++v)
          sum[r][v] = fma(y, flip(x[v], bits + r * (m.ki / 8), column + v * kLanes), sum[r][v]);
      }
    }
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < Vectors; ++v)
        store(phi + (first + r) * m.ki + column + v * kLanes, sum[r][v]);
  }
}

// One position: phi stays in registers over all column blocks.
inline void add_rank_one(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 moved_size = m.column_blocks * m.ki;
  float* columns = scratch(panel_size(call) + unfolded_size(call) + moved_size + m.ko);
  float* moved = columns + panel_size(call);
  float* rows = moved + moved_size;
  pack_columns(call, b, rows + m.ko, columns);
  const Source source = row_source(call, b);
  for (i64 i = 0; i < m.row_blocks; ++i) {
    pack(source, i * m.ko, m.ko, call.diagonal, true, nullptr, rows);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const float* from = panels_of(call, rows, m.ko, columns, j, 0, 1).columns;
      const i64 shift = m.gamma_columns[j] ^ m.gamma_rows[i];
      for (i64 group = 0; group < m.ki / kGroup; ++group)
        std::memcpy(moved + j * m.ki + group * kGroup, from + (group ^ shift) * kGroup,
                    kGroup * sizeof(float));
    }
    constexpr int kWide = kLanes == 16 ? 4 : 2;
    i64 r = 0;
    if (m.ki % (kWide * kLanes) == 0) {
      for (; r + 4 <= m.ko; r += 4) add_outer<4, kWide>(call, i, rows, moved, r, phi);
    } else {
      for (; r + 4 <= m.ko; r += 4) add_outer<4, 1>(call, i, rows, moved, r, phi);
    }
    for (; r < m.ko; ++r) add_outer<1, 1>(call, i, rows, moved, r, phi);
  }
}

// A convolution in groups: one sample's gradient [O, C, P] at a time, then its transform.
inline void add_grouped(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const Factors& f = *call.factors;
  const i64 t = call.positions, size = m.rows * m.channels * m.positions;
  const i64 members = m.rows / f.groups, lda = round_up(members, 4);
  const i64 ldb = round_up(m.channels, kLanes), pixels = call.pixels;
  float* gradient = scratch(size + m.ko * m.ki + t * lda + pixels * ldb);
  float* tile = gradient + size;
  float* rows = tile + m.ko * m.ki;
  float* columns = rows + t * lda;
  fill_zeros(columns, pixels * ldb);
  for (i64 g = 0; g < f.groups; ++g) {
    Source left = row_source(call, b);
    left.data += g * members * left.feature;
    left.features = members;
    pack(left, 0, lda, nullptr, false, nullptr, rows);
    pack_image(call, f.columns + b * f.columns_batch + g * m.channels * f.columns_channel, m.channels,
               0, ldb, nullptr, false, columns);
    for (i64 p = 0; p < m.positions; ++p) {
          const Panels panels{rows, lda,       columns + call.offsets[p] * ldb,
                          ldb,  call.step, call.segments,
                          call.segments + call.chunks[call.chunk_count].segment};
      product_tile(panels, lda, ldb, [&](i64 row, i64 column, Vec x) {
        float lanes[kLanes];
        store(lanes, x);
        for (i64 c = column; row < members && c < smaller(m.channels, column + kLanes); ++c)
          gradient[((g * members + row) * m.channels + c) * m.positions + p] = lanes[c - column];
      });
    }
  }
  add_gradient(call, gradient, size, tile, phi);
}

// ---- one sample --------------------------------------------------------------------------------

void factors_sample(const Call& call, i64 b, float* phi) {
  if (call.factors->groups > 1) add_grouped(call, b, phi);
  else if (call.positions == 1) add_rank_one(call, b, phi);
  else if (call.late) add_late(call, b, phi);
  else add_early(call, b, phi);
}

void gradient_sample(const Call& call, const float* gradient, i64 size, float* phi) {
  add_gradient(call, gradient, size, scratch(call.map->ko * call.map->ki), phi);
}

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

constexpr HadamardKernels kHadamardKernels{factors_sample, gradient_sample, lookup_sample};

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
