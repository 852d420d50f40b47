// Kernels of preprocess.cuh.
#include "preprocess.cuh"

using namespace saccade::cuda;

extern "C" __global__ void __launch_bounds__(PREPROCESS_THREADS) saccade_preprocess_fp32(const PreprocessParams params) {
    preprocess<float>(params, this_block(), static_cast<int>(threadIdx.x));
}

extern "C" __global__ void __launch_bounds__(PREPROCESS_THREADS) saccade_preprocess_fp16(const PreprocessParams params) {
    preprocess<Half>(params, this_block(), static_cast<int>(threadIdx.x));
}

extern "C" __global__ void __launch_bounds__(PREPROCESS_THREADS) saccade_preprocess_bf16(const PreprocessParams params) {
    preprocess<Bfloat16>(params, this_block(), static_cast<int>(threadIdx.x));
}
