// Kernels of gather.cuh.
#include "gather.cuh"

using namespace saccade::cuda;

extern "C" __global__ void __launch_bounds__(GATHER_THREADS) saccade_gather_32bit(const GatherParams params) {
    gather<std::uint32_t>(params, this_block(), static_cast<int>(threadIdx.x));
}

extern "C" __global__ void __launch_bounds__(GATHER_THREADS) saccade_gather_16bit(const GatherParams params) {
    gather<std::uint16_t>(params, this_block(), static_cast<int>(threadIdx.x));
}
