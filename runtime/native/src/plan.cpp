#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr std::size_t MAX_BATCH = 1024;  // far beyond what runs faster than batches of 8
constexpr std::int64_t MAX_PIXELS = 178956970;  // of an image resized to be cropped, as in Python

std::string pixels(std::int64_t height, std::int64_t width) {
    return std::to_string(width) + " x " + std::to_string(height) + " px";
}

std::string number(std::size_t index) { return "image " + std::to_string(index) + ": "; }

void check_image(const saccade_image& image, std::size_t index) {
    if (image.height < 1 || image.height > MAX_EXTENT || image.width < 1 || image.width > MAX_EXTENT) {
        fail(SACCADE_INVALID_ARGUMENT, number(index) + pixels(image.height, image.width) + " is out of range; give 1 to " +
                                           std::to_string(MAX_EXTENT) + " each");
    }
    const std::int64_t packed = 3 * image.width;
    constexpr std::int64_t MAX_STRIDE = std::int64_t{1} << 40;
    if (image.row_stride != 0 && (image.row_stride > MAX_STRIDE || image.row_stride < -MAX_STRIDE ||
                                  std::abs(image.row_stride) < packed)) {
        fail(SACCADE_INVALID_ARGUMENT, number(index) + "row_stride " + std::to_string(image.row_stride) +
                                           " is out of range; a row has " + std::to_string(packed) + " bytes");
    }
    if (image.format != SACCADE_RGB && image.format != SACCADE_BGR) {
        fail(SACCADE_INVALID_ARGUMENT, number(index) + "format " + std::to_string(image.format) +
                                           " is unknown; give SACCADE_RGB or SACCADE_BGR");
    }
    if (image.reserved != 0) {
        fail(SACCADE_INVALID_ARGUMENT, number(index) + "reserved must be 0; start from SACCADE_IMAGE_INIT");
    }
}

// The size of an image cut to whole patches.
void native_size(const saccade_image* images, std::size_t count, int patch, Plan& plan) {
    for (std::size_t i = 0; i < count; ++i) {
        const int height = static_cast<int>(images[i].height) / patch * patch;
        const int width = static_cast<int>(images[i].width) / patch * patch;
        if (height == 0 || width == 0) {
            fail(SACCADE_INVALID_ARGUMENT, number(i) + "smaller than one " + std::to_string(patch) + " px patch; use fit squash");
        }
        if (i > 0 && (height != plan.height || width != plan.width)) {
            fail(SACCADE_INVALID_ARGUMENT, "images of one run share a grid: image 0 is " + pixels(plan.height, plan.width) +
                                               " in whole patches, image " + std::to_string(i) + " is " + pixels(height, width) +
                                               "; run them apart, or use fit squash or crop");
        }
        plan.height = height;
        plan.width = width;
    }
}

void asked_size(const Manifest& manifest, const saccade_run_options& options, Plan& plan) {
    const bool is_default = options.height == 0 && options.width == 0;
    const std::int64_t height = is_default ? manifest.defaults.height : options.height;
    const std::int64_t width = is_default ? manifest.defaults.width : options.width;
    const int patch = manifest.model.patch;
    const auto fits = [patch](std::int64_t extent) { return extent >= 1 && extent <= MAX_EXTENT && extent % patch == 0; };
    if (!fits(height) || !fits(width)) {
        fail(SACCADE_INVALID_ARGUMENT, "size " + pixels(height, width) + " is not to be had; give multiples of the " +
                                           std::to_string(patch) + " px patch");
    }
    plan.height = static_cast<int>(height);
    plan.width = static_cast<int>(width);
}

// 0 where the caller leaves it to the bundle, whose default does not fit this grid: a look needs none.
int kept(const Manifest& manifest, const saccade_run_options& options, int cells) {
    if (manifest.model.kind == Kind::backbone) {
        require(options.k == 0 && options.k_ratio == 0.0,
                "a plain backbone keeps every patch, so it takes no k and no k_ratio; leave both at 0");
        return cells;
    }
    if (options.k != 0 && options.k_ratio != 0.0) {
        fail(SACCADE_INVALID_ARGUMENT, "k and k_ratio are both given; give one of them");
    }
    if (options.k == 0 && options.k_ratio == 0.0) {
        const std::int64_t k = manifest.defaults.k_on(cells);
        return k >= 1 && k <= cells ? static_cast<int>(k) : 0;
    }
    if (options.k_ratio != 0.0 && !(options.k_ratio > 0.0 && options.k_ratio <= 1.0)) {
        fail(SACCADE_INVALID_ARGUMENT,
             "k_ratio " + std::to_string(options.k_ratio) + " is no share of the patches; give above 0, up to 1");
    }
    const std::int64_t k = options.k != 0 ? options.k : static_cast<std::int64_t>(options.k_ratio * cells);
    check_k(k, cells);
    return static_cast<int>(k);
}

// What an image is resized to so that its shorter side fits and the centre can be cut out.
Size covering_size(std::int64_t height, std::int64_t width, const Plan& plan) {
    const double scale = std::max(double(plan.height) / double(height), double(plan.width) / double(width));
    const auto covering = [scale](int wanted, std::int64_t extent) {  // nearbyint rounds halves to even, as Python's round does
        return std::max<std::int64_t>(wanted, static_cast<std::int64_t>(std::nearbyint(double(extent) * scale)));
    };
    const std::int64_t to_height = covering(plan.height, height), to_width = covering(plan.width, width);
    if (to_height > MAX_EXTENT || to_width > MAX_EXTENT || to_height * to_width > MAX_PIXELS) {
        fail(SACCADE_INVALID_ARGUMENT, "a " + pixels(height, width) + " image is too narrow for fit crop; use fit squash");
    }
    return {static_cast<int>(to_height), static_cast<int>(to_width)};
}

