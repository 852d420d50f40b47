// Where the samples of a resized axis come from: PyTorch's half-pixel centres (align_corners False), in float32.
// Internal to the resizing kernels.
#pragma once

#include <algorithm>

namespace saccade {

// Where the centre of output sample `sample` lies among the input's; PyTorch's area_pixel_compute_source_index.
inline float source_coordinate(int sample, int size_in, int size_out) {
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

inline BilinearTap bilinear_tap(int sample, int size_in, int size_out) {
    const float source = std::max(source_coordinate(sample, size_in, size_out), 0.0f);
    const int first = std::min(static_cast<int>(source), size_in - 1);
    const float weight = source - static_cast<float>(first);
    return {first, std::min(first + 1, size_in - 1), 1.0f - weight, weight};
}

}  // namespace saccade
