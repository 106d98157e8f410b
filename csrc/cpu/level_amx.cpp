// AMX has tiles for the dense projections; all else of its level is AVX-512's, put together in
// levels.cpp. A compiler without AMX leaves the kernels out.
#define PNTK_LEVEL amx
#define PNTK_LANES 16
#include "levels.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__GFNI__)
#include "dense_amx.h"

namespace pntk {

const DenseKernels kAmxDense = amx::dense::kTileKernels<amx::dense::Tiles>;
const DenseKernels kAmxEmulatedDense = amx::dense::kTileKernels<amx::dense::EmulatedTiles>;

}  // namespace pntk

#else

namespace pntk {

const DenseKernels kAmxDense{};
const DenseKernels kAmxEmulatedDense{};

}  // namespace pntk

#endif
