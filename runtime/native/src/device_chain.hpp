// The chain on a GPU: pixels up, both networks and the kernels between them on one stream, results down.
// `runtime/gpu_frame.py` and `gpu_slot.py` are its twins in Python, which capture it as a CUDA graph besides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "chain.hpp"
#include "device.hpp"

namespace saccade {

// Nothing of it is under way between two calls, whether they fail or not. Its stages end on the device, where no clock of
// ours runs.
class DeviceChain : public Chain {
public:
    explicit DeviceChain(const LoadedModel& model);

    // Pinned memory that images go to the device from.
    std::uint8_t* pixels(const Plan& plan) override;

    // Both fail with SACCADE_NOT_FINITE where a score is no finite number.
    void run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) override;
    void look(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) override;
    void write(const Plan& plan, const saccade_outputs& out) override;

private:
    // Where an array of 4-byte elements lies in its block.
    struct Part {
        std::size_t offset;  // bytes
        std::size_t count;
        std::size_t bytes() const { return count * 4; }
    };
    struct Layout;
    struct Settled;

    void keep_positions(const PositionTable& positions);
    void lay_out(const Plan& plan, bool dense);
    void upload(const Plan& plan, const std::vector<Image>& images);
    void enqueue_selector(const Plan& plan);
    void enqueue_extractor(const Plan& plan);
    void enqueue_fill(const Plan& plan);
    void fetch(const Plan& plan, const saccade_outputs& out);

    float* input(const Part& part) const { return reinterpret_cast<float*>(inputs_.data() + part.offset); }
    float* result(const Part& part) const { return reinterpret_cast<float*>(results_.data() + part.offset); }
    std::int32_t* numbers(const Part& part) const { return reinterpret_cast<std::int32_t*>(results_.data() + part.offset); }
    const cuda::ImageView* views(const Plan& plan) const;

    template <typename Visit>
    void each_wanted(const saccade_outputs& out, Visit visit) const;

    const LoadedModel& model_;
    const Manifest& manifest_;
    std::shared_ptr<const Device> device_;
    DeviceStream stream_;
    DeviceMemory table_, grid_positions_;  // what stays from call to call
    DeviceMemory staging_, images_;        // the pixels, and then the kernels' views of them; alike
    DeviceMemory inputs_;                  // of the networks
    DeviceMemory results_, fetched_;       // what a call may give; alike
    std::unique_ptr<Network> selector_, extractor_;  // go first: they may hold on to the memory
    KeptPositions all_positions_;
    PositionTable kept_;  // the table that grid_positions_ holds, or nullptr

    Part lowres_, patches_, positions_;  // of inputs_
    Part status_, indices_, score_map_, raw_score_map_, prefix_, pooled_, tokens_, dense_;  // of results_
};

}  // namespace saccade
