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

// One for each thread: two calls at a time must not share it. It grows to what the largest call so far has needed and
// never shrinks, so that calls with known sizes allocate nothing. What lies in it between calls has no meaning.
struct Scratch {
    std::vector<BilinearTap> taps;      // bilinear resizes: one for each output column
    std::vector<std::uint64_t> ranks;   // select: one for each cell
    std::vector<int> kept_begin;        // fill: one for each row of the grid, and the end
    std::vector<KeptPatch> kept;        // fill: grouped by their row
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
