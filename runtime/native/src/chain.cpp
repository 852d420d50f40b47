#include "chain.hpp"

#include <algorithm>
#include <chrono>
#include <string>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr std::size_t MAX_CACHED_BYTES = std::size_t{64} << 20;  // of position tables by grid, as in Python
constexpr std::uint8_t GREY = 128;

std::size_t bytes_of(const std::vector<float>& table) { return table.size() * sizeof(float); }

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

void check_outputs(const saccade_outputs& out, const saccade_sizes& sizes) {
    check_output("indices", out.indices, out.indices_capacity, sizes.indices);
    check_output("score_map", out.score_map, out.score_map_capacity, sizes.score_map);
    check_output("raw_score_map", out.raw_score_map, out.raw_score_map_capacity, sizes.raw_score_map);
    check_output("prefix", out.prefix, out.prefix_capacity, sizes.prefix);
    check_output("cls", out.cls, out.cls_capacity, sizes.cls);
    check_output("logits", out.logits, out.logits_capacity, sizes.logits);
    check_output("tokens", out.tokens, out.tokens_capacity, sizes.tokens);
    check_output("dense", out.dense, out.dense_capacity, sizes.dense);
    if (out.dense != nullptr && sizes.k < NEIGHBOURS) {
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

template <typename T>
void copy_out(const T* from, std::size_t count, T* to) {
    if (to != nullptr) {
        std::copy_n(from, count, to);
    }
}

}  // namespace

LoadedModel::LoadedModel(const Bundle& bundle, std::unique_ptr<Engine> loaded)
    : manifest(bundle.manifest), engine(std::move(loaded)), base_positions_(bundle.positions) {
    normalization_table(manifest.mean, manifest.std, table);
}

std::shared_ptr<const std::vector<float>> LoadedModel::positions_on(Grid grid) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Interpolated& each : cache_) {
        if (each.grid.rows == grid.rows && each.grid.columns == grid.columns) {
            return each.table;
        }
    }
    const auto dim = static_cast<std::size_t>(manifest.model.dim);
    auto table = std::make_shared<std::vector<float>>(static_cast<std::size_t>(grid.cells()) * dim);
    interpolate_positions(base_positions_.data(), manifest.model.base_grid, manifest.model.dim, grid, PositionRule::size, table->data());
    std::size_t held = bytes_of(*table);
    for (const Interpolated& each : cache_) {
        held += bytes_of(*each.table);
    }
    for (; held > MAX_CACHED_BYTES && !cache_.empty(); cache_.pop_front()) {
        held -= bytes_of(*cache_.front().table);
    }
    cache_.push_back({grid, table});
    return table;
}

