// The selector's input straight from bytes: every thread resizes and normalises one pixel of the output.
#pragma once

#include "block.cuh"
#include "launch.hpp"
#include "rounding.cuh"

namespace saccade::cuda {

// The float32 operations of `lowres_from_image` in the same order; T is float, Half or Bfloat16.
template <class T>
SACCADE_BOTH void preprocess(const PreprocessParams& p, Block block, int thread) {
    const auto size = static_cast<std::uint32_t>(p.size);
    const std::int64_t plane = static_cast<std::int64_t>(size) * size;  // at most 2^32, so that a pixel fits 32 bits
    const std::uint32_t pixel = static_cast<std::uint32_t>(block.x) * PREPROCESS_THREADS + thread;
    if (pixel >= plane) {
        return;
    }
    const ImageView image = p.images[block.image];
    const BilinearTap row = bilinear_tap(static_cast<int>(pixel / size), image.height, p.size);
    const BilinearTap column = bilinear_tap(static_cast<int>(pixel % size), image.width, p.size);
    const std::uint8_t* top = image.pixels + row.first * image.row_stride;
    const std::uint8_t* bottom = image.pixels + row.second * image.row_stride;
    const int left = 3 * column.first;
    const int right = 3 * column.second;
    T* out = static_cast<T*>(p.lowres) + 3 * plane * block.image + pixel;
    for (int channel = 0; channel < 3; ++channel) {
        const float* values = p.table + 256 * channel;
        const int byte = image.bgr != 0 ? 2 - channel : channel;
        store(bilinear(row, column, values[top[left + byte]], values[top[right + byte]], values[bottom[left + byte]],
                       values[bottom[right + byte]]),
              out + channel * plane);
    }
}

}  // namespace saccade::cuda
