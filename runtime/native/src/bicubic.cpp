// The resize before the first network: Pillow's antialiased bicubic for 8 bits a channel, bit for bit.
//
// Two passes, along columns and along rows, each rounded to 8 bits. Both are one weighted sum of rows of bytes; the first works
// on bands of the image that are transposed, so that a column lies in one piece.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.hpp"

namespace saccade {
namespace {

constexpr double CUBIC_A = -0.5;  // Pillow's constant; PyTorch's is -0.75
constexpr double SUPPORT = 2.0;   // of the filter at scale 1, to either side
constexpr int FRACTION_BITS = 22;  // of a fixed-point weight: 32 - 8 for the pixel - 2 for the sum
constexpr int LOW_BITS = 15;       // of them, those in WeightPair::low
constexpr std::uint32_t HALF = 1u << (FRACTION_BITS - 1);
constexpr int BAND = 32;  // rows transposed at a time: one AVX2 register of bytes
constexpr int TILE = 16;  // rows and columns of bytes transposed at a time

double cubic(double x) {
    x = std::abs(x);
    if (x < 1.0) {
        return ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC_A : 0.0;
}

std::int32_t fixed_point(double weight) {
    return static_cast<std::int32_t>(weight * (1 << FRACTION_BITS) + (weight < 0 ? -0.5 : 0.5));
}

void set_weight(WeightPair* pairs, int tap, std::int32_t weight) {
    pairs[tap / 2].low[tap % 2] = static_cast<std::int16_t>(weight & ((1 << LOW_BITS) - 1));
    pairs[tap / 2].high[tap % 2] = static_cast<std::int16_t>(weight >> LOW_BITS);
}

// Where the `count` output samples from `begin` on come from, of the `size_out` of an axis.
void set_axis(CubicAxis& axis, int size_in, int size_out, int begin, int count) {
    const double scale = static_cast<double>(size_in) / size_out;
    const double filter_scale = std::max(scale, 1.0);
    const double support = SUPPORT * filter_scale;
    const auto most_pairs = static_cast<std::size_t>(std::ceil(support)) + 1;
    TapSpan* const spans = room_for(axis.spans, static_cast<std::size_t>(count));
    WeightPair* const pairs = room_for(axis.pairs, most_pairs * static_cast<std::size_t>(count));
    double* const weights = room_for(axis.weights, 2 * most_pairs);
    for (int i = 0; i < count; ++i) {
        const double centre = (begin + i + 0.5) * scale;
        const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int taps = std::min(static_cast<int>(centre + support + 0.5), size_in) - first;
        double total = 0.0;
        for (int tap = 0; tap < taps; ++tap) {
            weights[tap] = cubic((tap + first - centre + 0.5) * (1.0 / filter_scale));
            total += weights[tap];
        }
        WeightPair* const own = pairs + most_pairs * static_cast<std::size_t>(i);
        own[taps / 2] = {};  // an odd count leaves half a pair
        for (int tap = 0; tap < taps; ++tap) {
            set_weight(own, tap, fixed_point(weights[tap] / total));
        }
        spans[i] = {first, taps, most_pairs * static_cast<std::size_t>(i)};
    }
    axis.count = count;
    axis.begin = spans[0].first;
    axis.end = spans[count - 1].first + spans[count - 1].count;
}

// An axis whose size does not change.
void set_unchanged_axis(CubicAxis& axis, int begin, int count) {
    axis.count = count;
    axis.begin = begin;
    axis.end = begin + count;
}

// Rows of bytes and the weight of each.
struct WeightedRows {
    const std::uint8_t* first;
    std::ptrdiff_t stride;
    int count;
    const WeightPair* weights;
};

// The weighted sum of rows `width` bytes wide, rounded and clipped to 0..255. The parts of a sum may pass 2^31 for long
// filters, hence the unsigned numbers; the sum itself stays below.
void weigh_plain(const WeightedRows& rows, std::size_t width, std::uint8_t* out) {
    constexpr std::size_t BLOCK = 64;
    for (std::size_t begin = 0; begin < width; begin += BLOCK) {
        const std::size_t size = std::min(BLOCK, width - begin);
        std::uint32_t low[BLOCK] = {};
        std::uint32_t high[BLOCK] = {};
        for (int row = 0; row < rows.count; row += 2) {
            const std::uint8_t* a = rows.first + row * rows.stride + begin;
            const std::uint8_t* b = row + 1 < rows.count ? a + rows.stride : a;  // its weight is then 0
            const WeightPair weight = rows.weights[row / 2];
            for (std::size_t i = 0; i < size; ++i) {
                low[i] += static_cast<std::uint32_t>(weight.low[0] * a[i] + weight.low[1] * b[i]);
                high[i] += static_cast<std::uint32_t>(weight.high[0] * a[i] + weight.high[1] * b[i]);
            }
        }
        for (std::size_t i = 0; i < size; ++i) {
            const auto sum = static_cast<std::int32_t>((high[i] << LOW_BITS) + low[i] + HALF);
            out[begin + i] = static_cast<std::uint8_t>(std::clamp(sum >> FRACTION_BITS, 0, 255));
        }
    }
}

using Weigh = void (*)(const WeightedRows& rows, std::size_t width, std::uint8_t* out);

#if defined(__x86_64__)

__attribute__((target("avx2"), always_inline)) inline __m256i pixels_from_sums(__m256i low, __m256i high) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, LOW_BITS), low);
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(HALF)), FRACTION_BITS);
}