// A call's time in its session: entered once, and left whatever happens. A cancel finds a call either under way or not.
class Session::Turn {
public:
    explicit Turn(Session& session) : session_(session) {
        const std::lock_guard<std::mutex> lock(session_.turn_mutex_);
        if (session_.busy_) {
            fail(SACCADE_BUSY, "another thread is running this session; make one session per thread");
        }
        session_.busy_ = true;
        session_.cancelled_ = false;
    }
    ~Turn() {
        const std::lock_guard<std::mutex> lock(session_.turn_mutex_);
        session_.busy_ = false;
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

private:
    Session& session_;
};

class Session::Clock {
public:
    double elapsed_ms() const {
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

template <typename Body>
void Session::stage(double saccade_timings::*field, Body body) {
    stop_if_cancelled();
    const Clock clock;
    body();
    under_way_.*field += clock.elapsed_ms();
}

Session::Session(std::shared_ptr<const LoadedModel> model) : model_(std::move(model)) {
    const Engine& engine = *model_->engine;
    if (engine.device() != nullptr) {
        on_device_ = std::make_unique<DeviceChain>(engine, model_->manifest, model_->table);
    } else {
        selector_ = engine.network(Role::selector, nullptr);
        extractor_ = engine.network(Role::extractor, nullptr);
    }
}

void Session::run(const saccade_image* images, std::size_t count, const saccade_run_options& options,
                  const saccade_outputs& out) {
    const Turn turn(*this);
    const Plan plan = plan_of(model_->manifest, images, count, options);
    check_k(plan.k, plan.grid.cells());
    check_pixels(images, count);
    check_outputs(out, sizes_of(model_->manifest, plan));
    take(images, count);
    run_all(plan, out);
}

void Session::look(const saccade_image* images, std::size_t count, saccade_run_options options, const saccade_outputs& out) {
    const Turn turn(*this);
    options.k = 1;  // one cell is selected, for its check of the map
    options.k_ratio = 0.0;
    const Plan plan = plan_of(model_->manifest, images, count, options);
    saccade_sizes sizes = sizes_of(model_->manifest, plan);
    check_pixels(images, count);
    sizes.indices = sizes.cls = sizes.logits = sizes.tokens = sizes.dense = 0;
    check_outputs(out, sizes);
    model_->engine->check_files();
    take(images, count);
    const Clock clock;
    under_way_ = SACCADE_TIMINGS_INIT;
    fit(plan);
    if (on_device_ != nullptr) {
        stop_if_cancelled();
        on_device_->look(plan, fitted_, out);
        stop_if_cancelled();
        on_device_->write(out);
    } else {
        run_selector(plan);
        select_cells(plan);
        stop_if_cancelled();
        copy_out(score_map_.data(), sizes.score_map, out.score_map);
        copy_out(raw_score_map_.data(), sizes.raw_score_map, out.raw_score_map);
        copy_out(prefix_.data(), sizes.prefix, out.prefix);
    }
    under_way_.total_ms = clock.elapsed_ms();
    timings_ = under_way_;
}

void Session::warm_up(const saccade_image* images, std::size_t count, const saccade_run_options& options) {
    const Turn turn(*this);
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
    std::vector<float> dense(plan.k >= NEIGHBOURS ? sizes_of(model_->manifest, plan).dense : 0);
    saccade_outputs out = SACCADE_OUTPUTS_INIT;
    out.dense = dense.empty() ? nullptr : dense.data();
    run_all(plan, out);
}

// Keeps the images as the kernels know them.
void Session::take(const saccade_image* images, std::size_t count) {
    given_.resize(count);
    std::transform(images, images + count, given_.begin(), image_of);
}

// The whole chain on the images taken; outputs are checked, and written at the end.
void Session::run_all(const Plan& plan, const saccade_outputs& out) {
    model_->engine->check_files();
    const Clock clock;
    under_way_ = SACCADE_TIMINGS_INIT;
    fit(plan);
    if (on_device_ != nullptr) {
        run_on_device(plan, out);
    } else {
        run_on_host(plan);
    }
    stage(&saccade_timings::fill_ms, [&] {
        if (on_device_ != nullptr) {
            on_device_->write(out);
        } else {
            copy_results(plan, out);
        }
    });
    under_way_.total_ms = clock.elapsed_ms();
    timings_ = under_way_;
}

void Session::run_on_host(const Plan& plan) {
    run_selector(plan);
    select_cells(plan);
    gather(plan);
    run_extractor(plan);
}

// One piece of work: its stages end on the device, where no clock of ours runs. What the device was given runs to its end.
void Session::run_on_device(const Plan& plan, const saccade_outputs& out) {
    stop_if_cancelled();
    keep_positions(plan.grid);
    on_device_->run(plan, fitted_, grid_positions_, out);
}

void Session::copy_results(const Plan& plan, const saccade_outputs& out) {
    const saccade_sizes sizes = sizes_of(model_->manifest, plan);
    if (out.dense != nullptr) {
        fill_dense(plan, out.dense);  // first: it may run out of memory, before it writes anything
    }
    copy_out(indices_.data(), sizes.indices, out.indices);
    copy_out(score_map_.data(), sizes.score_map, out.score_map);
    copy_out(raw_score_map_.data(), sizes.raw_score_map, out.raw_score_map);
    copy_out(prefix_.data(), sizes.prefix, out.prefix);
    copy_out(pooled_.data(), sizes.cls, out.cls);
    copy_out(pooled_.data(), sizes.logits, out.logits);
    copy_out(tokens_.data(), sizes.tokens, out.tokens);
}

void Session::cancel() noexcept {
    const std::lock_guard<std::mutex> lock(turn_mutex_);
    cancelled_ = busy_;
    if (running_ != nullptr) {
        running_->cancel();
    }
}

saccade_timings Session::timings() {
    const Turn turn(*this);
    return timings_;
}

void Session::stop_if_cancelled() const {
    if (cancelled_) {
        fail(SACCADE_CANCELLED, "cancelled by saccade_cancel");
    }
}

void Session::fit(const Plan& plan) {
    const auto needs_pixels = [&](const Image& each) {
        return plan.fit != SACCADE_FIT_NATIVE && (each.height != plan.height || each.width != plan.width);
    };
    const bool any = std::any_of(given_.begin(), given_.end(), needs_pixels);
    fitted_.resize(given_.size());
    std::uint8_t* pixels = nullptr;
    if (any) {
        pixels = on_device_ != nullptr ? on_device_->staging(plan) : pixels_.sized(given_.size() * plan.pixel_bytes());
    }
    for (std::size_t i = 0; i < given_.size(); ++i) {
        stage(&saccade_timings::fit_ms, [&] {
            fitted_[i] = fitted(given_[i], plan, any ? pixels + i * plan.pixel_bytes() : nullptr, scratch_);
        });
    }
}

void Session::run_selector(const Plan& plan) {
    const Model& model = model_->manifest.model;
    const std::int64_t batch = plan.batch, size = model.selector_size, map = model.map_size;
    const auto image_values = static_cast<std::size_t>(3 * size * size);
    float* lowres = lowres_.sized(fitted_.size() * image_values);
    float* raw = raw_score_map_.sized(static_cast<std::size_t>(batch * map * map));
    float* prefix = prefix_.sized(static_cast<std::size_t>(batch * model.prefix * model.dim));
    stage(&saccade_timings::resize_ms, [&] {
        for (std::size_t i = 0; i < fitted_.size(); ++i) {
            lowres_from_image(fitted_[i], model_->table, model.selector_size, lowres + i * image_values, scratch_);
        }
    });
    const Array inputs[] = {{"lowres", lowres, 4, {batch, 3, size, size}}};
    const Array outputs[] = {{"score_map", raw, 3, {batch, map, map, 0}},
                              {"prefix", prefix, 3, {batch, model.prefix, model.dim, 0}}};
    stage(&saccade_timings::selector_ms, [&] { run_network(*selector_, {inputs, 1}, {outputs, 2}); });
}

void Session::select_cells(const Plan& plan) {
    const int map = model_->manifest.model.map_size;
    const auto batch = static_cast<std::size_t>(plan.batch), k = static_cast<std::size_t>(plan.k);
    const auto map_values = static_cast<std::size_t>(map) * static_cast<std::size_t>(map);
    std::int32_t* indices = indices_.sized(batch * k);
    float* scores = score_map_.sized(batch * plan.cells());
    stage(&saccade_timings::select_ms, [&] {
        for (std::size_t i = 0; i < batch; ++i) {
            if (!select(raw_score_map_.data() + i * map_values, map, plan.grid, plan.k, indices + i * k,
                        scores + i * plan.cells(), scratch_)) {
                refuse_scores(static_cast<int>(i));
            }
        }
    });
}

void Session::keep_positions(Grid grid) {
    if (grid_positions_ == nullptr || grid_.rows != grid.rows || grid_.columns != grid.columns) {
        grid_positions_ = model_->positions_on(grid);
        grid_ = grid;
    }
}

void Session::gather(const Plan& plan) {
    const Model& model = model_->manifest.model;
    const auto batch = static_cast<std::size_t>(plan.batch), k = static_cast<std::size_t>(plan.k);
    const std::size_t patch_values = k * static_cast<std::size_t>(model.patch_pixels());
    const std::size_t position_values = k * static_cast<std::size_t>(model.dim);
    float* patches = patches_.sized(batch * patch_values);
    float* positions = positions_.sized(batch * position_values);
    stage(&saccade_timings::gather_ms, [&] {
        keep_positions(plan.grid);
        for (std::size_t i = 0; i < batch; ++i) {
            const std::int32_t* indices = indices_.data() + i * k;
            gather_patches(fitted_[i], model_->table, indices, plan.k, model.patch, plan.grid.columns, patches + i * patch_values);
            gather_positions(grid_positions_->data(), model.dim, indices, plan.k, positions + i * position_values);
        }
    });
}

void Session::run_extractor(const Plan& plan) {
    const Manifest& manifest = model_->manifest;
    const Model& model = manifest.model;
    const std::int64_t batch = plan.batch, k = plan.k, channels = manifest.token_channels();
    const std::int64_t pooled_channels = manifest.task == Task::classify ? model.classes : model.dim;
    float* tokens = tokens_.sized(static_cast<std::size_t>(batch * k * channels));
    float* pooled = pooled_.sized(static_cast<std::size_t>(batch * pooled_channels));
    const Array inputs[] = {{"patches", patches_.data(), 3, {batch, k, model.patch_pixels(), 0}},
                             {"positions", positions_.data(), 3, {batch, k, model.dim, 0}},
                             {"prefix", prefix_.data(), 3, {batch, model.prefix, model.dim, 0}}};
    const Array outputs[] = {{"tokens", tokens, 3, {batch, k, channels, 0}},
                              {manifest.task == Task::classify ? "logits" : "cls", pooled, 2, {batch, pooled_channels, 0, 0}}};
    const std::size_t count = manifest.task == Task::segment ? 1 : 2;
    stage(&saccade_timings::extractor_ms, [&] { run_network(*extractor_, {inputs, 3}, {outputs, count}); });
}

void Session::fill_dense(const Plan& plan, float* out) {
    const int channels = model_->manifest.token_channels();
    const auto batch = static_cast<std::size_t>(plan.batch), k = static_cast<std::size_t>(plan.k);
    for (std::size_t i = 0; i < batch; ++i) {
        fill(tokens_.data() + i * k * static_cast<std::size_t>(channels), indices_.data() + i * k, plan.k, channels, plan.grid,
             out + i * static_cast<std::size_t>(channels) * plan.cells(), scratch_);
    }
}

// Runs a network where a cancel can reach it. What it fails with after a cancel is the cancel.
void Session::run_network(Network& network, Arrays inputs, Arrays outputs) {
    const auto set_running = [this](Network* now) {
        const std::lock_guard<std::mutex> lock(turn_mutex_);
        running_ = now;
    };
    set_running(&network);
    try {
        network.run(inputs, outputs);
    } catch (...) {
        set_running(nullptr);
        stop_if_cancelled();
        throw;
    }
    set_running(nullptr);
    stop_if_cancelled();
}

}  // namespace saccade
