// The chain: images -> selector -> top-k gather -> extractor -> features. `runtime/chain.py` is its twin in Python.
// What lies between the networks is done by the host here, and on a GPU by `device_chain.hpp`.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer.hpp"
#include "bundle.hpp"
#include "device_chain.hpp"
#include "engine.hpp"
#include "plan.hpp"
#include "saccade.h"

namespace saccade {

// A bundle's networks on one engine, and what all sessions share.
class LoadedModel {
public:
    LoadedModel(const Bundle& bundle, std::unique_ptr<Engine> engine);

    // The position table on a grid, (cells, dim): interpolated once per grid while the cache has room.
    std::shared_ptr<const std::vector<float>> positions_on(Grid grid) const;

    const Manifest manifest;
    const std::unique_ptr<const Engine> engine;
    float table[3 * 256];  // the normalised value of each pixel value

private:
    struct Interpolated {
        Grid grid;
        std::shared_ptr<const std::vector<float>> table;
    };
    std::vector<float> base_positions_;
    mutable std::mutex mutex_;
    mutable std::list<Interpolated> cache_;  // the oldest first
};

class Session {
public:
    explicit Session(std::shared_ptr<const LoadedModel> model);

    // See saccade.h. All throw Failure, and leave outputs untouched then.
    void run(const saccade_image* images, std::size_t count, const saccade_run_options& options, const saccade_outputs& outputs);
    void look(const saccade_image* images, std::size_t count, saccade_run_options options, const saccade_outputs& outputs);
    void warm_up(const saccade_image* images, std::size_t count, const saccade_run_options& options);
    void cancel() noexcept;
    saccade_timings timings();

private:
    class Turn;
    class Clock;

    void take(const saccade_image* images, std::size_t count);
    void run_all(const Plan& plan, const saccade_outputs& out);
    void fit(const Plan& plan);
    void keep_positions(Grid grid);
    void run_on_host(const Plan& plan);
    void run_on_device(const Plan& plan, const saccade_outputs& out);
    void run_selector(const Plan& plan);
    void select_cells(const Plan& plan);
    void gather(const Plan& plan);
    void run_extractor(const Plan& plan);
    void copy_results(const Plan& plan, const saccade_outputs& out);
    void fill_dense(const Plan& plan, float* out);
    void run_network(Network& network, Arrays inputs, Arrays outputs);
    void stop_if_cancelled() const;

    // A stage: the clock runs, and a cancelled session stops before the next.
    template <typename Body>
    void stage(double saccade_timings::*field, Body body);

    std::shared_ptr<const LoadedModel> model_;  // outlives the networks, which read its engine's files
    std::unique_ptr<DeviceChain> on_device_;  // where the engine has a device; else these two, and the arrays below
    std::unique_ptr<Network> selector_;
    std::unique_ptr<Network> extractor_;

    std::mutex turn_mutex_;  // of these three
    bool busy_ = false;
    Network* running_ = nullptr;  // the network that a cancel has to reach
    std::atomic<bool> cancelled_{false};  // written under the lock, looked at between stages without it

    saccade_timings timings_ = SACCADE_TIMINGS_INIT;  // of the last success
    saccade_timings under_way_ = SACCADE_TIMINGS_INIT;
    Scratch scratch_;
    std::vector<Image> given_, fitted_;
    Buffer<std::uint8_t> pixels_;
    Buffer<float> lowres_, raw_score_map_, prefix_, score_map_, patches_, positions_, pooled_, tokens_;
    Buffer<std::int32_t> indices_;
    Grid grid_{0, 0};  // that grid_positions_ is for
    std::shared_ptr<const std::vector<float>> grid_positions_;
};

}  // namespace saccade
