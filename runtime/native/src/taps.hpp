// Where the samples of a resized axis come from: PyTorch's half-pixel centres (align_corners False), in float32.
// Internal to the resizing kernels, on the CPU and (`runtime/cuda`) on a GPU.
#pragma once

#ifdef __CUDACC__
#define SACCADE_BOTH __host__ __device__  // the functions that both processors run
#else
#define SACCADE_BOTH
#endif

namespace saccade {

// Where the centre of output sample `sample` lies among the input's; PyTorch's area_pixel_compute_source_index.
SACCADE_BOTH inline float source_coordinate(int sample, int size_in, int size_out) {
    const float scale = static_cast<float>(size_in) / static_cast<float>(size_out);
    return scale * (static_cast<float>(sample) + 0.5f) - 0.5f;
}

// Both input samples of one output sample, and their weights.
struct BilinearTap {
    int first;
    int second;
    float first_weight;
    float second_weight;
};

SACCADE_BOTH inline BilinearTap bilinear_tap(int sample, int size_in, int size_out) {
    const float centre = source_coordinate(sample, size_in, size_out);
    const float source = centre < 0.0f ? 0.0f : centre;  // std::min and std::max are not to be had on a GPU
    const int last = size_in - 1;
    const int first = static_cast<int>(source) < last ? static_cast<int>(source) : last;
    const float weight = source - static_cast<float>(first);
    return {first, first < last ? first + 1 : last, 1.0f - weight, weight};
}

}  // namespace saccade
