// A bundle's networks on one engine, and what all its sessions share.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"

namespace saccade {

using PositionTable = std::shared_ptr<const std::vector<float>>;

class LoadedModel {
public:
    LoadedModel(const Bundle& bundle, std::unique_ptr<Engine> engine);

    // The position table on a grid, (cells, dim), or (1 + cells, dim) of a backbone: resized once per grid while the cache
    // has room.
    PositionTable positions_on(Grid grid) const;

    const Manifest manifest;
    const std::unique_ptr<const Engine> engine;
    float table[3 * 256];  // the normalised value of each pixel value

private:
    struct Resized {
        Grid grid;
        PositionTable table;
    };
    std::vector<float> resized(Grid grid) const;

    std::vector<float> base_positions_;
    mutable std::mutex mutex_;
    mutable std::list<Resized> cache_;  // the oldest first
};

// The table of the grid that a session was at last, which no other session's grids push out of its hands.
class KeptPositions {
public:
    const PositionTable& on(const LoadedModel& model, Grid grid) {
        if (table_ == nullptr || grid_ != grid) {
            table_ = model.positions_on(grid);
            grid_ = grid;
        }
        return table_;
    }

private:
    Grid grid_{0, 0};
    PositionTable table_;
};

}  // namespace saccade
