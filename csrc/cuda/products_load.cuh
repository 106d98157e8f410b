// Copies of factors to shared memory: rows of 64 numbers whose eight 16-byte vectors are swizzled,
// vector v of row r in place v ^ (r % 8), so that ldmatrix meets every bank once.
#pragma once

#include "products_plan.cuh"

namespace pntk::cuda {

__device__ __forceinline__ int swizzled(int row, int vector) {
  return row * 128 + ((vector ^ (row & 7)) << 4);
}

template <typename T>
class ProductLoader {
 public:
  __device__ ProductLoader(const ProductPlan& plan, const ProductShare& share,
                           unsigned char* left, unsigned char* right)
      : plan_(plan),
        share_(share),
        at_(plan, share),
        left_(left),
        right_(right),
        left_factor_(bytes_of(plan.left + share.sample * plan.left_sample)),
        right_factor_(bytes_of(plan.right + share.sample * plan.right_sample)) {}

  // Issue the copies of the next step, or none after the last.
  __device__ void next() {
    if (at_.done(share_)) return;
    if (at_.starts_chunk(share_)) locate();
    if (at_.starts_chunk(share_) || plan_.row_halves > 1) {
      load_left(left_ + slot_ * T::kLeftBytes);
      if (++slot_ == plan_.left_slots) slot_ = 0;
    }
    if (at_.position != position_) move();
    load_right(right_ + stage_ * T::kRightBytes);
    if (++stage_ == T::kStages) stage_ = 0;
    at_.advance(plan_, share_, T::kRows / kTile);
  }

 private:
  static __device__ const unsigned char* bytes_of(const bf16* at) {
    return reinterpret_cast<const unsigned char*>(at);
  }

  // a thread copies one of the eight vectors of every kStep-th row
  static constexpr int kStep = T::kThreads / 8, kMine = T::kChunk / kStep;

  __device__ int padded_count() const {  // of positions in this chunk, in steps of 16
    const int left = plan_.positions - at_.chunk * T::kChunk;
    return left >= T::kChunk ? T::kChunk : (left + 15) & ~15;
  }

  // Find the first pixel that the windows of this thread's positions see, padding included.
  __device__ void locate() {
    const ProductPlan& p = plan_;
    PNTK_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int t = at_.chunk * T::kChunk + static_cast<int>(threadIdx.x) / 8 + i * kStep;
      const int line = t / p.grid[2], plane = line / p.grid[1];
      corner_[i][0] = plane * p.stride[0] - p.padding[0];
      corner_[i][1] = (line - plane * p.grid[1]) * p.stride[1] - p.padding[1];
      corner_[i][2] = (t - line * p.grid[2]) * p.stride[2] - p.padding[2];
      if (t >= p.positions) corner_[i][2] = -(1 << 30);  // outside of every image
    }
  }

  // Find how far the kernel position lies from the first.
  __device__ void move() {
    const bool next = position_ >= 0 && at_.position == position_ + 1;
    int rest = position_ = at_.position;
    if (next) {  // divisions would take as long as the copies
      PNTK_UNROLL
      for (int a = 2; a >= 0; --a) {
        offset_[a] += plan_.dilation[a];
        if (offset_[a] < plan_.kernel[a] * plan_.dilation[a]) return;
        offset_[a] = 0;
      }
      return;
    }
    PNTK_UNROLL
    for (int a = 2; a >= 0; --a) {
      const int quotient = rest / plan_.kernel[a];
      offset_[a] = (rest - quotient * plan_.kernel[a]) * plan_.dilation[a];
      rest = quotient;
    }
  }

  __device__ void load_left(unsigned char* to) const {
    const ProductPlan& p = plan_;
    const int vector = threadIdx.x % 8;
    if (8 * vector >= padded_count()) return;
    int row0, end;
    if (p.row_halves > 1) {
      const int rho = __ldg(p.rho + column_block<T>(p, at_, 0));
      row0 = at_.unit * p.ko + kTile * (share_.high_row ^ (rho / kTile));
      end = row0 + kTile;
    } else {
      row0 = at_.unit * kTile;
      end = share_.unit_end * kTile;
    }
    const int position = at_.chunk * T::kChunk + 8 * vector;
    const bool inside = position < p.padded_positions;
    const unsigned char* from = left_factor_ + 2u * static_cast<unsigned>(inside ? position : 0);
    const unsigned row_bytes = 2u * static_cast<unsigned>(p.padded_positions);
    PNTK_UNROLL
    for (int r = threadIdx.x / 8; r < T::kRows; r += kStep) {
      const bool valid = inside && row0 + r < end;
      const unsigned char* row =
          from + std::uint64_t{static_cast<unsigned>(valid ? row0 + r : 0)} * row_bytes;
      PNTK_UNROLL
      for (int n = 0; n < T::kPlanes; ++n)
        cp_async16(to + n * T::kLeftPlane + swizzled(r, vector), row + 2 * n * p.left_plane, valid);
    }
  }

  __device__ void load_right(unsigned char* to) const {
    const ProductPlan& p = plan_;
    const int vector = threadIdx.x % 8, count = padded_count();
    const int channel = (p.column_halves > 1 ? wide_channel() : at_.macro * kTile) + 8 * vector;
    const unsigned char* from = right_factor_ + 2u * static_cast<unsigned>(channel);
    const unsigned pixel_bytes = 2u * static_cast<unsigned>(p.padded_channels);
    PNTK_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int t = static_cast<int>(threadIdx.x) / 8 + i * kStep;
      if (t >= count) break;
      const int z = corner_[i][0] + offset_[0], y = corner_[i][1] + offset_[1],
                x = corner_[i][2] + offset_[2];
      const bool valid = inside(z, p.size[0]) && inside(y, p.size[1]) && inside(x, p.size[2]);
      const unsigned pixel = valid ? (z * p.size[1] + y) * p.size[2] + x : 0;
      const unsigned char* row = from + std::uint64_t{pixel} * pixel_bytes;
      PNTK_UNROLL
      for (int n = 0; n < T::kPlanes; ++n)
        cp_async16(to + n * T::kRightPlane + swizzled(t, vector), row + 2 * n * p.right_plane,
                   valid);
    }
  }

  __device__ static bool inside(int at, int size) {
    return static_cast<unsigned>(at) < static_cast<unsigned>(size);
  }

  // Where ki is larger than a tile, the shifts' high bits choose 64 of a column block's channels;
  // ko is no smaller then, so that a unit is one row block.
  __device__ int wide_channel() const {
    const int gamma = __ldg(plan_.gamma_columns + column_block<T>(plan_, at_, 0)) ^
                      __ldg(plan_.gamma_rows + at_.unit);
    return at_.macro * plan_.ki + kTile * (share_.high_column ^ (gamma / 8));
  }

  const ProductPlan& plan_;
  const ProductShare& share_;
  ProductWalk at_;
  unsigned char *left_, *right_;
  const unsigned char *left_factor_, *right_factor_;  // of the sample
  int corner_[kMine][3];
  int offset_[3], position_ = -1;
  int slot_ = 0, stage_ = 0;
};

}  // namespace pntk::cuda
