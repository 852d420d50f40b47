// What a host needs to launch the CUDA kernels of `saccade.fatbin` through the driver's API: for each kernel its name,
// its parameters and its launch. Plain C++17, no CUDA header.
//
// Every kernel takes one of the structs below, by value: `void* arguments[] = {&params}` for cuLaunchKernel. No kernel
// uses dynamic shared memory, allocates, synchronises or keeps state from one launch to the next, so all may be captured
// in a CUDA graph. A graph keeps the parameters it was captured with: what changes from frame to frame, the images'
// addresses among it, is therefore read from device memory (`ImageView`).
//
// All pointers are device addresses, aligned to their type. Arrays are dense and row-major, shapes stand beside them, and
// no output may overlap an input. Extents are 1 to MAX_EXTENT of the CPU's kernels. Kernels check nothing: these are
// preconditions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace saccade::cuda {

static_assert(sizeof(void*) == 8, "the kernels are compiled for 64-bit addresses");

constexpr int MAX_BATCH = 65535;         // gridDim.y
constexpr int MAX_GRID_CELLS = 1 << 16;  // squared distances fit 32 bits; ranking takes time by the square of the cells

constexpr const char* PREPROCESS_FP32 = "saccade_preprocess_fp32";
constexpr const char* PREPROCESS_FP16 = "saccade_preprocess_fp16";
constexpr const char* PREPROCESS_BF16 = "saccade_preprocess_bf16";
constexpr const char* RESIZE_SCORES = "saccade_resize_scores";
constexpr const char* RANK = "saccade_rank";
constexpr const char* GATHER_32BIT = "saccade_gather_32bit";
constexpr const char* GATHER_16BIT = "saccade_gather_16bit";
constexpr const char* FILL = "saccade_fill";

// One image on the device: three packed bytes a pixel, rows `row_stride` bytes apart (may be padded, or negative).
struct ImageView {
    const std::uint8_t* pixels;  // the first row
    std::int64_t row_stride;
    std::int32_t height;
    std::int32_t width;
    std::int32_t bgr;  // 1: blue first, 0: red first
    std::int32_t unused;
};

// PREPROCESS_FP32, _FP16, _BF16: whole images resized to the selector's input, bilinear without antialiasing.
struct PreprocessParams {
    const ImageView* images;  // (batch,)
    const float* table;       // (3, 256) in RGB order: the normalised value of each pixel value
    void* lowres;             // out: (batch, 3, size, size) in the kernel's type, rounded once from float32
    std::int32_t batch;
    std::int32_t size;
};

// RESIZE_SCORES, then RANK, with the same parameters: the k best cells of each map, score descending, ties to the lower
// cell; -0.0 equals 0.0. Where a map or its resized scores hold NaN or infinity, the image's status is 1 and its indices
// are 0 to k-1, so that kernels launched after it stay inside their arrays.
struct SelectParams {
    const float* maps;      // (batch, map_size, map_size)
    float* scores;          // out of resize_scores, into rank: (batch, rows, columns)
    std::int32_t* indices;  // out: (batch, k), best first
    std::int32_t* status;   // out: (batch,), 0 or 1
    std::int32_t batch;
    std::int32_t map_size;
    std::int32_t rows;
    std::int32_t columns;
    std::int32_t k;  // 1 to rows * columns
    std::int32_t unused;
};

// GATHER_32BIT (float32), GATHER_16BIT (fp16 or bf16): the extractor's inputs. Values are copied and
// never converted, so `table` and `positions` come in the type of the outputs.
struct GatherParams {
    const ImageView* images;      // (batch,): each holds the whole grid
    const void* table;            // (3, 256) in RGB order
    const void* positions;        // (cells, dim): the table of this grid
    const std::int32_t* indices;  // (batch, k)
    void* patches;                // out: (batch, k, 3 * patch * patch), each ordered (channel, row, column)
    void* kept_positions;         // out: (batch, k, dim)
    std::int32_t batch;
    std::int32_t k;
    std::int32_t patch;
    std::int32_t columns;  // the grid's
    std::int32_t dim;
    std::int32_t unused;
};

// FILL: kept tokens spread over all cells, the mean of the 5 nearest kept patches weighted by
// 1/(distance + 1e-8), equal distances to the earlier in the list.
struct FillParams {
    const float* tokens;          // (batch, k, channels)
    const std::int32_t* indices;  // (batch, k); may repeat
    float* out;                   // (batch, channels, rows, columns)
    std::int32_t batch;
    std::int32_t k;  // at least 5
    std::int32_t channels;
    std::int32_t rows;
    std::int32_t columns;
    std::int32_t unused;
};

// The grid (x, y, 1) and the block (threads, 1, 1) of a launch.
struct Launch {
    std::uint32_t x;
    std::uint32_t y;
    std::uint32_t threads;
};

constexpr int PREPROCESS_THREADS = 256;  // a thread for each pixel of the output
constexpr int RESIZE_THREADS = 256;      // a thread for each cell
constexpr int RANK_CELLS = 32;           // cells of a block: one warp, so that a warp reads one score at a time
constexpr int RANK_SLICES = 32;          // warps of a block, among which the other cells are divided
constexpr int RANK_THREADS = RANK_CELLS * RANK_SLICES;
constexpr int GATHER_THREADS = 256;  // a block for each kept patch
constexpr int FILL_CELLS = 32;       // cells of a block
constexpr int FILL_SLICES = 8;       // warps of a block, among which the kept patches are divided
constexpr int FILL_THREADS = FILL_CELLS * FILL_SLICES;

constexpr std::uint32_t blocks_of(std::int64_t items, int size) {
    return static_cast<std::uint32_t>((items + size - 1) / size);
}

constexpr Launch preprocess_launch(const PreprocessParams& p) {
    const std::int64_t pixels = static_cast<std::int64_t>(p.size) * p.size;
    return {blocks_of(pixels, PREPROCESS_THREADS), static_cast<std::uint32_t>(p.batch), PREPROCESS_THREADS};
}

constexpr Launch resize_scores_launch(const SelectParams& p) {
    return {blocks_of(p.rows * p.columns, RESIZE_THREADS), static_cast<std::uint32_t>(p.batch), RESIZE_THREADS};
}

constexpr Launch rank_launch(const SelectParams& p) {
    return {blocks_of(p.rows * p.columns, RANK_CELLS), static_cast<std::uint32_t>(p.batch), RANK_THREADS};
}

constexpr Launch gather_launch(const GatherParams& p) {
    return {static_cast<std::uint32_t>(p.k), static_cast<std::uint32_t>(p.batch), GATHER_THREADS};
}

constexpr Launch fill_launch(const FillParams& p) {
    return {blocks_of(p.rows * p.columns, FILL_CELLS), static_cast<std::uint32_t>(p.batch), FILL_THREADS};
}

}  // namespace saccade::cuda
