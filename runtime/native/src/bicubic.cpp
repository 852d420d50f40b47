// The resize before the first network: Pillow's antialiased bicubic for 8 bits a channel, bit for bit.
//
// Two passes, one makes columns out of columns and one rows out of rows, each rounded to 8 bits. Both are one weighted sum
// of rows of bytes: columns become rows by transposing a band of the image.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.hpp"
#include "transpose.hpp"

namespace saccade {
namespace {

constexpr double CUBIC_A = -0.5;  // Pillow's constant; PyTorch's is -0.75
constexpr double SUPPORT = 2.0;   // of the filter at scale 1, to either side
constexpr int FRACTION_BITS = 22;  // of a fixed-point weight: 32 - 8 for the pixel - 2 for the sum
constexpr int LOW_BITS = 15;       // of them, those in WeightPair::low
constexpr std::uint32_t HALF = 1u << (FRACTION_BITS - 1);
constexpr int BAND = 32;  // rows transposed at a time: one AVX2 register of bytes
constexpr int PART = 64;  // output columns made of one transposed band

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
    const auto most_taps = static_cast<std::size_t>(std::min(2.0 * std::ceil(support) + 1.0, static_cast<double>(size_in)));
    const std::size_t most_pairs = most_taps / 2 + 1;
    TapSpan* const spans = room_for(axis.spans, static_cast<std::size_t>(count));
    WeightPair* const pairs = room_for(axis.pairs, most_pairs * static_cast<std::size_t>(count));
    double* const weights = room_for(axis.weights, most_taps);
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
        own[taps / 2] = {};  // of an odd count, the last weight is half a pair
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

__attribute__((target("avx2"), always_inline)) inline __m256i broadcast(const std::int16_t pair[2]) {
    std::int32_t both;
    std::memcpy(&both, pair, sizeof both);
    return _mm256_set1_epi32(both);
}

// 32 bytes of each row. A multiplication takes pairs, a pixel of row a and one of row b, and adds both products.
__attribute__((target("avx2"), always_inline)) inline void weigh_32_bytes(const WeightedRows& rows, std::size_t begin,
                                                                         std::uint8_t* out) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i low[4] = {zero, zero, zero, zero};  // of bytes 0-3, 4-7, 8-11 and 12-15 in either half
    __m256i high[4] = {zero, zero, zero, zero};
    const std::uint8_t* a = rows.first + begin;
    const WeightPair* weights = rows.weights;
    for (int left = rows.count; left > 0; left -= 2, a += 2 * rows.stride, ++weights) {
        const std::uint8_t* const b = left > 1 ? a + rows.stride : a;  // a last one alone is weighed with 0
        const __m256i pixels_a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
        const __m256i pixels_b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
        const __m256i first = _mm256_unpacklo_epi8(pixels_a, pixels_b);
        const __m256i second = _mm256_unpackhi_epi8(pixels_a, pixels_b);
        const __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                                  _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
        for (int i = 0; i < 4; ++i) {
            low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pairs[i], broadcast(weights->low)));
            high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pairs[i], broadcast(weights->high)));
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

// Output samples `begin` to `end` of an axis, from rows of `width` bytes; `in` is the first row that they need.
void resize_rows(const std::uint8_t* in, std::ptrdiff_t stride, const CubicAxis& axis, int begin, int end,
                 std::size_t width, std::uint8_t* out, Weigh weigh) {
    const TapSpan* const spans = axis.spans.data();
    const int first = spans[begin].first;
    for (int i = begin; i < end; ++i, out += width) {
        const TapSpan& span = spans[i];
        weigh({in + (span.first - first) * stride, stride, span.count, axis.pairs.data() + span.pairs}, width, out);
    }
}

// All output samples of an axis, from columns of `rows` pixels; `in` is the first column that they need. What is transposed
// at a time fits into the L1 cache.
void resize_columns(const std::uint8_t* in, std::ptrdiff_t stride, const CubicAxis& axis, int rows, std::uint8_t* out,
                    Scratch& scratch, Weigh weigh) {
    constexpr std::ptrdiff_t COLUMN = 3 * BAND;  // bytes of a transposed one
    const std::ptrdiff_t row_out = std::ptrdiff_t{3} * axis.count;
    const int height = std::min(BAND, rows);
    std::uint8_t* const band_out = room_for(scratch.band_out, std::size_t{PART * COLUMN});
    for (int row = 0; row < rows; row += BAND) {
        const std::ptrdiff_t top = std::min(row, rows - height);  // the last bands overlap, to the same result
        for (int begin = 0; begin < axis.count; begin += PART) {
            const int end = std::min(begin + PART, axis.count);
            const std::ptrdiff_t first = axis.spans[begin].first;
            const std::ptrdiff_t columns = axis.spans[end - 1].first + axis.spans[end - 1].count - first;
            std::uint8_t* const band_in = room_for(scratch.band_in, static_cast<std::size_t>(columns * COLUMN));
            transpose(in + top * stride + 3 * (first - axis.begin), stride, height, 3 * columns, band_in, BAND);
            resize_rows(band_in, COLUMN, axis, begin, end, COLUMN, band_out, weigh);
            transpose(band_out, BAND, 3 * (end - begin), height, out + top * row_out + 3 * begin, row_out);
        }
    }
}

// Pillow's choice since version 13; before, columns always came first. It shows in the rounding between the passes.
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
        resize_rows(in, stride, rows, 0, rows.count, row_out, out, weigh);
    } else if (rows_come_first(image, to)) {
        std::uint8_t* const between = room_for(scratch.between, row_in * static_cast<std::size_t>(window.height));
        resize_rows(in, stride, rows, 0, rows.count, row_in, between, weigh);
        resize_columns(between, static_cast<std::ptrdiff_t>(row_in), columns, window.height, out, scratch, weigh);
    } else {
        const int height = rows.end - rows.begin;
        std::uint8_t* const between = room_for(scratch.between, row_out * static_cast<std::size_t>(height));
        resize_columns(in, stride, columns, height, between, scratch, weigh);
        resize_rows(between, static_cast<std::ptrdiff_t>(row_out), rows, 0, rows.count, row_out, out, weigh);
    }
}

}  // namespace saccade
