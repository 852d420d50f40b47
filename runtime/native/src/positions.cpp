// The position table resized to a grid: bicubic, by the rule of the code that a model comes from.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels.hpp"
#include "taps.hpp"

namespace saccade {
namespace {

constexpr float CUBIC_A = -0.75f;      // PyTorch's constant; Pillow and TensorFlow use -0.5
constexpr float ANTIALIAS_A = -0.5f;   // of PyTorch's antialiased resize, which follows Pillow
constexpr float CUBIC_SUPPORT = 2.0f;  // the kernel reaches this many samples to each side
constexpr double SCALE_OFFSET = 0.1;   // DINO's and DINOv2's `interpolate_offset`

// The cubic convolution kernel for distances up to 1, and from 1 to 2.
float cubic_inner(float x, float a) { return ((a + 2.0f) * x - (a + 3.0f)) * x * x + 1.0f; }
float cubic_outer(float x, float a) { return ((a * x - 5.0f * a) * x + 8.0f * a) * x - 4.0f * a; }

// The input samples of each output sample along one axis, `count` of them, and their weights.
struct Taps {
    int count;
    std::vector<int> samples;
    std::vector<float> weights;

    Taps(int taps, int size_out)
        : count(taps),
          samples(static_cast<std::size_t>(taps) * static_cast<std::size_t>(size_out)),
          weights(samples.size()) {}
    const int* samples_of(int sample) const { return samples.data() + static_cast<std::ptrdiff_t>(sample) * count; }
    const float* weights_of(int sample) const { return weights.data() + static_cast<std::ptrdiff_t>(sample) * count; }
};

// Where the centre of an output sample lies by the factor (size_out + 0.1) / size_in: rounded once, out of double.
float scale_factor_coordinate(int sample, int size_in, int size_out) {
    const auto step = static_cast<float>(1.0 / ((size_out + SCALE_OFFSET) / size_in));
    return static_cast<float>(static_cast<double>(step) * (sample + 0.5) - 0.5);
}

// Four taps each; those beyond the border repeat the border.
template <typename Coordinate>
Taps four_taps(int size_in, int size_out, Coordinate coordinate) {
    Taps taps(4, size_out);
    for (int sample = 0; sample < size_out; ++sample) {
        const float source = coordinate(sample, size_in, size_out);
        const float first = std::floor(source);
        const float t = source - first;
        const float weights[4] = {cubic_outer(t + 1.0f, CUBIC_A), cubic_inner(t, CUBIC_A), cubic_inner(1.0f - t, CUBIC_A),
                                  cubic_outer(1.0f - t + 1.0f, CUBIC_A)};
        std::copy_n(weights, 4, taps.weights.begin() + std::ptrdiff_t{4} * sample);
        for (int i = 0; i < 4; ++i) {
            const int tap = std::clamp(static_cast<int>(first) + i - 1, 0, size_in - 1);
            taps.samples[static_cast<std::size_t>(4 * sample + i)] = tap;
        }
    }
    return taps;
}

// The taps under a kernel that widens where the table shrinks; those beyond the border are left out. Samples that have
// fewer taps than others are filled up with weights of 0.
Taps antialias_taps(int size_in, int size_out) {
    const float step = static_cast<float>(size_in) / static_cast<float>(size_out);
    const float widening = std::max(step, 1.0f);
    const float support = CUBIC_SUPPORT * widening;
    const double narrowing = 1.0f / widening;  // rounded to float before
    const auto centre_of = [step](int sample) { return step * (static_cast<float>(sample) + 0.5f); };
    const auto first_of = [&](int sample) { return std::max(static_cast<int>(centre_of(sample) - support + 0.5f), 0); };
    const auto end_of = [&](int sample) { return std::min(static_cast<int>(centre_of(sample) + support + 0.5f), size_in); };
    int most = 0;
    for (int sample = 0; sample < size_out; ++sample) {
        most = std::max(most, end_of(sample) - first_of(sample));
    }
    Taps taps(most, size_out);
    std::size_t next = 0;
    for (int sample = 0; sample < size_out; ++sample) {
        const int first = first_of(sample), end = end_of(sample);
        float* const weights = taps.weights.data() + next;
        float total = 0.0f;
        for (int i = 0; i < most; ++i, ++next) {
            const int tap = first + i;
            const auto distance =
                static_cast<float>(std::abs((tap - static_cast<double>(centre_of(sample)) + 0.5) * narrowing));
            const bool is_under = tap < end && distance < CUBIC_SUPPORT;
            taps.samples[next] = std::min(tap, size_in - 1);
            weights[i] = !is_under         ? 0.0f
                         : distance < 1.0f ? cubic_inner(distance, ANTIALIAS_A)
                                           : cubic_outer(distance, ANTIALIAS_A);
            total = i == 0 ? weights[0] : total + weights[i];
        }
        std::for_each(weights, weights + most, [total](float& weight) { weight /= total; });
    }
    return taps;
}

Taps taps_of(int size_in, int size_out, PositionRule rule) {
    switch (rule) {
        case PositionRule::size_antialias: return antialias_taps(size_in, size_out);
        case PositionRule::scale_factor: return four_taps(size_in, size_out, scale_factor_coordinate);
        default: return four_taps(size_in, size_out, source_coordinate);
    }
}

// A weighted sum of vectors of `dim` values, of which sample i begins at in + i * stride; added in the order of the taps.
void weigh(const float* in, std::size_t stride, const int* samples, const float* weights, int count, std::size_t dim,
           float* out) {
    for (int tap = 0; tap < count; ++tap) {
        const float* const values = in + static_cast<std::size_t>(samples[tap]) * stride;
        const float weight = weights[tap];
        for (std::size_t channel = 0; channel < dim; ++channel) {
            out[channel] = tap == 0 ? weight * values[channel] : out[channel] + weight * values[channel];
        }
    }
}

}  // namespace

// Column by column of the output: first along the table's rows, which makes one line, and then between them.
void interpolate_positions(const float* table, Grid from, int dim, Grid to, PositionRule rule, float* out) {
    const auto channels = static_cast<std::size_t>(dim);
    const std::size_t row_in = static_cast<std::size_t>(from.columns) * channels;
    const std::size_t row_out = static_cast<std::size_t>(to.columns) * channels;
    const Taps rows = taps_of(from.rows, to.rows, rule), columns = taps_of(from.columns, to.columns, rule);
    std::vector<float> line(static_cast<std::size_t>(from.rows) * channels);
    for (int x = 0; x < to.columns; ++x, out += channels) {
        for (std::size_t y = 0; y < static_cast<std::size_t>(from.rows); ++y) {
            weigh(table + y * row_in, channels, columns.samples_of(x), columns.weights_of(x), columns.count, channels,
                  line.data() + y * channels);
        }
        for (int y = 0; y < to.rows; ++y) {
            weigh(line.data(), channels, rows.samples_of(y), rows.weights_of(y), rows.count, channels,
                  out + static_cast<std::size_t>(y) * row_out);
        }
    }
}

}  // namespace saccade
