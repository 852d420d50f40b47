// A plain backbone's chain: images -> one network that sees every patch -> features. `runtime/backbone.py` is its twin.
#pragma once

#include <memory>
#include <vector>

#include "buffer.hpp"
#include "chain.hpp"

namespace saccade {

class BackboneChain : public Chain {
public:
    BackboneChain(const LoadedModel& model, Calls& calls);

    std::uint8_t* pixels(const Plan& plan) override;
    void run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) override;
    void write(const Plan& plan, const saccade_outputs& out) override;

private:
    const LoadedModel& model_;
    Calls& calls_;
    std::unique_ptr<Network> backbone_;
    KeptPositions positions_;
    Buffer<std::uint8_t> pixels_;
    Buffer<float> image_, cls_, tokens_, attention_, cls_last4_;
};

}  // namespace saccade
