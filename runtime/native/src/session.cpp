#include "session.hpp"

#include <algorithm>
#include <string>

#include "backbone_chain.hpp"
#include "device_chain.hpp"
#include "failure.hpp"
#include "lookwhere_chain.hpp"

namespace saccade {
namespace {

constexpr std::uint8_t GREY = 128;

// One output as the caller asked for it, and what there will be of it.
template <typename T>
void check_output(const char* name, const T* data, std::size_t capacity, std::size_t needed) {
    if (data == nullptr) {
        return;
    }
    if (needed == 0) {
        fail(SACCADE_INVALID_ARGUMENT, std::string(name) + " is no output of this call or task; leave it NULL");
    }
    if (capacity < needed) {
        fail(SACCADE_BUFFER_TOO_SMALL, std::string(name) + " needs " + std::to_string(needed) + " elements, but its capacity is " +
                                           std::to_string(capacity) + "; ask saccade_plan");
    }
}

// Whether `k` tokens make dense output: LookWhere's are blended, and a backbone has one for each cell.
bool can_fill(const Model& model, int k) { return model.kind == Kind::backbone || k >= NEIGHBOURS; }

void check_outputs(const saccade_outputs& out, const Model& model, const saccade_sizes& sizes) {
    check_output("indices", out.indices, out.indices_capacity, sizes.indices);
    check_output("score_map", out.score_map, out.score_map_capacity, sizes.score_map);
    check_output("raw_score_map", out.raw_score_map, out.raw_score_map_capacity, sizes.raw_score_map);
    check_output("prefix", out.prefix, out.prefix_capacity, sizes.prefix);
    check_output("cls", out.cls, out.cls_capacity, sizes.cls);
    check_output("logits", out.logits, out.logits_capacity, sizes.logits);
    check_output("tokens", out.tokens, out.tokens_capacity, sizes.tokens);
    check_output("dense", out.dense, out.dense_capacity, sizes.dense);
    check_output("attention", out.attention, out.attention_capacity, sizes.attention);
    check_output("cls_last4", out.cls_last4, out.cls_last4_capacity, sizes.cls_last4);
    if (out.dense != nullptr && !can_fill(model, sizes.k)) {
        fail(SACCADE_INVALID_ARGUMENT, "k " + std::to_string(sizes.k) + " is too small for dense output, which blends the " +
                                           std::to_string(NEIGHBOURS) + " nearest patches; give at least " + std::to_string(NEIGHBOURS));
    }
}

void check_pixels(const saccade_image* images, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        if (images[i].pixels == nullptr) {
            fail(SACCADE_INVALID_ARGUMENT, "image " + std::to_string(i) + ": pixels is NULL; give its first row");
        }
    }
}

}  // namespace

std::unique_ptr<Chain> make_chain(const LoadedModel& model, Calls& calls) {
    if (model.manifest.model.kind == Kind::backbone) {
        return std::make_unique<BackboneChain>(model, calls);
    }
    if (model.engine->device() != nullptr) {
        return std::make_unique<DeviceChain>(model);
    }
    return std::make_unique<LookWhereChain>(model, calls);
}

Session::Session(std::shared_ptr<const LoadedModel> model) : model_(std::move(model)), chain_(make_chain(*model_, calls_)) {}

void Session::run(const saccade_image* images, std::size_t count, const saccade_run_options& options,
                  const saccade_outputs& out) {
    const Calls::Turn turn(calls_);
    const Plan plan = plan_of(model_->manifest, images, count, options);
    check_k(plan.k, plan.grid.cells());
    check_pixels(images, count);
    check_outputs(out, model_->manifest.model, sizes_of(model_->manifest, plan));
    take(images, count);
    run_all(plan, out);
}

void Session::look(const saccade_image* images, std::size_t count, saccade_run_options options, const saccade_outputs& out) {
    require(model_->manifest.model.kind == Kind::lookwhere, "a plain backbone has no selector to look with; use saccade_run");
    const Calls::Turn turn(calls_);
    options.k = 1;  // one cell is selected, for its check of the map
    options.k_ratio = 0.0;
    const Plan plan = plan_of(model_->manifest, images, count, options);
    saccade_sizes sizes = sizes_of(model_->manifest, plan);
    check_pixels(images, count);
    sizes.indices = sizes.cls = sizes.logits = sizes.tokens = sizes.dense = 0;
    check_outputs(out, model_->manifest.model, sizes);
    model_->engine->check_files();
    take(images, count);
    calls_.begin();
    fit(plan);
    calls_.stop_if_cancelled();
    chain_->look(plan, fitted_, out);
    calls_.stop_if_cancelled();
    chain_->write(plan, out);
    calls_.succeed();
}

void Session::warm_up(const saccade_image* images, std::size_t count, const saccade_run_options& options) {
    const Calls::Turn turn(calls_);
    const Plan plan = plan_of(model_->manifest, images, count, options);
    check_k(plan.k, plan.grid.cells());
    take(images, count);
    int widest = 0;
    for (const Image& each : given_) {
        widest = std::max(widest, each.width);
    }
    const std::vector<std::uint8_t> grey_row(std::size_t{3} * static_cast<std::size_t>(widest), GREY);
    for (Image& each : given_) {  // every row of each image is this one
        each.pixels = grey_row.data();
        each.row_stride = 0;
    }
    std::vector<float> dense(can_fill(model_->manifest.model, plan.k) ? sizes_of(model_->manifest, plan).dense : 0);
    saccade_outputs out = SACCADE_OUTPUTS_INIT;
    out.dense = dense.empty() ? nullptr : dense.data();
    run_all(plan, out);
}

// Keeps the images as the kernels know them.
void Session::take(const saccade_image* images, std::size_t count) {
    given_.resize(count);
    std::transform(images, images + count, given_.begin(), image_of);
}

// The whole chain on the images taken; outputs are checked, and written at the end. What a device was given runs to its end.
void Session::run_all(const Plan& plan, const saccade_outputs& out) {
    model_->engine->check_files();
    calls_.begin();
    fit(plan);
    calls_.stop_if_cancelled();
    chain_->run(plan, fitted_, out);
    calls_.stage(&saccade_timings::fill_ms, [&] { chain_->write(plan, out); });
    calls_.succeed();
}

saccade_timings Session::timings() {
    const Calls::Turn turn(calls_);
    return calls_.timings();
}

void Session::fit(const Plan& plan) {
    const auto needs_pixels = [&](const Image& each) {
        return plan.fit != SACCADE_FIT_NATIVE && (each.height != plan.height || each.width != plan.width);
    };
    const bool any = std::any_of(given_.begin(), given_.end(), needs_pixels);
    fitted_.resize(given_.size());
    std::uint8_t* const pixels = any ? chain_->pixels(plan) : nullptr;
    for (std::size_t i = 0; i < given_.size(); ++i) {
        calls_.stage(&saccade_timings::fit_ms, [&] {
            fitted_[i] = fitted(given_[i], plan, any ? pixels + i * plan.pixel_bytes() : nullptr, scratch_);
        });
    }
}

}  // namespace saccade
