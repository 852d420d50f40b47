#include "contract.hpp"

#include <algorithm>

#include "bundle.hpp"

namespace saccade {

std::int64_t named_extent(const std::string& name) {
    for (const auto& [known, extent] : {std::pair{"batch", BATCH}, {"k", K}, {"height", HEIGHT}, {"width", WIDTH},
                                        {"rows", ROWS}, {"cells", CELLS}}) {
        if (name == known) {
            return extent;
        }
    }
    return 0;
}

std::vector<Role> roles_of(const Manifest& manifest) {
    return manifest.model.kind == Kind::backbone ? std::vector{Role::backbone} : std::vector{Role::selector, Role::extractor};
}

Tensors contract_of(const Manifest& manifest, Role role) {
    const Model& model = manifest.model;
    if (role == Role::backbone) {
        Tensors tensors{{{"image", {BATCH, 3, HEIGHT, WIDTH}}, {"positions", {ROWS, model.dim}}},
                        {{"cls", {BATCH, model.dim}},
                         {"tokens", {BATCH, CELLS, model.dim}},
                         {"attention", {BATCH, model.heads, CELLS}}}};
        if (model.has_cls_last4()) {
            tensors.outputs["cls_last4"] = {BATCH, CLS_BLOCKS, model.dim};
        }
        return tensors;
    }
    if (role == Role::selector) {
        return {{{"lowres", {BATCH, 3, model.selector_size, model.selector_size}}},
                {{"score_map", {BATCH, model.map_size, model.map_size}}, {"prefix", {BATCH, model.prefix, model.dim}}}};
    }
    Tensors tensors{{{"patches", {BATCH, K, model.patch_pixels()}},
                     {"positions", {BATCH, K, model.dim}},
                     {"prefix", {BATCH, model.prefix, model.dim}}},
                    {{"tokens", {BATCH, K, manifest.token_channels()}}}};
    if (manifest.task == Task::features) {
        tensors.outputs["cls"] = {BATCH, model.dim};
    } else if (manifest.task == Task::classify) {
        tensors.outputs["logits"] = {BATCH, model.classes};
    }
    return tensors;
}

Tensors ports_of(const Manifest& manifest, Role role) {
    Tensors ports = contract_of(manifest, role);
    for (auto* side : {&ports.inputs, &ports.outputs}) {
        for (auto& [name, extents] : *side) {
            std::replace_if(extents.begin(), extents.end(), [](std::int64_t extent) { return extent < 0; }, ANY);
        }
    }
    return ports;
}

}  // namespace saccade
