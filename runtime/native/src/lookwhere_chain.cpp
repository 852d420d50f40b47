#include "lookwhere_chain.hpp"

namespace saccade {

LookWhereChain::LookWhereChain(const LoadedModel& model, Calls& calls)
    : model_(model),
      calls_(calls),
      selector_(model.engine->network(Role::selector, nullptr)),
      extractor_(model.engine->network(Role::extractor, nullptr)) {}

std::uint8_t* LookWhereChain::pixels(const Plan& plan) {
    return pixels_.sized(static_cast<std::size_t>(plan.batch) * plan.pixel_bytes());
}

void LookWhereChain::run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs&) {
    run_selector(plan, images);
    select_cells(plan);
    gather(plan, images);
    run_extractor(plan);
}

void LookWhereChain::look(const Plan& plan, const std::vector<Image>& images, const saccade_outputs&) {
    run_selector(plan, images);
    select_cells(plan);  // of one cell, for its check of the map
}

void LookWhereChain::write(const Plan& plan, const saccade_outputs& out) {
    const saccade_sizes sizes = sizes_of(model_.manifest, plan);
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

void LookWhereChain::run_selector(const Plan& plan, const std::vector<Image>& images) {
    const Model& model = model_.manifest.model;
    const std::int64_t batch = plan.batch, size = model.selector_size, map = model.map_size;
    const auto image_values = static_cast<std::size_t>(3 * size * size);
    float* lowres = lowres_.sized(images.size() * image_values);
    float* raw = raw_score_map_.sized(static_cast<std::size_t>(batch * map * map));
    float* prefix = prefix_.sized(static_cast<std::size_t>(batch * model.prefix * model.dim));
    calls_.stage(&saccade_timings::resize_ms, [&] {
        for (std::size_t i = 0; i < images.size(); ++i) {
            lowres_from_image(images[i], model_.table, model.selector_size, lowres + i * image_values, scratch_);
        }
    });
    const Array inputs[] = {{"lowres", lowres, 4, {batch, 3, size, size}}};
    const Array outputs[] = {{"score_map", raw, 3, {batch, map, map, 0}},
                              {"prefix", prefix, 3, {batch, model.prefix, model.dim, 0}}};
    calls_.stage(&saccade_timings::selector_ms, [&] { calls_.run(*selector_, {inputs, 1}, {outputs, 2}); });
}

void LookWhereChain::select_cells(const Plan& plan) {
    const int map = model_.manifest.model.map_size;
    const auto batch = static_cast<std::size_t>(plan.batch), k = static_cast<std::size_t>(plan.k);
    const auto map_values = static_cast<std::size_t>(map) * static_cast<std::size_t>(map);
    std::int32_t* indices = indices_.sized(batch * k);
    float* scores = score_map_.sized(batch * plan.cells());
    calls_.stage(&saccade_timings::select_ms, [&] {
        for (std::size_t i = 0; i < batch; ++i) {
            if (!select(raw_score_map_.data() + i * map_values, map, plan.grid, plan.k, indices + i * k,
                        scores + i * plan.cells(), scratch_)) {
                refuse_scores(static_cast<int>(i));
            }
        }
    });
}

void LookWhereChain::gather(const Plan& plan, const std::vector<Image>& images) {
    const Model& model = model_.manifest.model;
    const auto batch = static_cast<std::size_t>(plan.batch), k = static_cast<std::size_t>(plan.k);
    const std::size_t patch_values = k * static_cast<std::size_t>(model.patch_pixels());
    const std::size_t position_values = k * static_cast<std::size_t>(model.dim);
    float* patches = patches_.sized(batch * patch_values);
    float* positions = positions_.sized(batch * position_values);
    calls_.stage(&saccade_timings::gather_ms, [&] {
        const PositionTable& on_grid = all_positions_.on(model_, plan.grid);
        for (std::size_t i = 0; i < batch; ++i) {
            const std::int32_t* indices = indices_.data() + i * k;
            gather_patches(images[i], model_.table, indices, plan.k, model.patch, plan.grid.columns, patches + i * patch_values);
            gather_positions(on_grid->data(), model.dim, indices, plan.k, positions + i * position_values);
        }
    });
}

void LookWhereChain::run_extractor(const Plan& plan) {
    const Manifest& manifest = model_.manifest;
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
    calls_.stage(&saccade_timings::extractor_ms, [&] { calls_.run(*extractor_, {inputs, 3}, {outputs, count}); });
}

void LookWhereChain::fill_dense(const Plan& plan, float* out) {
    const int channels = model_.manifest.token_channels();
    const auto batch = static_cast<std::size_t>(plan.batch), k = static_cast<std::size_t>(plan.k);
    for (std::size_t i = 0; i < batch; ++i) {
        fill(tokens_.data() + i * k * static_cast<std::size_t>(channels), indices_.data() + i * k, plan.k, channels, plan.grid,
             out + i * static_cast<std::size_t>(channels) * plan.cells(), scratch_);
    }
}

}  // namespace saccade
