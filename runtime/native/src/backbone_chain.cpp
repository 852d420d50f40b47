#include "backbone_chain.hpp"

namespace saccade {
namespace {

// Tokens (cells, dim) as (dim, cells), in blocks that stay in the L1 cache.
void transpose_tokens(const float* tokens, std::size_t cells, std::size_t dim, float* out) {
    constexpr std::size_t BLOCK = 32;
    for (std::size_t row = 0; row < cells; row += BLOCK) {
        const std::size_t rows_end = std::min(row + BLOCK, cells);
        for (std::size_t column = 0; column < dim; column += BLOCK) {
            const std::size_t columns_end = std::min(column + BLOCK, dim);
            for (std::size_t x = column; x < columns_end; ++x) {
                for (std::size_t y = row; y < rows_end; ++y) {
                    out[x * cells + y] = tokens[y * dim + x];
                }
            }
        }
    }
}

}  // namespace

BackboneChain::BackboneChain(const LoadedModel& model, Calls& calls)
    : model_(model), calls_(calls), backbone_(model.engine->network(Role::backbone, nullptr)) {}

std::uint8_t* BackboneChain::pixels(const Plan& plan) {
    return pixels_.sized(static_cast<std::size_t>(plan.batch) * plan.pixel_bytes());
}

void BackboneChain::run(const Plan& plan, const std::vector<Image>& images, const saccade_outputs&) {
    const Model& model = model_.manifest.model;
    const saccade_sizes sizes = sizes_of(model_.manifest, plan);
    const std::int64_t batch = plan.batch, cells = plan.grid.cells();
    const std::size_t image_values = plan.pixel_bytes();  // one for each byte
    float* image = image_.sized(images.size() * image_values);
    PositionTable positions;
    calls_.stage(&saccade_timings::normalize_ms, [&] {
        for (std::size_t i = 0; i < images.size(); ++i) {
            normalize(images[i], model_.table, image + i * image_values);
        }
        positions = positions_.on(model_, plan.grid);
    });
    auto* table = const_cast<float*>(positions->data());  // an engine only reads its inputs
    const Array inputs[] = {{"image", image, 4, {batch, 3, plan.height, plan.width}},
                             {"positions", table, 2, {1 + cells, model.dim, 0, 0}}};
    const Array outputs[] = {{"cls", cls_.sized(sizes.cls), 2, {batch, model.dim, 0, 0}},
                              {"tokens", tokens_.sized(sizes.tokens), 3, {batch, cells, model.dim, 0}},
                              {"attention", attention_.sized(sizes.attention), 3, {batch, model.heads, cells, 0}},
                              {"cls_last4", cls_last4_.sized(sizes.cls_last4), 3, {batch, CLS_BLOCKS, model.dim, 0}}};
    const std::size_t count = model.has_cls_last4() ? 4 : 3;
    calls_.stage(&saccade_timings::backbone_ms, [&] { calls_.run(*backbone_, {inputs, 2}, {outputs, count}); });
}

void BackboneChain::write(const Plan& plan, const saccade_outputs& out) {
    const saccade_sizes sizes = sizes_of(model_.manifest, plan);
    const auto dim = static_cast<std::size_t>(model_.manifest.model.dim), image_tokens = plan.cells() * dim;
    for (std::size_t offset = 0; out.dense != nullptr && offset < sizes.tokens; offset += image_tokens) {
        transpose_tokens(tokens_.data() + offset, plan.cells(), dim, out.dense + offset);
    }
    copy_out(cls_.data(), sizes.cls, out.cls);
    copy_out(tokens_.data(), sizes.tokens, out.tokens);
    copy_out(attention_.data(), sizes.attention, out.attention);
    copy_out(cls_last4_.data(), sizes.cls_last4, out.cls_last4);
}

}  // namespace saccade
