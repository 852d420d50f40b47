// Fuzz target: what is done to images around the networks. Sizes, strides, options and scores come from the input, and
// every buffer is exactly as large as these say, so that AddressSanitizer sees each byte read or written beside it.
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "failure.hpp"
#include "fuzz.hpp"
#include "kernels.hpp"
#include "plan.hpp"

using namespace saccade;

namespace {

constexpr std::int64_t MOST_BYTES = 1 << 15;  // of an image; what is larger is only planned, so that inputs take no time
constexpr std::size_t MOST_CELLS = 1 << 10;

// The input, read number by number; zeros once it is used up.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    template <typename T>
    T take() {
        T value{};
        const std::size_t count = std::min(sizeof value, left_);
        if (count > 0) {
            std::memcpy(&value, data_, count);
        }
        data_ += count;
        left_ -= count;
        return value;
    }
    int upto(int highest) { return 1 + take<std::uint8_t>() % highest; }
    // -511 to 511, so that most images can be run, or any number where `is_extreme`
    std::int64_t number(bool is_extreme) { return is_extreme ? take<std::int64_t>() : take<std::int16_t>() % 512; }

private:
    const std::uint8_t* data_;
    std::size_t left_;
};

// An image's memory: its rows and what lies between them, which nobody may read.
class Pixels {
public:
    static bool is_small(const saccade_image& image) {
        return image.height <= MOST_BYTES && image.width <= MOST_BYTES && stride(image) <= MOST_BYTES &&
               image.height * stride(image) <= MOST_BYTES;
    }
    explicit Pixels(saccade_image& image)
        : bytes_(static_cast<std::size_t>((image.height - 1) * stride(image) + 3 * image.width), 100) {
        for (std::int64_t row = 0; row + 1 < image.height; ++row) {
            const std::uint8_t* end = bytes_.data() + row * stride(image) + 3 * image.width;
            ASAN_POISON_MEMORY_REGION(end, static_cast<std::size_t>(stride(image) - 3 * image.width));
        }
        image.pixels = bytes_.data() + (image.row_stride < 0 ? (image.height - 1) * stride(image) : 0);
    }
    ~Pixels() { ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }
    Pixels(const Pixels&) = delete;
    Pixels& operator=(const Pixels&) = delete;

private:
    static std::int64_t stride(const saccade_image& image) {
        return image.row_stride == 0 ? 3 * image.width : std::abs(image.row_stride);
    }
    std::vector<std::uint8_t> bytes_;
};

// `rule` is LookWhere's, or makes it a plain backbone.
Manifest small_manifest(Input& input, PositionRule rule) {
    Manifest manifest{};
    Model& model = manifest.model;
    model.kind = rule == PositionRule::size ? Kind::lookwhere : Kind::backbone;
    model.position_rule = rule;
    model.heads = 1;
    model.depth = CLS_BLOCKS;
    model.dim = input.upto(8);
    model.prefix = 1;
    model.patch = input.upto(16);
    model.selector_size = model.patch * input.upto(4);
    model.map_size = input.upto(16);
    model.base_grid = {input.upto(8), input.upto(8)};
    manifest.defaults = {model.patch * 2, model.patch * 3, 0, model.kind == Kind::lookwhere ? 0.5 : 0.0};
    std::fill_n(manifest.std, 3, 1.0f);
    return manifest;
}

saccade_image read_image(Input& input, bool is_extreme) {
    saccade_image image = SACCADE_IMAGE_INIT;
    image.height = input.number(is_extreme);
    image.width = input.number(is_extreme);
    image.row_stride = input.number(is_extreme) * (is_extreme ? 1 : 4);
    image.format = input.take<std::int8_t>();
    return image;
}

saccade_run_options read_options(Input& input, bool is_extreme) {
    saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    options.fit = input.take<std::int8_t>();
    options.height = input.number(is_extreme);
    options.width = input.number(is_extreme);
    options.k = input.number(is_extreme);
    options.k_ratio = is_extreme ? input.take<double>() : input.take<std::int8_t>() / 64.0;
    return options;
}

void expect(bool met) {
    if (!met) {
        std::abort();
    }
}