// 32 bytes of each row. A multiplication takes pairs, a pixel of row a and one of row b, and adds both products.
__attribute__((target("avx2"), always_inline)) inline void weigh_32_bytes(const WeightedRows& rows, std::size_t begin,
                                                                         std::uint8_t* out) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i low[4] = {zero, zero, zero, zero};
    __m256i high[4] = {zero, zero, zero, zero};
    for (int row = 0; row < rows.count; row += 2) {
        const std::uint8_t* a = rows.first + row * rows.stride + begin;
        const std::uint8_t* b = row + 1 < rows.count ? a + rows.stride : a;
        std::int32_t weights[2];
        std::memcpy(weights, &rows.weights[row / 2], sizeof weights);
        const __m256i low_weights = _mm256_set1_epi32(weights[0]);
        const __m256i high_weights = _mm256_set1_epi32(weights[1]);
        const __m256i pixels_a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
        const __m256i pixels_b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
        const __m256i first = _mm256_unpacklo_epi8(pixels_a, pixels_b);
        const __m256i second = _mm256_unpackhi_epi8(pixels_a, pixels_b);
        const __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                                  _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
        for (int i = 0; i < 4; ++i) {
            low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pairs[i], low_weights));
            high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pairs[i], high_weights));
        }
    }
    const __m256i first = _mm256_packs_epi32(pixels_from_sums(low[0], high[0]), pixels_from_sums(low[1], high[1]));
    const __m256i second = _mm256_packs_epi32(pixels_from_sums(low[2], high[2]), pixels_from_sums(low[3], high[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + begin), _mm256_packus_epi16(first, second));
}

__attribute__((target("avx2"))) void weigh_avx2(const WeightedRows& rows, std::size_t width, std::uint8_t* out) {
    if (width < 32) {
        weigh_plain(rows, width, out);
        return;
    }
    for (std::size_t begin = 0; begin < width; begin += 32) {
        weigh_32_bytes(rows, std::min(begin, width - 32), out);  // the last ones overlap, to the same result
    }
}

#endif

Weigh weigh_for_this_cpu() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        return weigh_avx2;
    }
#endif
    return weigh_plain;
}

using Bytes = std::uint8_t __attribute__((vector_size(TILE)));

