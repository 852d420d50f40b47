// What a call will make: the size its images come to, their grid, and k; checked before anything runs for nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bundle.hpp"
#include "kernels.hpp"
#include "saccade.h"

namespace saccade {

struct Plan {
    int batch;
    int fit;  // SACCADE_FIT_...
    int height;  // pixels
    int width;
    Grid grid;
    int k;

    std::size_t pixel_bytes() const { return std::size_t{3} * static_cast<std::size_t>(height) * static_cast<std::size_t>(width); }
    std::size_t cells() const { return static_cast<std::size_t>(grid.rows) * static_cast<std::size_t>(grid.columns); }
};

// Checks images, of which `pixels` need not be there, and options. Where these leave k to the bundle and its default does
// not fit the grid, the plan's k is 0, which a run refuses by `check_k` and a look does not need.
Plan plan_of(const Manifest& manifest, const saccade_image* images, std::size_t count, const saccade_run_options& options);
void check_k(std::int64_t k, int cells);

// The elements of each output that a plan makes; `struct_size` is set.
saccade_sizes sizes_of(const Manifest& manifest, const Plan& plan);

// What a run ends with where the scores of an image hold NaN or infinity.
[[noreturn]] void refuse_scores(int image);

// A checked image as the kernels know it.
Image image_of(const saccade_image& image);

// An image as the networks see it, plan.height x plan.width: a view of its own pixels where they fit, else of `buffer`,
// (height, width, 3), which it is resized into.
Image fitted(const Image& image, const Plan& plan, std::uint8_t* buffer, Scratch& scratch);

}  // namespace saccade
