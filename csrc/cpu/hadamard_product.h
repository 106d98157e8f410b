// Products of two panels over positions, in registers.
#pragma once

#include "arithmetic.h"
#include "hadamard_call.h"
#include "simd.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

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

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
