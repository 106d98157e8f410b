#define PNTK_LEVEL portable
#define PNTK_LANES 4
#include "dense_kernels.h"
#include "hadamard_kernels.h"
#include "levels.h"
#include "philox_kernels.h"
#include "sums_kernels.h"

namespace pntk {

const Level kPortable{"portable", portable::kLanes, nullptr, portable::philox_batch,
                      portable::kHadamardKernels, portable::dense::kKernels,
                      portable::norm_sums_sample};

}  // namespace pntk
