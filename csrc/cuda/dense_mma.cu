// Dense projections with mma.sync: every device from sm_80 on.
//
// While a chunk of coordinates is multiplied, the next one is on its way into registers; it is
// converted into the other of two buffers, together with the words of its signs.
#include "dense_load.cuh"
#include "ptx.cuh"

namespace pntk::cuda {
namespace {

template <Precision precision>
struct DenseMmaTraits {
  static constexpr int kThreads = 256;  // 8 warps of 32 output dimensions each
  static constexpr int kWarpRows = 32;
  // Samples of a block: accumulators of 32 x 64 a warp are 64 registers a thread, their sums 64
  // more, and the next chunk 32; the kernel has up to 255.
  static constexpr int kBatch = 64;
  // A row of a sample: 8 steps, so that every thread makes at most one Philox block a chunk, and
  // two buffers of two planes (72 KiB with the words) fit into the 99 KiB of the small devices.
  static constexpr int kRowBytes = 256;
  static constexpr int kBuffers = 2;
  static constexpr int kSteps = kRowBytes / 32;
  static constexpr int kCoordinates = kRowBytes / kBytes<precision>;
  static constexpr int kGroups = kCoordinates / kGroup;
  static constexpr int kStepsOfGroup = kSteps / kGroups;
  static constexpr int kPlaneBytes = kBatch * kRowBytes;
  static constexpr int kTileBytes = kPlanes<precision> * kPlaneBytes;
  static constexpr int kWords = kGroups * kDenseRows;
  static constexpr int kShared = kBuffers * (kTileBytes + kWords * 4);
  static constexpr int kChunksOfSum = kSumCoordinates<precision> / kCoordinates;
};

// Units of 16 bytes are XORed with the sample, so that the eight rows of a matrix lie in different
// banks.
struct XorPlace {
  __device__ __forceinline__ int operator()(int sample, int byte) const {
    return sample * DenseMmaTraits<Precision::kSplit>::kRowBytes + (byte ^ (sample & 7) << 4);
  }
};

using Accumulators = float[2][8][4];  // [16 rows][8 samples] tiles of a warp, as mma has them

template <Precision precision>
__device__ __forceinline__ void multiply_chunk(const unsigned char* tile,
                                               const std::uint32_t* words, Accumulators& d) {
  using Traits = DenseMmaTraits<precision>;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  // ldmatrix: matrices of 8 samples x 16 bytes; the second one a unit on, the third 8 samples on
  const int sample = lane % 8 + lane / 16 * 8, unit = lane / 8 % 2;
  words += warp * Traits::kWarpRows + lane / 4;
  PNTK_UNROLL
  for (int group = 0; group < Traits::kGroups; ++group, words += kDenseRows) {
    std::uint32_t word[2][2];
    PNTK_UNROLL
    for (int i = 0; i < 4; ++i) word[i / 2][i % 2] = words[8 * i] >> dense_shift<precision>(lane);
    PNTK_UNROLL
    for (int part = 0; part < Traits::kStepsOfGroup; ++part) {
      const int step = group * Traits::kStepsOfGroup + part;
      std::uint32_t a[2][4];
      PNTK_UNROLL
      for (int m = 0; m < 2; ++m) make_signs<precision>(a[m], word[m][0], word[m][1], part);
      PNTK_UNROLL
      for (int plane = 0; plane < kPlanes<precision>; ++plane) {
        PNTK_UNROLL
        for (int pair = 0; pair < 4; ++pair) {
          std::uint32_t b[4];
          ldmatrix_x4(b, tile + plane * Traits::kPlaneBytes +
                             XorPlace()(16 * pair + sample, 32 * step + 16 * unit));
          PNTK_UNROLL
          for (int i = 0; i < 4; ++i) {
            float(&to)[4] = d[i / 2][2 * pair + i % 2];
            if constexpr (precision == Precision::kTf32)
              mma_tf32(to, a[i / 2], b[2 * (i % 2)], b[2 * (i % 2) + 1]);
            else
              mma_bf16(to, a[i / 2], b[2 * (i % 2)], b[2 * (i % 2) + 1]);
          }
        }
      }
    }
  }
}

__device__ __forceinline__ void add_up(Accumulators& sums, Accumulators& d) {
  PNTK_UNROLL
  for (int i = 0; i < 64; ++i) {
    sums[i / 32][i / 4 % 8][i % 4] += d[i / 32][i / 4 % 8][i % 4];
    d[i / 32][i / 4 % 8][i % 4] = 0;
  }
}

template <Precision precision>
__global__ void __launch_bounds__(DenseMmaTraits<precision>::kThreads, 1)
    dense_mma_kernel(const __grid_constant__ DenseTask task) {
  using Traits = DenseMmaTraits<precision>;
  PNTK_DYNAMIC_SHARED(shared);
  const auto words =
      reinterpret_cast<std::uint32_t*>(shared + Traits::kBuffers * Traits::kTileBytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const DensePlace place = dense_place(task, Traits::kBatch);
  DenseTile<precision, Traits::kBatch, Traits::kCoordinates, Traits::kThreads> next;
  Accumulators d = {}, sums = {};
  const auto load = [&](std::int64_t chunk) {
    next.load(task, place.sample, (place.chunk + chunk) * Traits::kCoordinates, thread);
  };
  if (place.chunks > 0) load(0);
  int unsummed = 0;
  for (std::int64_t chunk = 0; chunk < place.chunks; ++chunk) {
    const int buffer = static_cast<int>(chunk % Traits::kBuffers);
    unsigned char* const tile = shared + buffer * Traits::kTileBytes;
    std::uint32_t* const signs = words + buffer * Traits::kWords;
    next.store(tile, Traits::kPlaneBytes, thread, XorPlace());
    make_words<Traits::kGroups, Traits::kThreads>(
        task, place, (place.chunk + chunk) * Traits::kGroups, signs, thread);
    // One barrier a chunk: who stores into this buffer again has passed the barrier of the next
    // chunk, and so have all that read it now.
    __syncthreads();
    if (chunk + 1 < place.chunks) load(chunk + 1);
    multiply_chunk<precision>(tile, signs, d);
    if (++unsummed == Traits::kChunksOfSum) add_up(sums, d), unsummed = 0;
  }
  add_up(sums, d);
  PNTK_UNROLL
  for (int m = 0; m < 2; ++m)
    store_tile<Traits::kBatch>(task, place, warp * Traits::kWarpRows + 16 * m + lane / 4,
                               lane % 4 * 2, [&](int i) { return sums[m][i / 4][i % 4]; });
}

template <Precision precision>
void launch_dense(const Dense& d, cudaStream_t stream) {
  using Traits = DenseMmaTraits<precision>;
  const DenseTask task = dense_task(d, Traits::kBatch, Traits::kCoordinates);
  launch("dense_mma", dense_mma_kernel<precision>, dense_grid(task), dim3(Traits::kThreads),
         Traits::kShared, stream, task);
}

}  // namespace

void dense_mma(const Dense& d, cudaStream_t stream) {
  switch (d.precision) {
    case Precision::kSplit: return launch_dense<Precision::kSplit>(d, stream);
    case Precision::kTf32: return launch_dense<Precision::kTf32>(d, stream);
    case Precision::kBfloat16: return launch_dense<Precision::kBfloat16>(d, stream);
  }
}

}  // namespace pntk::cuda
