// The position table resized to a grid: bicubic, as upstream does when it loads a checkpoint for another image size.
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels.hpp"
#include "taps.hpp"

namespace saccade {
namespace {

constexpr float CUBIC_A = -0.75f;  // PyTorch's constant; Pillow and TensorFlow use -0.5

// The cubic convolution kernel for distances up to 1, and from 1 to 2.
float cubic_inner(float x) { return ((CUBIC_A + 2.0f) * x - (CUBIC_A + 3.0f)) * x * x + 1.0f; }
float cubic_outer(float x) { return ((CUBIC_A * x - 5.0f * CUBIC_A) * x + 8.0f * CUBIC_A) * x - 4.0f * CUBIC_A; }

// The four input samples of one output sample, and their weights.
struct CubicTap {
    int sample[4];
    float weight[4];
};

CubicTap cubic_tap(int sample, int size_in, int size_out) {
    const float source = source_coordinate(sample, size_in, size_out);
    const float first = std::floor(source);
    const float t = source - first;
    CubicTap tap{{}, {cubic_outer(t + 1.0f), cubic_inner(t), cubic_inner(1.0f - t), cubic_outer(1.0f - t + 1.0f)}};
    for (int i = 0; i < 4; ++i) {
        tap.sample[i] = std::clamp(static_cast<int>(first) + i - 1, 0, size_in - 1);
    }
    return tap;
}

// Four numbers in one order of additions.
float weighted(const float weight[4], float a, float b, float c, float d) {
    return weight[0] * a + weight[1] * b + weight[2] * c + weight[3] * d;
}

// One row of the output: `table` rows blended along columns and then between rows.
void interpolate_row(const float* table, Grid from, std::size_t dim, const CubicTap& rows, int columns, float* out) {
    const std::size_t row_size = static_cast<std::size_t>(from.columns) * dim;
    for (int x = 0; x < columns; ++x, out += dim) {
        const CubicTap tap = cubic_tap(x, from.columns, columns);
        const float* corner[4][4];  // row, column
        for (int i = 0; i < 16; ++i) {
            corner[i / 4][i % 4] = table + static_cast<std::size_t>(rows.sample[i / 4]) * row_size +
                                   static_cast<std::size_t>(tap.sample[i % 4]) * dim;
        }
        for (std::size_t channel = 0; channel < dim; ++channel) {
            float row[4];
            for (int i = 0; i < 4; ++i) {
                row[i] = weighted(tap.weight, corner[i][0][channel], corner[i][1][channel], corner[i][2][channel],
                                  corner[i][3][channel]);
            }
            out[channel] = weighted(rows.weight, row[0], row[1], row[2], row[3]);
        }
    }
}

}  // namespace

void interpolate_positions(const float* table, Grid from, int dim, Grid to, float* out) {
    const auto size = static_cast<std::size_t>(dim);
    for (int y = 0; y < to.rows; ++y) {
        interpolate_row(table, from, size, cubic_tap(y, from.rows, to.rows), to.columns, out);
        out += static_cast<std::size_t>(to.columns) * size;
    }
}

}  // namespace saccade
