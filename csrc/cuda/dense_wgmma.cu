// Dense projections with wgmma: Hopper.
//
// One warpgroup, the producer, reads G, converts it and stores it as wgmma reads it, together with
// the words of the signs; two others, 128 output dimensions each, make signs of the words in
// registers while the tensor cores multiply those made before.
#include "dense_load.cuh"
#include "wgmma.cuh"

namespace pntk::cuda {

template <Precision precision_, int batch>
struct DenseWgmmaTraits {
  static constexpr Precision precision = precision_;
  // Samples of a block. With 128, tensor cores take 64 cycles for signs that take 40 to make; with
  // 64, for small batches, half of a block of 128 would be zeros.
  static constexpr int kBatch = batch;
  static constexpr int kWarpgroup = 128;
  static constexpr int kConsumers = 2;  // warpgroups; one multiplies while the other waits
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers);
  // Registers of 384 threads come in units of 168; a producer thread holds up to 64 numbers of G,
  // a consumer thread 128 accumulators. (128 x 120 + 256 x 192 = 384 x 168)
  static constexpr int kProducerRegisters = 120, kConsumerRegisters = 192;
  static constexpr int kTiles = 2;  // of 64 output dimensions a consumer
  // Steps of 32 bytes in the 128 of a swizzled row.
  static constexpr int kSteps = kSwizzleRow / 32;
  static constexpr int kCoordinates = kSwizzleRow / kBytes<precision>;
  static constexpr int kGroups = kCoordinates / kGroup;
  static constexpr int kStepsOfGroup = kSteps / kGroups;
  static constexpr int kPlaneBytes = batch * kSwizzleRow;
  static constexpr int kTileBytes = kPlanes<precision> * kPlaneBytes;
  static constexpr int kWords = kGroups * kDenseRows;
  // Stages of up to 64 KiB together: beside the sums they leave no room for more.
  static constexpr int kStages = kTileBytes > 16 * 1024 ? 2 : 4;
  // Sums in float32 (see kSumCoordinates) are in shared memory: beside accumulators of 128 x 128
  // there are no registers for them. Slots of a thread are 16 bytes, those of a warp side by side.
  static constexpr int kSlots = kTiles * (batch / 2) / 4;
  static constexpr int kSumBytes = kSlots * kConsumers * kWarpgroup * 16;
  static constexpr int kChunksOfSum = kSumCoordinates<precision> / kCoordinates;
  static constexpr int kShared = kStages * (kTileBytes + kWords * 4) + kSumBytes;
  static_assert(kShared <= 227 * 1024 && kPlaneBytes % kSwizzleBlock == 0);
  static_assert((1 + kConsumers) * kStages < 16);  // named barriers; 0 is that of __syncthreads
};

namespace {

#if PNTK_HAS_WGMMA

// Barriers of a stage: empty, on which the producer waits, and full, on which a consumer does: one
// each, so that one consumer multiplies while the other makes signs.
template <typename Traits>
struct Stage {
  int index;
  unsigned char* tile;
  std::uint32_t* words;

