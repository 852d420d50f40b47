// Kernel of fill.cuh.
#include "fill.cuh"

using namespace saccade::cuda;

extern "C" __global__ void __launch_bounds__(FILL_THREADS) saccade_fill(const FillParams params) {
    __shared__ FillShared shared;
    fill_block(params, this_block(), shared, EachThread{});
}