// The kept cells are different ones of the grid, the best first.
void check_selection(const std::vector<std::int32_t>& indices, const std::vector<float>& scores) {
    for (std::size_t i = 0; i < indices.size(); ++i) {
        expect(indices[i] >= 0 && static_cast<std::size_t>(indices[i]) < scores.size());
        const auto better = i == 0 ? i : i - 1;
        expect(scores[static_cast<std::size_t>(indices[better])] >= scores[static_cast<std::size_t>(indices[i])]);
    }
    std::vector<std::int32_t> sorted = indices;
    std::sort(sorted.begin(), sorted.end());
    expect(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
}

// The position table on the grid of a plan.
std::vector<float> positions_on(const Model& model, const Plan& plan) {
    const auto dim = static_cast<std::size_t>(model.dim);
    const std::vector<float> base(static_cast<std::size_t>(model.base_grid.cells()) * dim, 1.0f);
    std::vector<float> positions(plan.cells() * dim);
    interpolate_positions(base.data(), model.base_grid, model.dim, plan.grid, model.position_rule, positions.data());
    return positions;
}

// One image of a plain backbone's run, up to its network. The weights of a position add up to 1, by either rule.
void run_backbone(const Manifest& manifest, const Plan& plan, const saccade_image& given, Scratch& scratch) {
    std::vector<float> table(3 * 256), image(plan.pixel_bytes());
    std::vector<std::uint8_t> buffer(plan.pixel_bytes());
    normalization_table(manifest.mean, manifest.std, table.data());
    normalize(fitted(image_of(given), plan, buffer.data(), scratch), table.data(), image.data());
    for (const float value : positions_on(manifest.model, plan)) {
        expect(value > 0.999f && value < 1.001f);
    }
}

// One image of a run, from its pixels to the dense output.
void run(const Manifest& manifest, const Plan& plan, const saccade_image& given, Input& input, Scratch& scratch) {
    const Model& model = manifest.model;
    const auto k = static_cast<std::size_t>(plan.k), dim = static_cast<std::size_t>(model.dim);
    const auto size = static_cast<std::size_t>(model.selector_size), map = static_cast<std::size_t>(model.map_size);
    std::vector<float> table(3 * 256);
    normalization_table(manifest.mean, manifest.std, table.data());

    std::vector<std::uint8_t> buffer(plan.pixel_bytes());
    const Image image = fitted(image_of(given), plan, buffer.data(), scratch);
    std::vector<float> lowres(3 * size * size);
    lowres_from_image(image, table.data(), model.selector_size, lowres.data(), scratch);

    std::vector<float> score_map(map * map), scores(plan.cells());
    std::generate(score_map.begin(), score_map.end(), [&] { return input.take<float>(); });
    std::vector<std::int32_t> indices(k);
    if (!select(score_map.data(), model.map_size, plan.grid, plan.k, indices.data(), scores.data(), scratch)) {
        return;
    }
    check_selection(indices, scores);

    std::vector<float> patches(k * static_cast<std::size_t>(model.patch_pixels()));
    gather_patches(image, table.data(), indices.data(), plan.k, model.patch, plan.grid.columns, patches.data());
    const std::vector<float> all_positions = positions_on(model, plan);
    std::vector<float> positions(k * dim);
    gather_positions(all_positions.data(), model.dim, indices.data(), plan.k, positions.data());
    if (plan.k >= NEIGHBOURS) {
        std::vector<float> dense(plan.cells() * dim);
        fill(positions.data(), indices.data(), plan.k, model.dim, plan.grid, dense.data(), scratch);
    }
}

}  // namespace

bool accepts(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    const auto flags = input.take<std::uint8_t>();
    const bool is_extreme = (flags & 1) != 0;
    constexpr PositionRule RULES[] = {PositionRule::size, PositionRule::scale_factor, PositionRule::size_antialias,
                                      PositionRule::size};
    const Manifest manifest = small_manifest(input, RULES[flags >> 3 & 3]);
    std::vector<saccade_image> images(flags >> 1 & 3);
    std::generate(images.begin(), images.end(), [&] { return read_image(input, is_extreme); });
    const saccade_run_options options = read_options(input, is_extreme);
    try {
        const Plan plan = plan_of(manifest, images.data(), images.size(), options);
        check_k(plan.k, plan.grid.cells());
        sizes_of(manifest, plan);
        Scratch scratch;
        for (saccade_image& image : images) {
            if (Pixels::is_small(image) && plan.pixel_bytes() <= MOST_BYTES && plan.cells() <= MOST_CELLS) {
                const Pixels pixels(image);
                manifest.model.kind == Kind::lookwhere ? run(manifest, plan, image, input, scratch)
                                                       : run_backbone(manifest, plan, image, scratch);
            }
        }
        return true;
    } catch (const Failure&) {
        return false;
    }
}
