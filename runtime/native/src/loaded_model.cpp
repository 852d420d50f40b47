#include "loaded_model.hpp"

#include <algorithm>

namespace saccade {
namespace {

constexpr std::size_t MAX_CACHED_BYTES = std::size_t{64} << 20;  // of position tables by grid, as in Python

std::size_t bytes_of(const std::vector<float>& table) { return table.size() * sizeof(float); }

}  // namespace

LoadedModel::LoadedModel(const Bundle& bundle, std::unique_ptr<Engine> loaded)
    : manifest(bundle.manifest), engine(std::move(loaded)), base_positions_(bundle.positions) {
    normalization_table(manifest.mean, manifest.std, table);
}

PositionTable LoadedModel::positions_on(Grid grid) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Resized& each : cache_) {
        if (each.grid == grid) {
            return each.table;
        }
    }
    const auto table = std::make_shared<const std::vector<float>>(resized(grid));
    std::size_t held = bytes_of(*table);
    for (const Resized& each : cache_) {
        held += bytes_of(*each.table);
    }
    for (; held > MAX_CACHED_BYTES && !cache_.empty(); cache_.pop_front()) {
        held -= bytes_of(*cache_.front().table);
    }
    cache_.push_back({grid, table});
    return table;
}

std::vector<float> LoadedModel::resized(Grid grid) const {
    const Model& model = manifest.model;
    if (model.kind == Kind::backbone && grid == model.base_grid) {
        return base_positions_;  // untouched: not every rule would give the table back
    }
    const auto dim = static_cast<std::size_t>(model.dim);
    const std::size_t leading = static_cast<std::size_t>(model.leading_positions()) * dim;  // of the cls token, never resized
    std::vector<float> table(leading + static_cast<std::size_t>(grid.cells()) * dim);
    std::copy_n(base_positions_.data(), leading, table.data());
    interpolate_positions(base_positions_.data() + leading, model.base_grid, model.dim, grid, model.position_rule,
                          table.data() + leading);
    return table;
}

}  // namespace saccade
