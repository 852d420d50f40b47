// The bundle: what bundle.json says, checked, and the position table. `src/saccade/bundle.py` is its specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "contract.hpp"
#include "kernels.hpp"

namespace saccade {

constexpr char EXPORT_AGAIN[] = "export the bundle again";
constexpr int MAX_GRID_CELLS = 148 * 148;  // 2072 px; what a map of 44 x 44 scores can still tell apart ends long before

enum class Task : std::int32_t { features = 0, classify = 1, segment = 2 };
enum class Kind : std::int32_t { lookwhere = 0, backbone = 1 };  // a plain backbone sees every patch

struct GraphFile {
    std::string file;
    std::string sha256;
    bool is_float32;  // all its inputs and outputs
};

// The facts about the networks that a run needs; extents of one image, all checked to be 1 to MAX_EXTENT.
struct Model {
    Kind kind;
    int dim;
    int heads;
    int depth;
    int prefix;
    int patch;
    Grid base_grid;
    PositionRule position_rule;
    int selector_size;  // LookWhere's alone, as the next two; 0 for a backbone
    int map_size;
    int classes;  // 0 for features

    int patch_pixels() const { return 3 * patch * patch; }
    bool has_cls_last4() const { return kind == Kind::backbone && depth >= CLS_BLOCKS; }
    // Rows of the position table before those of the cells: the cls token's, of a backbone.
    int leading_positions() const { return kind == Kind::backbone ? 1 : 0; }
};

// What a run does where its caller says nothing: pixels, and either k or its share of the cells. A backbone has neither.
struct Defaults {
    int height;
    int width;
    std::int64_t k;  // 0: by k_ratio
    double k_ratio;

    // An explicit k stays k, a ratio follows the grid.
    std::int64_t k_on(std::int64_t cells) const {
        return k != 0 ? k : static_cast<std::int64_t>(k_ratio * static_cast<double>(cells));
    }
};

struct Manifest {
    Model model;
    Task task;
    Defaults defaults;
    float mean[3];
    float std[3];
    std::string positions_file;
    std::string positions_sha256;
    std::map<Role, std::map<std::string, GraphFile>> graphs;  // by variant

    // Channels of one output token: C for segment, else D.
    int token_channels() const { return task == Task::segment ? model.classes : model.dim; }
};

struct Bundle {
    std::string path;
    Manifest manifest;
    std::vector<float> positions;  // (base_grid.rows, base_grid.columns, dim), or (1 + base cells, dim) of a backbone

    std::string path_of(const std::string& file) const { return path + "/" + file; }

    // The entry of one graph; fails where there is none of that variant, or one whose tensors are not float32.
    const GraphFile& graph(Role role, const std::string& variant) const;
};

// Checks the text of bundle.json; `where` names it in errors.
Manifest manifest_from_json(const std::string& text, const std::string& where);

// Reads and checks a bundle folder. Graph files and engines are checked when they are used.
Bundle bundle_from_folder(const std::string& path);

}  // namespace saccade
