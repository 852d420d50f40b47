// Memory that the kernels reuse from call to call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "taps.hpp"

namespace saccade {

// A kept patch, found through its row of the grid.
struct KeptPatch {
    int column;
    int order;  // position in the list of kept patches
};

// Two neighbouring taps of a bicubic resize. A fixed-point weight is split, high * 2^15 + low, to fit multiplications of
// 16 bits.
struct WeightPair {
    std::int16_t low[2];
    std::int16_t high[2];
};

// The input samples of one output sample of a bicubic resize.
struct TapSpan {
    int first;
    int count;
    std::size_t pairs;  // which is its first in CubicAxis::pairs
};

// One axis of a bicubic resize.
struct CubicAxis {
    int count = 0;  // output samples
    int begin = 0;  // the input samples that these need
    int end = 0;
    std::vector<TapSpan> spans;
    std::vector<WeightPair> pairs;
    std::vector<double> weights;  // of one output sample
};

// One for each thread: two calls at a time must not share it. It grows to what the largest call so far has needed and
// never shrinks, so that calls with known sizes allocate nothing. What lies in it between calls has no meaning.
struct Scratch {
    std::vector<BilinearTap> taps;      // bilinear resizes: one for each output column
    std::vector<std::uint64_t> ranks;   // select: one for each cell
    std::vector<int> kept_begin;        // fill: one for each row of the grid, and the end
    std::vector<KeptPatch> kept;        // fill: grouped by their row
    CubicAxis columns, rows;            // bicubic resizes
    std::vector<std::uint8_t> band_in;  // some rows of the image, column by column
    std::vector<std::uint8_t> band_out;
    std::vector<std::uint8_t> between;  // the image between both passes
};

// The first `count` values of a vector of Scratch, whatever they were.
template <typename T>
T* room_for(std::vector<T>& values, std::size_t count) {
    if (values.size() < count) {
        values.resize(count);
    }
    return values.data();
}

}  // namespace saccade
