// The boundary of the graphs: their tensors by name. `src/saccade/contract.py` is its twin in Python.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace saccade {

struct Manifest;

enum class Role : int { selector, extractor, backbone };
constexpr Role ALL_ROLES[] = {Role::selector, Role::extractor, Role::backbone};
constexpr const char* name_of(Role role) {
    return role == Role::selector ? "selector" : role == Role::extractor ? "extractor" : "backbone";
}

constexpr int CLS_BLOCKS = 4;  // of cls_last4: the last ones, where a backbone has as many

// Extents that differ from run to run.
constexpr std::int64_t BATCH = -1;
constexpr std::int64_t K = -2;
constexpr std::int64_t HEIGHT = -3;
constexpr std::int64_t WIDTH = -4;
constexpr std::int64_t ROWS = -5;  // of a backbone's positions, 1 + CELLS
constexpr std::int64_t CELLS = -6;
constexpr std::int64_t ANY = BATCH;  // as engines know them, which tell no dynamic extent from another

// The extent that a graph's shape names so, or 0.
std::int64_t named_extent(const std::string& name);

// What a graph takes and gives: extents by name.
struct Tensors {
    std::map<std::string, std::vector<std::int64_t>> inputs;
    std::map<std::string, std::vector<std::int64_t>> outputs;

    friend bool operator==(const Tensors& one, const Tensors& other) {
        return one.inputs == other.inputs && one.outputs == other.outputs;
    }
    friend bool operator!=(const Tensors& one, const Tensors& other) { return !(one == other); }
};

// The graphs of a bundle, in the order they run in.
std::vector<Role> roles_of(const Manifest& manifest);

// What a graph takes and gives by the model's facts.
Tensors contract_of(const Manifest& manifest, Role role);

// And as an engine knows it, all dynamic extents ANY.
Tensors ports_of(const Manifest& manifest, Role role);

}  // namespace saccade
