// The gather: pixels and positions of the kept patches, straight into the extractor's inputs; a block for each patch.
#pragma once

#include "block.cuh"
#include "launch.hpp"

namespace saccade::cuda {

template <class T>
SACCADE_BOTH void gather_patch(const GatherParams& p, const ImageView& image, int cell, T* out, int thread) {
    const std::int64_t row = cell / p.columns;
    const std::int64_t column = cell % p.columns;
    const std::uint8_t* corner = image.pixels + row * p.patch * image.row_stride + column * p.patch * 3;
    const int pixels = p.patch * p.patch;
    for (int i = thread; i < 3 * pixels; i += GATHER_THREADS) {
        const int channel = i / pixels;
        const int y = i % pixels / p.patch;
        const int x = i % p.patch;  // pixels is a multiple of patch
        const int byte = image.bgr != 0 ? 2 - channel : channel;
        out[i] = static_cast<const T*>(p.table)[256 * channel + corner[y * image.row_stride + 3 * x + byte]];
    }
}

// T is an unsigned integer as wide as the values: the gather copies them and knows no other property of theirs.
template <class T>
SACCADE_BOTH void gather(const GatherParams& p, Block block, int thread) {
    const std::int64_t kept = static_cast<std::int64_t>(block.image) * p.k + block.x;
    const int cell = p.indices[kept];
    const std::int64_t patch_size = 3 * p.patch * p.patch;
    gather_patch(p, p.images[block.image], cell, static_cast<T*>(p.patches) + kept * patch_size, thread);
    const T* position = static_cast<const T*>(p.positions) + static_cast<std::int64_t>(cell) * p.dim;
    T* out = static_cast<T*>(p.kept_positions) + kept * p.dim;
    for (int i = thread; i < p.dim; i += GATHER_THREADS) {
        out[i] = position[i];
    }
}

}  // namespace saccade::cuda
