// What a session runs: the networks of one kind of bundle, and what lies around them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "calls.hpp"
#include "failure.hpp"
#include "loaded_model.hpp"
#include "plan.hpp"
#include "saccade.h"

namespace saccade {

// Used by one thread at a time; all throw Failure.
class Chain {
public:
    virtual ~Chain() = default;

    // Room for a plan's images, packed one after the other; images that lie there are used where they are.
    virtual std::uint8_t* pixels(const Plan& plan) = 0;

    // Runs all of it on images of plan.height x plan.width, or the selector alone, where there is one; what that makes stays
    // in the chain. `out` says what is wanted of it.
    virtual void run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs& out) = 0;
    virtual void look(const Plan&, const std::vector<Image>&, const saccade_outputs&) {
        fail(SACCADE_INTERNAL, "this chain has no selector");
    }

    // Copies what the call before was to put out to there; if it fails, it has written nothing.
    virtual void write(const Plan& plan, const saccade_outputs& out) = 0;
};

// The chain for a model's kind and engine; it keeps both references.
std::unique_ptr<Chain> make_chain(const LoadedModel& model, Calls& calls);

template <typename T>
void copy_out(const T* from, std::size_t count, T* to) {
    if (to != nullptr) {
        std::copy_n(from, count, to);
    }
}

}  // namespace saccade
