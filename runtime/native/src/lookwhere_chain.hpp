// LookWhere's chain: images -> selector -> top-k gather -> extractor -> features. `runtime/chain.py` is its twin in Python.
// What lies between the networks is done by the host here, and on a GPU by `device_chain.hpp`.
#pragma once

#include <memory>
#include <vector>

#include "buffer.hpp"
#include "chain.hpp"

namespace saccade {

class LookWhereChain : public Chain {
public:
    LookWhereChain(const LoadedModel& model, Calls& calls);

    std::uint8_t* pixels(const Plan& plan) override;
    void run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) override;
    void look(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) override;
    void write(const Plan& plan, const saccade_outputs& out) override;

private:
    void run_selector(const Plan& plan, const std::vector<Image>& images);
    void select_cells(const Plan& plan);
    void gather(const Plan& plan, const std::vector<Image>& images);
    void run_extractor(const Plan& plan);
    void fill_dense(const Plan& plan, float* out);

    const LoadedModel& model_;
    Calls& calls_;
    std::unique_ptr<Network> selector_, extractor_;
    KeptPositions all_positions_;
    Scratch scratch_;
    Buffer<std::uint8_t> pixels_;
    Buffer<float> lowres_, raw_score_map_, prefix_, score_map_, patches_, positions_, pooled_, tokens_;
    Buffer<std::int32_t> indices_;
};

}  // namespace saccade
