// The numeric kernels around the networks, without any dependency: images in, network inputs and features out.
//
// `runtime/reference.py` is the specification. Each kernel does the same float32 operations in the same order and gives
// the same bits, provided that the compiler contracts no a*b+c (-ffp-contract=off) and reorders nothing.
//
// Arrays are dense and row-major, shapes stand beside their parameters, and no output may overlap an input. Extents are
// 1 to MAX_EXTENT, a grid has at most MAX_CELLS cells, indices name cells of the grid. All of this is a precondition:
// callers check. Kernels keep no state but what is in the caller's Scratch, so any thread that has one of its own may
// call any of them; std::bad_alloc is the only exception.
#pragma once

#include <cstddef>
#include <cstdint>

#include "scratch.hpp"

namespace saccade {

constexpr int MAX_EXTENT = 1 << 16;  // as in bundle.json
constexpr int MAX_CELLS = 1 << 30;
constexpr int MAX_RESIZED = 1 << 28;  // extents of what `resize_bicubic` reads: photographs that no network sees whole
constexpr int NEIGHBOURS = 5;  // kept patches blended into each cell by `fill`

// An image: three packed bytes a pixel, rows `row_stride` bytes apart (may be padded, or negative).
struct Image {
    const std::uint8_t* pixels;  // the first row
    int height;
    int width;
    std::ptrdiff_t row_stride;
    bool bgr = false;  // blue comes first, as cameras and OpenCV have it; what kernels write is in RGB order all the same

    // Where channel 0 (red), 1 or 2 lies in a pixel.
    constexpr int place_of(int channel) const { return bgr ? 2 - channel : channel; }
};

struct Size {
    int height;
    int width;
};

struct Box {
    int top;
    int left;
    int height;
    int width;
};

// How a position table is resized: PyTorch's bicubic, in three ways. `runtime/positions.py` says whose they are.
enum class PositionRule {
    size,            // from size to size
    scale_factor,    // by the factor (extent + 0.1) / base
    size_antialias,  // from size to size, with antialias
};

// Cells are numbered row by row.
struct Grid {
    int rows;
    int columns;
    constexpr int cells() const { return rows * columns; }
    friend constexpr bool operator==(Grid one, Grid other) { return one.rows == other.rows && one.columns == other.columns; }
    friend constexpr bool operator!=(Grid one, Grid other) { return !(one == other); }
};

// The part `window` of the image resized to `to`, `out` (window.height, window.width, 3): Pillow's antialiased bicubic, bit
// for bit. Channels keep their order. Computes no more than the window needs, which must lie inside `to`.
// Extents are 1 to MAX_RESIZED here.
void resize_bicubic(const Image& image, Size to, Box window, std::uint8_t* out, Scratch& scratch);

// The normalised value of each pixel value, (x/255 - mean)/std: `table` is (3, 256) in RGB order.
void normalization_table(const float mean[3], const float std[3], float* table);

// The selector's input, `out` (3, size, size): the whole image resized, bilinear without antialiasing, aspect ignored.
void lowres_from_image(const Image& image, const float* table, int size, float* out, Scratch& scratch);

// The selector's map (map_size, map_size) resized to the grid, `out` (rows, columns): bilinear without antialiasing.
void resize_scores(const float* score_map, int map_size, Grid grid, float* out, Scratch& scratch);

// The k best cells of the resized map, `indices` (k,), and the scores of all cells, `scores` (rows, columns).
// Score descending, ties to the lower cell number; -0.0 equals 0.0. Requires 1 <= k <= grid.cells().
// Returns false, with `indices` untouched, where the map or the resized scores hold NaN or infinity.
[[nodiscard]] bool select(const float* score_map, int map_size, Grid grid, int k, std::int32_t* indices, float* scores,
                          Scratch& scratch);

// All of an image's normalised pixels, `out` (3, height, width).
void normalize(const Image& image, const float* table, float* out);

// The normalised pixels of k patches, `out` (k, 3*patch*patch), each ordered (channel, row, column).
// `columns` is the grid's; every index must name a patch that lies inside the image.
void gather_patches(const Image& image, const float* table, const std::int32_t* indices, int k, int patch, int columns,
                    float* out);

// Rows of a position table: `positions` (cells, dim), `indices` (k,), `out` (k, dim).
void gather_positions(const float* positions, int dim, const std::int32_t* indices, int k, float* out);

// A position table (from.rows, from.columns, dim) resized to a grid, `out` (to.rows, to.columns, dim). Meant to be cached
// for each grid. `runtime/positions.py` is the specification of the rules of plain backbones.
void interpolate_positions(const float* table, Grid from, int dim, Grid to, PositionRule rule, float* out);

// Kept tokens (k, channels) spread over all cells, `out` (channels, rows, columns): for each cell the mean of the 5
// nearest of the kept patches `indices` (k,), weighted by 1/(distance + 1e-8), equal distances to the earlier in the
// list. Requires k >= NEIGHBOURS and indices inside the grid; they may repeat.
void fill(const float* tokens, const std::int32_t* indices, int k, int channels, Grid grid, float* out,
          Scratch& scratch);

}  // namespace saccade