Image centre_crop(const Image& image, const Plan& plan, std::uint8_t* buffer, Scratch& scratch) {
    const Size to = covering_size(image.height, image.width, plan);
    const Box centre{(to.height - plan.height) / 2, (to.width - plan.width) / 2, plan.height, plan.width};
    resize_bicubic(image, to, centre, buffer, scratch);
    return {buffer, plan.height, plan.width, std::ptrdiff_t{3} * plan.width, image.bgr};
}

}  // namespace

void check_k(std::int64_t k, int cells) {
    if (k < 1 || k > cells) {
        fail(SACCADE_INVALID_ARGUMENT, "k " + std::to_string(k) + " is not to be had: this grid has " + std::to_string(cells) +
                                           " patches, so give 1 to " + std::to_string(cells));
    }
}

Plan plan_of(const Manifest& manifest, const saccade_image* images, std::size_t count, const saccade_run_options& options) {
    require(images != nullptr, "images is NULL; give an array of saccade_image");
    if (count < 1 || count > MAX_BATCH) {
        fail(SACCADE_INVALID_ARGUMENT, std::to_string(count) + " images are not to be had; give 1 to " + std::to_string(MAX_BATCH));
    }
    for (std::size_t i = 0; i < count; ++i) {
        check_image(images[i], i);
    }
    Plan plan{};
    plan.batch = static_cast<int>(count);
    plan.fit = options.fit;
    if (options.fit == SACCADE_FIT_NATIVE) {
        require(options.height == 0 && options.width == 0, "size and fit native exclude each other; leave height and width at 0");
        native_size(images, count, manifest.model.patch, plan);
    } else {
        require(options.fit == SACCADE_FIT_SQUASH || options.fit == SACCADE_FIT_CROP,
                "fit is unknown; give SACCADE_FIT_SQUASH, _CROP or _NATIVE");
        asked_size(manifest, options, plan);
    }
    for (std::size_t i = 0; options.fit == SACCADE_FIT_CROP && i < count; ++i) {
        covering_size(images[i].height, images[i].width, plan);  // for its check
    }
    plan.grid = {plan.height / manifest.model.patch, plan.width / manifest.model.patch};
    if (plan.cells() > MAX_GRID_CELLS) {
        fail(SACCADE_INVALID_ARGUMENT, "size " + pixels(plan.height, plan.width) + " makes " + std::to_string(plan.cells()) +
                                           " patches; at most " + std::to_string(MAX_GRID_CELLS) + " are supported");
    }
    plan.k = kept(manifest, options, plan.grid.cells());
    return plan;
}

saccade_sizes sizes_of(const Manifest& manifest, const Plan& plan) {
    const Model& model = manifest.model;
    const auto of = [&](std::initializer_list<int> extents) {
        std::size_t product = static_cast<std::size_t>(plan.batch);
        for (const int extent : extents) {
            product *= static_cast<std::size_t>(extent);
        }
        return product;
    };
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    sizes.batch = plan.batch;
    sizes.rows = plan.grid.rows;
    sizes.columns = plan.grid.columns;
    sizes.k = plan.k;
    if (model.kind == Kind::lookwhere) {
        sizes.indices = of({plan.k});
        sizes.score_map = of({plan.grid.cells()});
        sizes.raw_score_map = of({model.map_size, model.map_size});
        sizes.prefix = of({model.prefix, model.dim});
    } else {
        sizes.attention = of({model.heads, plan.grid.cells()});
        sizes.cls_last4 = model.has_cls_last4() ? of({CLS_BLOCKS, model.dim}) : 0;
    }
    sizes.cls = manifest.task == Task::features ? of({model.dim}) : 0;
    sizes.logits = manifest.task == Task::classify ? of({model.classes}) : 0;
    sizes.tokens = of({plan.k, manifest.token_channels()});
    sizes.dense = of({manifest.token_channels(), plan.grid.cells()});
    return sizes;
}

void refuse_scores(int image) {
    fail(SACCADE_NOT_FINITE, number(static_cast<std::size_t>(image)) +
                                 "the score map holds NaN or infinity, so the selector overflowed; run it in fp32 or export the bundle again");
}

Image image_of(const saccade_image& given) {
    const std::ptrdiff_t stride = given.row_stride != 0 ? given.row_stride : 3 * given.width;
    return {given.pixels, static_cast<int>(given.height), static_cast<int>(given.width), stride, given.format == SACCADE_BGR};
}

Image fitted(const Image& image, const Plan& plan, std::uint8_t* buffer, Scratch& scratch) {
    if (plan.fit == SACCADE_FIT_NATIVE || (image.height == plan.height && image.width == plan.width)) {
        return {image.pixels, plan.height, plan.width, image.row_stride, image.bgr};
    }
    if (plan.fit == SACCADE_FIT_CROP) {
        return centre_crop(image, plan, buffer, scratch);
    }
    resize_bicubic(image, {plan.height, plan.width}, {0, 0, plan.height, plan.width}, buffer, scratch);
    return {buffer, plan.height, plan.width, std::ptrdiff_t{3} * plan.width, image.bgr};
}

}  // namespace saccade
