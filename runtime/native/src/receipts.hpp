// Built engines on disk, each in a folder with a receipt. `engines/store.py` writes them and is their specification.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"
#include "files.hpp"

namespace saccade {

using Conditions = std::map<std::string, std::string>;

constexpr char BUILD_AGAIN[] = "delete its folder and build again";

struct Receipt {
    std::string folder;  // its path
    std::string name;    // the last component of it
    std::string engine;
    std::string precision;
    std::string realised;
    Conditions conditions;  // all that the engine depends on
    std::map<std::string, std::string> files;  // role -> file
    std::map<std::string, std::string> sha256;  // file -> digest
};

// Checks the text of a receipt.json that lies in the folder at path `folder`.
Receipt receipt_from_json(const std::string& text, const std::string& folder);

// All receipts of a bundle that can be read, in the order of their folders; a bundle without engines has none.
std::vector<Receipt> receipts_of(const Bundle& bundle);

// Adds the graphs of a variant to what an engine depends on.
void add_graphs(Conditions& conditions, const Bundle& bundle, const std::string& variant);

// Fails where the folder of the very engine that is wanted is there, but cannot be used: missing would be the wrong word.
void check_wanted_folder(const Bundle& bundle, const Conditions& wanted);

// Whether an engine is of a form of its own, fixed to one shape or without patch tokens, which this library does not run.
bool has_form(const Conditions& conditions);

// Says what differs between the conditions here and those of the nearest engine of the same kind, or that there is none.
std::string why_none_serves(const std::vector<Receipt>& receipts, const Conditions& wanted);

// Maps one file of an engine and compares it with its hash.
std::unique_ptr<MappedFile> map_engine_file(const Receipt& receipt, Role role);

}  // namespace saccade
