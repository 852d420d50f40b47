// Pixels normalised, straight into a network's inputs: all of an image's, or the gather of the selected patches'.
#include <algorithm>
#include <cstddef>

#include "kernels.hpp"

namespace saccade {

void normalization_table(const float mean[3], const float std[3], float* table) {
    for (int channel = 0; channel < 3; ++channel) {
        for (int pixel = 0; pixel < 256; ++pixel) {
            *table++ = (static_cast<float>(pixel) / 255.0f - mean[channel]) / std[channel];
        }
    }
}

void normalize(const Image& image, const float* table, float* out) {
    for (int channel = 0; channel < 3; ++channel) {
        const float* values = table + 256 * channel;
        for (int y = 0; y < image.height; ++y) {
            const std::uint8_t* pixel = image.pixels + y * image.row_stride + image.place_of(channel);
            for (int x = 0; x < image.width; ++x) {
                *out++ = values[pixel[std::ptrdiff_t{3} * x]];
            }
        }
    }
}

void gather_patches(const Image& image, const float* table, const std::int32_t* indices, int k, int patch, int columns,
                    float* out) {
    for (int i = 0; i < k; ++i) {
        const std::ptrdiff_t row = indices[i] / columns;
        const std::ptrdiff_t column = indices[i] % columns;
        const std::uint8_t* corner = image.pixels + row * patch * image.row_stride + column * patch * 3;
        for (int channel = 0; channel < 3; ++channel) {
            const float* values = table + 256 * channel;
            for (int y = 0; y < patch; ++y) {
                const std::uint8_t* pixel = corner + y * image.row_stride + image.place_of(channel);
                for (int x = 0; x < patch; ++x) {
                    *out++ = values[pixel[3 * x]];
                }
            }
        }
    }
}

void gather_positions(const float* positions, int dim, const std::int32_t* indices, int k, float* out) {
    for (int i = 0; i < k; ++i) {
        out = std::copy_n(positions + static_cast<std::size_t>(indices[i]) * static_cast<std::size_t>(dim), dim, out);
    }
}

}  // namespace saccade