Bytes first_halves(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
Bytes second_halves(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Transposes 16 rows of 16 bytes. Each step interleaves the first half of the rows with the second: after four of them,
// what was the number of a row is the number of a byte.
void transpose_tile(const std::uint8_t* in, std::ptrdiff_t stride_in, std::uint8_t* out, std::ptrdiff_t stride_out) {
    Bytes rows[TILE];
    Bytes mixed[TILE];
    for (int i = 0; i < TILE; ++i) {
        std::memcpy(&rows[i], in + i * stride_in, TILE);
    }
    for (int two_steps = 0; two_steps < 2; ++two_steps) {
        for (int i = 0; i < TILE / 2; ++i) {
            mixed[2 * i] = first_halves(rows[i], rows[i + TILE / 2]);
            mixed[2 * i + 1] = second_halves(rows[i], rows[i + TILE / 2]);
        }
        for (int i = 0; i < TILE / 2; ++i) {
            rows[2 * i] = first_halves(mixed[i], mixed[i + TILE / 2]);
            rows[2 * i + 1] = second_halves(mixed[i], mixed[i + TILE / 2]);
        }
    }
    for (int i = 0; i < TILE; ++i) {
        std::memcpy(out + i * stride_out, &rows[i], TILE);
    }
}

// Writes byte (row, column) of `in` to (column, row) of `out`.
void transpose(const std::uint8_t* in, std::ptrdiff_t stride_in, std::ptrdiff_t rows, std::ptrdiff_t columns,
               std::uint8_t* out, std::ptrdiff_t stride_out) {
    const std::ptrdiff_t whole_rows = rows - rows % TILE;
    const std::ptrdiff_t whole_columns = columns - columns % TILE;
    for (std::ptrdiff_t row = 0; row < whole_rows; row += TILE) {
        for (std::ptrdiff_t column = 0; column < whole_columns; column += TILE) {
            transpose_tile(in + row * stride_in + column, stride_in, out + column * stride_out + row, stride_out);
        }
    }
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
        for (std::ptrdiff_t column = row < whole_rows ? whole_columns : 0; column < columns; ++column) {
            out[column * stride_out + row] = in[row * stride_in + column];
        }
    }
}

// The rows that come from taps on the rows at `in`, of `width` bytes each.
void resize_rows(const std::uint8_t* in, std::ptrdiff_t stride, const CubicAxis& axis, std::size_t width,
                 std::uint8_t* out, Weigh weigh) {
    for (int y = 0; y < axis.count; ++y, out += width) {
        const TapSpan& span = axis.spans[static_cast<std::size_t>(y)];
        weigh({in + (span.first - axis.begin) * stride, stride, span.count, &axis.pairs[span.pairs]}, width, out);
    }
}

// The columns that come from taps on the columns at `in`, of `rows` pixels each.
void resize_columns(const std::uint8_t* in, std::ptrdiff_t stride, const CubicAxis& axis, int rows, std::uint8_t* out,
                    Scratch& scratch, Weigh weigh) {
    constexpr std::ptrdiff_t COLUMN = 3 * BAND;  // bytes of a transposed band
    const std::ptrdiff_t row_in = std::ptrdiff_t{3} * (axis.end - axis.begin);
    const std::ptrdiff_t row_out = std::ptrdiff_t{3} * axis.count;
    std::uint8_t* const band_in = room_for(scratch.band_in, static_cast<std::size_t>(row_in * BAND));
    std::uint8_t* const band_out = room_for(scratch.band_out, static_cast<std::size_t>(row_out * BAND));
    const int height = std::min(BAND, rows);
    for (int row = 0; row < rows; row += BAND) {
        const std::ptrdiff_t top = std::min(row, rows - height);  // the last bands overlap, to the same result
        transpose(in + top * stride, stride, height, row_in, band_in, BAND);
        resize_rows(band_in, COLUMN, axis, COLUMN, band_out, weigh);
        transpose(band_out, BAND, row_out, height, out + top * row_out, row_out);
    }
}

// Pillow's choice since version 13, which shows in the rounding between the passes.
bool rows_come_first(const Image& image, Size to) {
    const std::int64_t fewer_rows = image.height - to.height;
    const std::int64_t fewer_columns = image.width - to.width;
    return fewer_rows > 0 && fewer_rows > 2 * fewer_columns;
}

}  // namespace

// A pass that changes no size would weigh each pixel with 1, so it is left out.
void resize_bicubic(const Image& image, Size to, Box window, std::uint8_t* out, Scratch& scratch) {
    const Weigh weigh = weigh_for_this_cpu();
    const bool new_width = to.width != image.width;
    const bool new_height = to.height != image.height;
    CubicAxis& columns = scratch.columns;
    CubicAxis& rows = scratch.rows;
    new_width ? set_axis(columns, image.width, to.width, window.left, window.width)
              : set_unchanged_axis(columns, window.left, window.width);
    new_height ? set_axis(rows, image.height, to.height, window.top, window.height)
               : set_unchanged_axis(rows, window.top, window.height);
    const std::ptrdiff_t stride = image.row_stride;
    const std::uint8_t* const in = image.pixels + rows.begin * stride + std::ptrdiff_t{3} * columns.begin;
    const std::size_t row_in = std::size_t{3} * static_cast<std::size_t>(columns.end - columns.begin);
    const std::size_t row_out = std::size_t{3} * static_cast<std::size_t>(window.width);

    if (!new_width && !new_height) {
        for (int y = 0; y < window.height; ++y) {
            out = std::copy_n(in + y * stride, row_out, out);
        }
    } else if (!new_height) {
        resize_columns(in, stride, columns, window.height, out, scratch, weigh);
    } else if (!new_width) {
        resize_rows(in, stride, rows, row_out, out, weigh);
    } else if (rows_come_first(image, to)) {
        std::uint8_t* const between = room_for(scratch.between, row_in * static_cast<std::size_t>(window.height));
        resize_rows(in, stride, rows, row_in, between, weigh);
        resize_columns(between, static_cast<std::ptrdiff_t>(row_in), columns, window.height, out, scratch, weigh);
    } else {
        const int height = rows.end - rows.begin;
        std::uint8_t* const between = room_for(scratch.between, row_out * static_cast<std::size_t>(height));
        resize_columns(in, stride, columns, height, between, scratch, weigh);
        resize_rows(between, static_cast<std::ptrdiff_t>(row_out), rows, row_out, out, weigh);
    }
}

}  // namespace saccade
