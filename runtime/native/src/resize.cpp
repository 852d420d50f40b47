// Bilinear resizes: the image to the selector's input, and the selector's map to the grid.
#include <cstddef>

#include "kernels.hpp"
#include "taps.hpp"

namespace saccade {
namespace {

const BilinearTap* bilinear_taps(int size_in, int size_out, Scratch& scratch) {
    BilinearTap* const taps = room_for(scratch.taps, static_cast<std::size_t>(size_out));
    for (int sample = 0; sample < size_out; ++sample) {
        taps[sample] = bilinear_tap(sample, size_in, size_out);
    }
    return taps;
}

// The four values around one sample, blended along both rows and then between them.
inline float blend(const BilinearTap& row, const BilinearTap& column, float top_left, float top_right,
                   float bottom_left, float bottom_right) {
    const float top = column.first_weight * top_left + column.second_weight * top_right;
    const float bottom = column.first_weight * bottom_left + column.second_weight * bottom_right;
    return row.first_weight * top + row.second_weight * bottom;
}

}  // namespace

void lowres_from_image(const Image& image, const float* table, int size, float* out, Scratch& scratch) {
    const BilinearTap* const columns = bilinear_taps(image.width, size, scratch);
    const auto plane = static_cast<std::size_t>(size) * static_cast<std::size_t>(size);
    for (int y = 0; y < size; ++y) {
        const BilinearTap row = bilinear_tap(y, image.height, size);
        const std::uint8_t* top = image.pixels + row.first * image.row_stride;
        const std::uint8_t* bottom = image.pixels + row.second * image.row_stride;
        for (int x = 0; x < size; ++x, ++out) {
            const BilinearTap& column = columns[x];
            for (int channel = 0; channel < 3; ++channel) {
                const float* values = table + 256 * channel;
                const std::ptrdiff_t left = std::ptrdiff_t{3} * column.first + image.place_of(channel);
                const std::ptrdiff_t right = std::ptrdiff_t{3} * column.second + image.place_of(channel);
                out[channel * plane] = blend(row, column, values[top[left]], values[top[right]], values[bottom[left]],
                                             values[bottom[right]]);
            }
        }
    }
}

void resize_scores(const float* score_map, int map_size, Grid grid, float* out, Scratch& scratch) {
    const BilinearTap* const columns = bilinear_taps(map_size, grid.columns, scratch);
    for (int y = 0; y < grid.rows; ++y) {
        const BilinearTap row = bilinear_tap(y, map_size, grid.rows);
        const float* top = score_map + static_cast<std::ptrdiff_t>(row.first) * map_size;
        const float* bottom = score_map + static_cast<std::ptrdiff_t>(row.second) * map_size;
        for (int x = 0; x < grid.columns; ++x) {
            const BilinearTap& column = columns[x];
            *out++ = blend(row, column, top[column.first], top[column.second], bottom[column.first],
                           bottom[column.second]);
        }
    }
}

}  // namespace saccade
