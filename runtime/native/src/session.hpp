// A session: checks what a call is given, brings the images to size, and runs the chain on them.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "calls.hpp"
#include "chain.hpp"
#include "loaded_model.hpp"
#include "plan.hpp"
#include "saccade.h"

namespace saccade {

class Session {
public:
    explicit Session(std::shared_ptr<const LoadedModel> model);

    // See saccade.h. All throw Failure, and leave outputs untouched then.
    void run(const saccade_image* images, std::size_t count, const saccade_run_options& options, const saccade_outputs& outputs);
    void look(const saccade_image* images, std::size_t count, saccade_run_options options, const saccade_outputs& outputs);
    void warm_up(const saccade_image* images, std::size_t count, const saccade_run_options& options);
    void cancel() noexcept { calls_.cancel(); }
    saccade_timings timings();

private:
    void take(const saccade_image* images, std::size_t count);
    void run_all(const Plan& plan, const saccade_outputs& out);
    void fit(const Plan& plan);

    std::shared_ptr<const LoadedModel> model_;  // outlives the chain, whose networks read its engine's files
    Calls calls_;
    std::unique_ptr<Chain> chain_;
    Scratch scratch_;
    std::vector<Image> given_, fitted_;
};

}  // namespace saccade
