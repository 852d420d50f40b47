#include "contract.hpp"

#include <algorithm>

#include "bundle.hpp"

namespace saccade {

Tensors contract_of(const Manifest& manifest, Role role) {
    const Model& model = manifest.model;
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
            std::replace(extents.begin(), extents.end(), K, ANY);
        }
    }
    return ports;
}

}  // namespace saccade
