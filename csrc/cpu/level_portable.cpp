#define PNTK_LEVEL portable
#include "hadamard_kernels.h"
#include "levels.h"
#include "philox_kernels.h"

namespace pntk {

const Level kPortable{"portable", portable::kLanes, nullptr, portable::philox_batch, portable::kHadamardKernels};

}  // namespace pntk
