// The dense fill: a block finds the 5 nearest kept patches of each of its cells once, and then blends all channels.
#pragma once

#include <cmath>

#include "block.cuh"
#include "kernels.hpp"
#include "launch.hpp"

namespace saccade::cuda {

constexpr float DISTANCE_OFFSET = 1e-8f;  // keeps the weight of a kept cell itself finite (1e8), as in fill.cpp
constexpr int FILL_KEPT = 1024;           // kept patches in shared memory at a time
constexpr int FILL_CHANNELS = 64;         // channels at a time

// Squared distance above the position in the list: no two keys are equal, and ties go to the earlier.
struct Nearest {
    std::uint64_t key[NEIGHBOURS];  // ascending
};

struct FillShared {
    struct {
        std::uint16_t row, column;
    } kept[FILL_KEPT];
    std::uint64_t nearest[FILL_SLICES][NEIGHBOURS][FILL_CELLS];
    int order[NEIGHBOURS][FILL_CELLS];  // of each cell's nearest patches, their positions in the list
    float weight[NEIGHBOURS][FILL_CELLS];
    float tile[FILL_CELLS][FILL_CHANNELS + 1];  // 1 more, so that a column lies in all banks
};

// Puts a key in its place; the largest falls out.
SACCADE_BOTH inline void insert(Nearest& nearest, std::uint64_t key) {
    for (std::uint64_t& place : nearest.key) {
        const std::uint64_t larger = key < place ? place : key;
        place = key < place ? key : place;
        key = larger;
    }
}

SACCADE_BOTH inline void load_nearest(const FillShared& shared, int slice, int lane, Nearest& nearest) {
    for (int i = 0; i < NEIGHBOURS; ++i) {
        nearest.key[i] = shared.nearest[slice][i][lane];
    }
}

SACCADE_BOTH inline void start_search(FillShared& shared, int thread) {
    for (int i = 0; i < NEIGHBOURS; ++i) {
        shared.nearest[thread / FILL_CELLS][i][thread % FILL_CELLS] = UINT64_MAX;
    }
}

SACCADE_BOTH inline void load_kept(const FillParams& p, Block block, int tile, FillShared& shared, int thread) {
    const std::int32_t* indices = p.indices + static_cast<std::int64_t>(block.image) * p.k;
    for (int i = thread; i < FILL_KEPT && tile + i < p.k; i += FILL_THREADS) {
        const int cell = indices[tile + i];
        shared.kept[i] = {static_cast<std::uint16_t>(cell / p.columns), static_cast<std::uint16_t>(cell % p.columns)};
    }
}

// Every thread looks for the nearest of its cell in its slice of the kept patches.
SACCADE_BOTH inline void search_tile(const FillParams& p, Block block, int tile, FillShared& shared, int thread) {
    const int lane = thread % FILL_CELLS;
    const int slice = thread / FILL_CELLS;
    const int cell = block.x * FILL_CELLS + lane;
    const int row = cell / p.columns;
    const int column = cell % p.columns;
    const int left = p.k - tile;
    const int count = left < FILL_KEPT ? left : FILL_KEPT;
    Nearest nearest;
    load_nearest(shared, slice, lane, nearest);
    for (int i = slice; i < count; i += FILL_SLICES) {
        // Unsigned: the square is the same below 2^32, and overflow is defined.
        const auto down = static_cast<std::uint32_t>(row - shared.kept[i].row);
        const auto right = static_cast<std::uint32_t>(column - shared.kept[i].column);
        const std::uint64_t key =
            static_cast<std::uint64_t>(down * down + right * right) << 32 | static_cast<std::uint32_t>(tile + i);
        if (key < nearest.key[NEIGHBOURS - 1]) {
            insert(nearest, key);
        }
    }
    for (int i = 0; i < NEIGHBOURS; ++i) {
        shared.nearest[slice][i][lane] = nearest.key[i];
    }
}

// One thread for each cell: the nearest of all slices, and their weights in the operations of fill.cpp.
SACCADE_BOTH inline void merge_slices(FillShared& shared, int lane) {
    if (lane >= FILL_CELLS) {
        return;
    }
    Nearest nearest;
    load_nearest(shared, 0, lane, nearest);
    for (int slice = 1; slice < FILL_SLICES; ++slice) {
        for (int i = 0; i < NEIGHBOURS; ++i) {
            insert(nearest, shared.nearest[slice][i][lane]);
        }
    }
    float weight[NEIGHBOURS];
    for (int i = 0; i < NEIGHBOURS; ++i) {
        weight[i] = 1.0f / (std::sqrt(static_cast<float>(nearest.key[i] >> 32)) + DISTANCE_OFFSET);
    }
    const float total = weight[0] + weight[1] + weight[2] + weight[3] + weight[4];
    for (int i = 0; i < NEIGHBOURS; ++i) {
        shared.order[i][lane] = static_cast<int>(nearest.key[i] & 0xFFFFFFFFu);
        shared.weight[i][lane] = weight[i] / total;
    }
}

// Threads lie along the channels, as the tokens do in memory.
SACCADE_BOTH inline void blend_tile(const FillParams& p, Block block, int first_channel, FillShared& shared,
                                    int thread) {
    const int channel = first_channel + thread % FILL_CHANNELS;
    if (channel >= p.channels) {
        return;
    }
    const float* tokens = p.tokens + static_cast<std::int64_t>(block.image) * p.k * p.channels + channel;
    for (int lane = thread / FILL_CHANNELS; lane < FILL_CELLS; lane += FILL_THREADS / FILL_CHANNELS) {
        if (block.x * FILL_CELLS + lane >= p.rows * p.columns) {
            return;
        }
        float sum = shared.weight[0][lane] * tokens[static_cast<std::int64_t>(shared.order[0][lane]) * p.channels];
        for (int i = 1; i < NEIGHBOURS; ++i) {
            sum += shared.weight[i][lane] * tokens[static_cast<std::int64_t>(shared.order[i][lane]) * p.channels];
        }
        shared.tile[lane][thread % FILL_CHANNELS] = sum;
    }
}

// Threads lie along the cells, as the output does.
SACCADE_BOTH inline void write_tile(const FillParams& p, Block block, int first_channel, const FillShared& shared,
                                    int thread) {
    const int lane = thread % FILL_CELLS;
    const int cell = block.x * FILL_CELLS + lane;
    const std::int64_t cells = p.rows * p.columns;
    if (cell >= cells) {
        return;
    }
    float* out = p.out + (static_cast<std::int64_t>(block.image) * p.channels + first_channel) * cells + cell;
    const int left = p.channels - first_channel;
    for (int i = thread / FILL_CELLS; i < FILL_CHANNELS && i < left; i += FILL_SLICES) {
        out[i * cells] = shared.tile[lane][i];
    }
}

template <class EachThread>
SACCADE_BOTH void fill_block(const FillParams& p, Block block, FillShared& shared, EachThread each_thread) {
    each_thread([&](int thread) { start_search(shared, thread); });
    for (int tile = 0; tile < p.k; tile += FILL_KEPT) {
        each_thread([&](int thread) { load_kept(p, block, tile, shared, thread); });
        each_thread([&](int thread) { search_tile(p, block, tile, shared, thread); });
    }
    each_thread([&](int thread) { merge_slices(shared, thread); });
    for (int channel = 0; channel < p.channels; channel += FILL_CHANNELS) {
        each_thread([&](int thread) { blend_tile(p, block, channel, shared, thread); });
        each_thread([&](int thread) { write_tile(p, block, channel, shared, thread); });
    }
}

}  // namespace saccade::cuda
