// A matrix of bytes transposed, 16 by 16 at a time. Internal to resize_bicubic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace saccade {

constexpr int TILE = 16;
using Bytes = std::uint8_t __attribute__((vector_size(TILE)));

// The bytes of two rows in turns: of their first halves, and of their second.
#if __has_builtin(__builtin_shufflevector)  // Clang, and GCC from 12 on
inline Bytes interleave_first(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Bytes interleave_second(Bytes a, Bytes b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#else
inline Bytes interleave_first(Bytes a, Bytes b) {
    return __builtin_shuffle(a, b, Bytes{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
inline Bytes interleave_second(Bytes a, Bytes b) {
    return __builtin_shuffle(a, b, Bytes{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
#endif

// Transposes 16 rows of 16 bytes. Each step interleaves the first eight with the last eight: after four steps the number
// of a row has become the number of a byte.
inline void transpose_tile(const std::uint8_t* in, std::ptrdiff_t stride_in, std::uint8_t* out, std::ptrdiff_t stride_out) {
    Bytes rows[TILE];
    Bytes mixed[TILE];
    for (int i = 0; i < TILE; ++i) {
        std::memcpy(&rows[i], in + i * stride_in, TILE);
    }
    for (int two_steps = 0; two_steps < 2; ++two_steps) {
        for (int i = 0; i < TILE / 2; ++i) {
            mixed[2 * i] = interleave_first(rows[i], rows[i + TILE / 2]);
            mixed[2 * i + 1] = interleave_second(rows[i], rows[i + TILE / 2]);
        }
        for (int i = 0; i < TILE / 2; ++i) {
            rows[2 * i] = interleave_first(mixed[i], mixed[i + TILE / 2]);
            rows[2 * i + 1] = interleave_second(mixed[i], mixed[i + TILE / 2]);
        }
    }
    for (int i = 0; i < TILE; ++i) {
        std::memcpy(out + i * stride_out, &rows[i], TILE);
    }
}

// Writes byte (row, column) of `in` to (column, row) of `out`.
inline void transpose(const std::uint8_t* in, std::ptrdiff_t stride_in, std::ptrdiff_t rows, std::ptrdiff_t columns,
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

}  // namespace saccade