  __device__ __forceinline__ Stage(unsigned char* shared, std::int64_t chunk)
      : index(static_cast<int>(chunk % Traits::kStages)),
        tile(shared + index * Traits::kTileBytes),
        words(reinterpret_cast<std::uint32_t*>(shared + Traits::kStages * Traits::kTileBytes) +
              index * Traits::kWords) {}
  __device__ __forceinline__ int empty() const { return 1 + index; }
  __device__ __forceinline__ int full(int consumer) const {
    return 1 + Traits::kStages * (1 + consumer) + index;
  }
};

template <typename Traits>
__device__ __forceinline__ void produce(const DenseTask& task, unsigned char* shared,
                                        int thread) {
  const DensePlace place = dense_place(task, Traits::kBatch);
  DenseTile<Traits::precision, Traits::kBatch, Traits::kCoordinates, Traits::kWarpgroup> next;
  const auto load = [&](std::int64_t chunk) {
    next.load(task, place.sample, (place.chunk + chunk) * Traits::kCoordinates, thread);
  };
  if (place.chunks > 0) load(0);
  for (std::int64_t chunk = 0; chunk < place.chunks; ++chunk) {
    const Stage<Traits> stage(shared, chunk);
    if (chunk >= Traits::kStages) named_barrier_sync(stage.empty(), Traits::kThreads);
    next.store(stage.tile, Traits::kPlaneBytes, thread, swizzled_offset);
    fence_proxy_async();
    // under way while this chunk's words are made
    if (chunk + 1 < place.chunks) load(chunk + 1);
    make_words<Traits::kGroups, Traits::kWarpgroup>(
        task, place, (place.chunk + chunk) * Traits::kGroups, stage.words, thread);
    PNTK_UNROLL
    for (int consumer = 0; consumer < Traits::kConsumers; ++consumer)
      named_barrier_arrive(stage.full(consumer), 2 * Traits::kWarpgroup);
  }
}

template <typename Traits>
using Accumulators = float[Traits::kTiles][Traits::kBatch / 2];

// The A registers of one step, of both tiles: words are those of rows g and g + 8 of each.
template <typename Traits>
using Signs = std::uint32_t[Traits::kTiles][4];
template <typename Traits>
using Words = std::uint32_t[Traits::kGroups][Traits::kTiles][2];

template <typename Traits>
__device__ __forceinline__ void make_signs_of_step(Signs<Traits>& a, const Words<Traits>& words,
                                                   int step) {
  const auto& of_group = words[step / Traits::kStepsOfGroup];
  PNTK_UNROLL
  for (int m = 0; m < Traits::kTiles; ++m)
    make_signs<Traits::precision>(a[m], of_group[m][0], of_group[m][1],
                                  step % Traits::kStepsOfGroup);
}

template <typename Traits>
__device__ __forceinline__ void multiply_step(Accumulators<Traits>& d, Signs<Traits>& a,
                                              const unsigned char* tile, int step) {
  PNTK_UNROLL
  for (int m = 0; m < Traits::kTiles; ++m) pin(a[m]);
  wgmma_fence();
  PNTK_UNROLL
  for (int m = 0; m < Traits::kTiles; ++m) {
    PNTK_UNROLL
    for (int plane = 0; plane < kPlanes<Traits::precision>; ++plane) {
      const std::uint64_t b = swizzled_descriptor(tile + plane * Traits::kPlaneBytes + 32 * step);
      if constexpr (Traits::precision == Precision::kTf32)
        wgmma_tf32<Traits::kBatch>(d[m], a[m], b);
      else
        wgmma_bf16<Traits::kBatch>(d[m], a[m], b);
    }
  }
  wgmma_commit();
}

// Signs of the next step are made while this one is multiplied. Two sets of them take turns: those
// of step i - 1 are read until step i - 1 is done.
template <typename Traits>
__device__ __forceinline__ void multiply_chunk(Accumulators<Traits>& d, const Stage<Traits>& stage,
                                               int row, int lane) {
  Words<Traits> words;
  PNTK_UNROLL
  for (int i = 0; i < Traits::kGroups * Traits::kTiles * 2; ++i) {
    const int group = i / (2 * Traits::kTiles), m = i / 2 % Traits::kTiles, high = i % 2;
    words[group][m][high] = stage.words[group * kDenseRows + row + 64 * m + 8 * high] >>
                            dense_shift<Traits::precision>(lane);
  }
  Signs<Traits> a[2];
  make_signs_of_step<Traits>(a[0], words, 0);
  PNTK_UNROLL
  for (int m = 0; m < Traits::kTiles; ++m) pin(d[m]);
  PNTK_UNROLL
  for (int step = 0; step < Traits::kSteps; ++step) {
    multiply_step<Traits>(d, a[step % 2], stage.tile, step);
    if (step + 1 == Traits::kSteps) break;
    wgmma_wait<1>();
    make_signs_of_step<Traits>(a[(step + 1) % 2], words, step + 1);
  }
  wgmma_wait<0>();
  PNTK_UNROLL
  for (int m = 0; m < Traits::kTiles; ++m) pin(d[m]);
}

// sums[i] of this thread += d, or = d the first time; then d = sums or zero.
template <typename Traits>
__device__ __forceinline__ void add_up(Accumulators<Traits>& d, float4* sums, bool first,
                                       bool last) {
  constexpr int kOfTile = Traits::kSlots / Traits::kTiles;
  PNTK_UNROLL
  for (int i = 0; i < Traits::kSlots; ++i) {
    float* const part = d[i / kOfTile] + i % kOfTile * 4;
    float4* const slot = sums + i * Traits::kConsumers * Traits::kWarpgroup;
    const float4 before = first ? make_float4(0, 0, 0, 0) : *slot;
    const float4 sum = make_float4(before.x + part[0], before.y + part[1], before.z + part[2],
                                   before.w + part[3]);
    if (!last) *slot = sum;
    part[0] = last ? sum.x : 0.0f, part[1] = last ? sum.y : 0.0f;
    part[2] = last ? sum.z : 0.0f, part[3] = last ? sum.w : 0.0f;
  }
}

template <typename Traits>
__device__ __forceinline__ void consume(const DenseTask& task, unsigned char* shared,
                                        int thread) {
  const DensePlace place = dense_place(task, Traits::kBatch);
  const int lane = thread % 32, warp = thread / 32 % 4;
  // Warp w of a warpgroup holds rows 16 w to 16 w + 15 of each tile.
  const int row = thread / Traits::kWarpgroup * 64 * Traits::kTiles + 16 * warp + lane / 4;
  const auto sums =
      reinterpret_cast<float4*>(shared + Traits::kShared - Traits::kSumBytes) + thread;
  Accumulators<Traits> d = {};
  int unsummed = 0;
  bool first = true;
  for (std::int64_t chunk = 0; chunk < place.chunks; ++chunk) {
    const Stage<Traits> stage(shared, chunk);
    named_barrier_sync(stage.full(thread / Traits::kWarpgroup), 2 * Traits::kWarpgroup);
    multiply_chunk<Traits>(d, stage, row, lane);
    if (chunk + Traits::kStages < place.chunks)  // else nobody waits
      named_barrier_arrive(stage.empty(), Traits::kThreads);
    if (++unsummed < Traits::kChunksOfSum) continue;
    add_up<Traits>(d, sums, first, false);
    unsummed = 0, first = false;
  }
  add_up<Traits>(d, sums, first, true);
  PNTK_UNROLL
  for (int m = 0; m < Traits::kTiles; ++m)
    store_tile<Traits::kBatch>(task, place, row + 64 * m, lane % 4 * 2,
                               [&](int i) { return d[m][i]; });
}

#endif

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    dense_wgmma_kernel(const __grid_constant__ DenseTask task) {
#if PNTK_HAS_WGMMA
  PNTK_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x) - Traits::kWarpgroup;
  if (thread < 0) {
    lower_registers<Traits::kProducerRegisters>();
    produce<Traits>(task, shared, thread + Traits::kWarpgroup);
  } else {
    raise_registers<Traits::kConsumerRegisters>();
    consume<Traits>(task, shared, thread);
  }
#else
  __trap();  // built without sm_90a; results that nobody wrote must not pass for numbers
#endif
}

template <Precision precision, int batch>
void launch_dense(const Dense& d, cudaStream_t stream) {
  using Traits = DenseWgmmaTraits<precision, batch>;
  const DenseTask task = dense_task(d, Traits::kBatch, Traits::kCoordinates);
  launch("dense_wgmma", dense_wgmma_kernel<Traits>, dense_grid(task), dim3(Traits::kThreads),
         Traits::kShared, stream, task);
}

// Both sizes add up a sample's products in the same order.
template <Precision precision>
void launch_dense(const Dense& d, cudaStream_t stream) {
  if (d.batch <= 64)
    launch_dense<precision, 64>(d, stream);
  else
    launch_dense<precision, 128>(d, stream);
}

}  // namespace

void dense_wgmma(const Dense& d, cudaStream_t stream) {
  switch (d.precision) {
    case Precision::kSplit: return launch_dense<Precision::kSplit>(d, stream);
    case Precision::kTf32: return launch_dense<Precision::kTf32>(d, stream);
    case Precision::kBfloat16: return launch_dense<Precision::kBfloat16>(d, stream);
  }
}

}  // namespace pntk::cuda
