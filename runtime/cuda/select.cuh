// The top-k: the map resized to the grid, and each cell's rank among all cells.
//
// A rank is counted, not sorted for: it is the number of cells that are better, so every cell below rank k knows its
// place in the list. That is one comparison for each pair of cells (30 million on a 74x74 grid), spread over all
// multiprocessors, without histograms, without any limit on k, and the same work for every content.
#pragma once

#include <cmath>

#include "block.cuh"
#include "launch.hpp"

namespace saccade::cuda {

SACCADE_BOTH inline void resize_score(const SelectParams& p, Block block, int thread) {
    const int cell = block.x * RESIZE_THREADS + thread;
    const int cells = p.rows * p.columns;
    if (cell >= cells) {
        return;
    }
    const std::int64_t size = p.map_size;
    const float* map = p.maps + size * size * block.image;
    const BilinearTap row = bilinear_tap(cell / p.columns, p.map_size, p.rows);
    const BilinearTap column = bilinear_tap(cell % p.columns, p.map_size, p.columns);
    const float* top = map + row.first * size;
    const float* bottom = map + row.second * size;
    p.scores[static_cast<std::int64_t>(block.image) * cells + cell] =
        bilinear(row, column, top[column.first], top[column.second], bottom[column.first], bottom[column.second]);
}

constexpr int RANK_TILE = 4096;  // scores in shared memory at a time: 16 KiB

struct RankShared {
    alignas(16) float tile[RANK_TILE];  // all threads of a warp read the same four scores in one go
    int rank[RANK_CELLS];
    int not_finite;
};

// What the phases of one block share: its image's arrays and its cells.
struct RankBlock {
    const float* map;
    std::int64_t map_values;
    const float* scores;
    int cells;
    int first_cell;
};

SACCADE_BOTH inline void start_ranks(RankShared& shared, int thread) {
    if (thread < RANK_CELLS) {
        shared.rank[thread] = 0;
    }
    if (thread == 0) {
        shared.not_finite = 0;
    }
}

// Beside the scores the map itself is looked at, since a resize that shrinks it skips values.
SACCADE_BOTH inline void check_map(const RankBlock& own, RankShared& shared, int thread) {
    for (std::int64_t i = thread; i < own.map_values; i += RANK_THREADS) {
        if (!is_finite(own.map[i])) {
            shared.not_finite = 1;
        }
    }
}

// Beyond the last cell there is -infinity, which is better than nothing.
SACCADE_BOTH inline void load_tile(const RankBlock& own, int tile, RankShared& shared, int thread) {
    for (int i = thread; i < RANK_TILE; i += RANK_THREADS) {
        float score = -INFINITY;
        if (tile + i < own.cells) {
            score = own.scores[tile + i];
            if (!is_finite(score)) {
                shared.not_finite = 1;
            }
        }
        shared.tile[i] = score;
    }
}

// How many of the four cells from `other` on, with the scores `score`, are better than `cell` with the score `mine`.
// They lie before, within or after the block's cells, so all threads of a warp take the same way. Ties: the lower cell.
SACCADE_BOTH inline int count_better(const RankBlock& own, const float* score, int other, int cell, float mine) {
    const float a = score[0], b = score[1], c = score[2], d = score[3];
    if (other < own.first_cell) {
        return (a >= mine) + (b >= mine) + (c >= mine) + (d >= mine);
    }
    const int better = (a > mine) + (b > mine) + (c > mine) + (d > mine);
    if (other >= own.first_cell + RANK_CELLS) {
        return better;
    }
    return better + (a == mine && other < cell) + (b == mine && other + 1 < cell) + (c == mine && other + 2 < cell) +
           (d == mine && other + 3 < cell);
}

SACCADE_BOTH inline void count_tile(const RankBlock& own, int tile, RankShared& shared, int thread) {
    const int lane = thread % RANK_CELLS;
    const int cell = own.first_cell + lane;
    if (cell >= own.cells) {
        return;
    }
    const float mine = own.scores[cell];
    const int left = own.cells - tile;
    const int count = left < RANK_TILE ? left : RANK_TILE;
    int better = 0;
    for (int i = 4 * (thread / RANK_CELLS); i < count; i += 4 * RANK_SLICES) {
        better += count_better(own, shared.tile + i, tile + i, cell, mine);
    }
    atomic_add(&shared.rank[lane], better);
}

SACCADE_BOTH inline void write_ranks(const SelectParams& p, Block block, const RankBlock& own,
                                     const RankShared& shared, int thread) {
    const int cell = own.first_cell + thread;
    if (thread < RANK_CELLS && cell < own.cells) {
        const int rank = shared.not_finite != 0 ? cell : shared.rank[thread];
        if (rank < p.k) {
            p.indices[static_cast<std::int64_t>(block.image) * p.k + rank] = cell;
        }
    }
    if (block.x == 0 && thread == 0) {
        p.status[block.image] = shared.not_finite;
    }
}

template <class EachThread>
SACCADE_BOTH void rank_block(const SelectParams& p, Block block, RankShared& shared, EachThread each_thread) {
    const int cells = p.rows * p.columns;
    const std::int64_t map_values = static_cast<std::int64_t>(p.map_size) * p.map_size;
    const RankBlock own{p.maps + map_values * block.image, map_values,
                        p.scores + static_cast<std::int64_t>(block.image) * cells, cells, block.x * RANK_CELLS};
    each_thread([&](int thread) { start_ranks(shared, thread); });
    each_thread([&](int thread) { check_map(own, shared, thread); });
    for (int tile = 0; tile < cells; tile += RANK_TILE) {
        each_thread([&](int thread) { load_tile(own, tile, shared, thread); });
        each_thread([&](int thread) { count_tile(own, tile, shared, thread); });
    }
    each_thread([&](int thread) { write_ranks(p, block, own, shared, thread); });
}

}  // namespace saccade::cuda
