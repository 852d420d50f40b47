// Kernels of select.cuh.
#include "select.cuh"

using namespace saccade::cuda;

extern "C" __global__ void __launch_bounds__(RESIZE_THREADS) saccade_resize_scores(const SelectParams params) {
    resize_score(params, this_block(), static_cast<int>(threadIdx.x));
}

extern "C" __global__ void __launch_bounds__(RANK_THREADS) saccade_rank(const SelectParams params) {
    __shared__ RankShared shared;
    rank_block(params, this_block(), shared, EachThread{});
}
