// The top-k: which cells of the grid the extractor will see.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.hpp"

namespace saccade {
namespace {

bool all_finite(const float* values, std::size_t count) {
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

// A number that is smaller for a better cell: the score, descending, above the cell number, ascending. No two are
// equal, so every sorting algorithm gives the same order.
std::uint64_t rank_of(float score, std::uint32_t cell) {
    const float unsigned_zero = score + 0.0f;  // -0.0 + 0.0 is 0.0: both zeros rank alike
    std::uint32_t bits;
    std::memcpy(&bits, &unsigned_zero, sizeof bits);
    // IEEE 754 numbers of one sign sort as their bits do, the negative ones backwards.
    const std::uint32_t descending = (bits >> 31) != 0 ? bits : ~bits & 0x7FFFFFFFu;
    return static_cast<std::uint64_t>(descending) << 32 | cell;
}

}  // namespace

bool select(const float* score_map, int map_size, Grid grid, int k, std::int32_t* indices, float* scores,
            Scratch& scratch) {
    const auto cells = static_cast<std::size_t>(grid.cells());
    resize_scores(score_map, map_size, grid, scores, scratch);
    // A resize that shrinks the map skips values, so both are looked at.
    if (!all_finite(score_map, static_cast<std::size_t>(map_size) * static_cast<std::size_t>(map_size)) ||
        !all_finite(scores, cells)) {
        return false;
    }
    std::uint64_t* const ranks = room_for(scratch.ranks, cells);
    for (std::size_t cell = 0; cell < cells; ++cell) {
        ranks[cell] = rank_of(scores[cell], static_cast<std::uint32_t>(cell));
    }
    std::nth_element(ranks, ranks + k - 1, ranks + cells);
    std::sort(ranks, ranks + k);
    std::transform(ranks, ranks + k, indices, [](std::uint64_t rank) { return static_cast<std::int32_t>(rank); });
    return true;
}

}  // namespace saccade
