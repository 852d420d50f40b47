// The dense fill: tokens of the kept patches spread over every cell by inverse distance.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "kernels.hpp"

namespace saccade {
namespace {

constexpr float DISTANCE_OFFSET = 1e-8f;  // keeps the weight of a kept cell itself finite (1e8); upstream's eps

// Tokens are read cell by cell while the output is written channel by channel. A tile turns one order into the other
// inside the L1 cache (8 KiB), so that each store fills whole cache lines.
constexpr int TILE_CELLS = 64;
constexpr int TILE_CHANNELS = 32;

// The kept patches, grouped by their row of the grid.
struct KeptRows {
    const int* begin;  // (rows + 1,): the patches of row r are begin[r] up to begin[r + 1]
    const KeptPatch* patches;
};

KeptRows kept_rows(const std::int32_t* indices, int k, Grid grid, Scratch& scratch) {
    int* const begin = room_for(scratch.kept_begin, static_cast<std::size_t>(grid.rows) + 1);
    KeptPatch* const patches = room_for(scratch.kept, static_cast<std::size_t>(k));
    std::fill_n(begin, grid.rows + 1, 0);
    for (int i = 0; i < k; ++i) {
        ++begin[indices[i] / grid.columns];
    }
    std::partial_sum(begin, begin + grid.rows + 1, begin);
    for (int i = 0; i < k; ++i) {  // each `begin` moves from the end of its row down to the start
        patches[--begin[indices[i] / grid.columns]] = {indices[i] % grid.columns, i};
    }
    return {begin, patches};
}

// Squared distance (below 2^33) above the position in the list (below 2^31): no two keys are equal, so ties need no
// further rule.
using Keys = std::array<std::uint64_t, NEIGHBOURS>;  // ascending
constexpr int ORDER_BITS = 31;
constexpr std::uint64_t ORDER_MASK = (std::uint64_t{1} << ORDER_BITS) - 1;

std::uint64_t squared(std::int64_t distance) { return static_cast<std::uint64_t>(distance * distance); }

// Puts a key that is below the last one in its place.
void insert(Keys& nearest, std::uint64_t key) {
    int i = NEIGHBOURS - 1;
    for (; i > 0 && nearest[i - 1] > key; --i) {
        nearest[i] = nearest[i - 1];
    }
    nearest[i] = key;
}

void search_row(const KeptRows& kept, int row, int row_distance, int column, Keys& nearest) {
    for (int i = kept.begin[row]; i < kept.begin[row + 1]; ++i) {
        const auto [kept_column, order] = kept.patches[i];
        const std::uint64_t distance = squared(row_distance) + squared(kept_column - column);
        const std::uint64_t key = distance << ORDER_BITS | static_cast<std::uint64_t>(order);
        if (key < nearest.back()) {
            insert(nearest, key);
        }
    }
}

// Looks outwards row by row, until a row is farther away than the worst patch found.
Keys nearest_patches(const KeptRows& kept, int rows, int row, int column) {
    Keys nearest;
    nearest.fill(UINT64_MAX);
    search_row(kept, row, 0, column, nearest);
    for (int away = 1; away < rows && squared(away) << ORDER_BITS < nearest.back(); ++away) {
        if (row - away >= 0) {
            search_row(kept, row - away, away, column, nearest);
        }
        if (row + away < rows) {
            search_row(kept, row + away, away, column, nearest);
        }
    }
    return nearest;
}

// What one cell is made of.
struct Blend {
    std::array<const float*, NEIGHBOURS> token;
    std::array<float, NEIGHBOURS> weight;  // sums to 1
};

Blend blend_of(const Keys& nearest, const float* tokens, int channels) {
    Blend blend;
    for (int i = 0; i < NEIGHBOURS; ++i) {
        blend.token[i] = tokens + static_cast<std::size_t>(nearest[i] & ORDER_MASK) * channels;
        blend.weight[i] = 1.0f / (std::sqrt(static_cast<float>(nearest[i] >> ORDER_BITS)) + DISTANCE_OFFSET);
    }
    const auto& w = blend.weight;
    const float total = w[0] + w[1] + w[2] + w[3] + w[4];
    for (float& weight : blend.weight) {
        weight /= total;
    }
    return blend;
}

// Computes `count` channels from `channel` on of `cells` cells, and writes them from `out` on, `stride` cells apart.
// size_t throughout: with int, -fwrapv (among Python's own flags) keeps channel + i from being vectorised: 2x the time.
void write_tile(const Blend* blends, std::size_t cells, std::size_t channel, std::size_t count, std::size_t stride,
                float* out) {
    float tile[TILE_CELLS][TILE_CHANNELS];
    for (std::size_t cell = 0; cell < cells; ++cell) {
        const auto [a, b, c, d, e] = blends[cell].token;
        const auto w = blends[cell].weight;
        for (std::size_t i = 0; i < count; ++i) {
            tile[cell][i] = w[0] * a[channel + i] + w[1] * b[channel + i] + w[2] * c[channel + i] +
                            w[3] * d[channel + i] + w[4] * e[channel + i];
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t cell = 0; cell < cells; ++cell) {
            out[i * stride + cell] = tile[cell][i];
        }
    }
}

}  // namespace

void fill(const float* tokens, const std::int32_t* indices, int k, int channels, Grid grid, float* out,
          Scratch& scratch) {
    const KeptRows kept = kept_rows(indices, k, grid, scratch);
    const auto stride = static_cast<std::size_t>(grid.cells());
    std::array<Blend, TILE_CELLS> blends;
    for (int first = 0; first < grid.cells(); first += TILE_CELLS) {
        const int cells = std::min(TILE_CELLS, grid.cells() - first);
        for (int i = 0; i < cells; ++i) {
            const int cell = first + i;
            blends[i] = blend_of(nearest_patches(kept, grid.rows, cell / grid.columns, cell % grid.columns), tokens,
                                 channels);
        }
        for (int channel = 0; channel < channels; channel += TILE_CHANNELS) {
            write_tile(blends.data(), cells, channel, std::min(TILE_CHANNELS, channels - channel), stride,
                       out + channel * stride + first);
        }
    }
}

}  // namespace saccade
