// The boundary of the graphs: their tensors by name. `src/saccade/contract.py` is its twin in Python.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace saccade {

struct Manifest;

enum class Role : int { selector = 0, extractor = 1 };
constexpr Role ROLES[] = {Role::selector, Role::extractor};
constexpr const char* name_of(Role role) { return role == Role::selector ? "selector" : "extractor"; }

// Extents that differ from run to run.
constexpr std::int64_t BATCH = -1;
constexpr std::int64_t K = -2;
constexpr std::int64_t ANY = BATCH;  // as engines know them, which tell no dynamic extent from another

// What a graph takes and gives: extents by name.
struct Tensors {
    std::map<std::string, std::vector<std::int64_t>> inputs;
    std::map<std::string, std::vector<std::int64_t>> outputs;

    friend bool operator==(const Tensors& one, const Tensors& other) {
        return one.inputs == other.inputs && one.outputs == other.outputs;
    }
    friend bool operator!=(const Tensors& one, const Tensors& other) { return !(one == other); }
};

// The same by the model's facts.
Tensors contract_of(const Manifest& manifest, Role role);

// And as an engine knows it, all dynamic extents ANY.
Tensors ports_of(const Manifest& manifest, Role role);

}  // namespace saccade
