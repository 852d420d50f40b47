#include "bundle.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "failure.hpp"
#include "fields.hpp"
#include "files.hpp"
#include "npy.hpp"

namespace saccade {
namespace {

constexpr int FORMAT_VERSION = 1;
constexpr std::size_t MAX_MANIFEST_BYTES = std::size_t{4} << 20;
constexpr std::size_t MAX_POSITIONS_BYTES = std::size_t{1} << 30;
constexpr int HEAD_CHANNELS = 64;
constexpr int MAX_PREFIX = 64;
constexpr std::int64_t MAX_CLASSES = std::int64_t{1} << 20;

int extent(Fields& fields, const char* name, std::int64_t highest = MAX_EXTENT, std::int64_t lowest = 1) {
    return static_cast<int>(fields.integer(name, lowest, highest));
}

// A pair of extents, as (rows, columns) or (height, width).
void read_pair(Fields& fields, const char* name, int& first, int& second) {
    const std::vector<std::int64_t> pair = fields.integers(name, 2, 1, MAX_EXTENT);
    first = static_cast<int>(pair[0]);
    second = static_cast<int>(pair[1]);
}

void read_channels(Fields& fields, const char* name, double lowest, double highest, float out[3]) {
    const std::vector<double> channels = fields.numbers(name, 3, lowest, highest);
    std::transform(channels.begin(), channels.end(), out, [](double value) { return static_cast<float>(value); });
}

// Fields with a single allowed value: what the kernels do is all they can say.
void expect(Fields& fields, const char* name, const char* only) {
    if (fields.has(name) && fields.text(name) != only) {
        fields.refuse(std::string("'") + name + "' must be \"" + only + "\"");
    }
}

Kind read_kind(Fields& fields) {
    const std::string& family = fields.text("family");
    if (family == "lookwhere") {
        return Kind::lookwhere;
    }
    for (const char* known : {"neco", "dinov2", "dino", "timm"}) {
        if (family == known) {
            return Kind::backbone;
        }
    }
    fail(SACCADE_UNSUPPORTED, fields.where() + ": family \"" + shown(family) + "\" is not one this library runs; use Python's saccade");
}

// What LookWhere's networks have besides.
void read_lookwhere(Fields& fields, Model& model) {
    for (const char* name : {"selector_depth", "map_hidden"}) {
        extent(fields, name);
    }
    model.position_rule = PositionRule::size;
    model.prefix = extent(fields, "prefix", MAX_PREFIX);
    model.selector_size = extent(fields, "selector_size");
    model.map_size = extent(fields, "map_size");
    model.classes = fields.has("classes") ? extent(fields, "classes", MAX_CLASSES, 0) : 0;
    if (model.selector_size % model.patch != 0) {
        fields.refuse("selector_size " + std::to_string(model.selector_size) + " is no multiple of the patch");
    }
}

// What a plain backbone has besides.
void read_backbone(Fields& fields, Model& model) {
    const std::string& rule = fields.text("position_rule");
    if (rule != "scale-factor" && rule != "size-antialias") {
        fields.refuse("'position_rule' must be \"scale-factor\" or \"size-antialias\"");
    }
    model.position_rule = rule == "scale-factor" ? PositionRule::scale_factor : PositionRule::size_antialias;
    model.prefix = 1 + extent(fields, "registers", MAX_PREFIX - 1, 0);
    fields.boolean("layer_scale");
}

Model read_model(Fields fields) {
    Model model{};
    model.kind = read_kind(fields);
    model.dim = extent(fields, "dim");
    model.heads = extent(fields, "heads");
    if (model.heads * std::int64_t{HEAD_CHANNELS} != model.dim) {
        fields.refuse("dim " + std::to_string(model.dim) + " is not heads x 64");
    }
    model.depth = extent(fields, "depth");
    extent(fields, "hidden");
    if (const std::string& ffn = fields.text("ffn"); ffn != "gelu" && ffn != "swiglu") {
        fields.refuse("'ffn' must be \"gelu\" or \"swiglu\"");
    }
    model.patch = extent(fields, "patch", 64);
    read_pair(fields, "base_grid", model.base_grid.rows, model.base_grid.columns);
    model.kind == Kind::backbone ? read_backbone(fields, model) : read_lookwhere(fields, model);
    fields.finish();
    return model;
}

Task read_task(Fields& fields, int classes) {
    const std::string& name = fields.text("task");
    for (const auto& [known, task] : {std::pair{"features", Task::features}, {"classify", Task::classify}, {"segment", Task::segment}}) {
        if (name == known) {
            if ((task == Task::features) != (classes == 0)) {
                fields.refuse("task " + name + " with " + std::to_string(classes) + " classes");
            }
            return task;
        }
    }
    fields.refuse("'task' must be \"features\", \"classify\" or \"segment\"");
}

Defaults read_defaults(Fields fields, const Model& model) {
    Defaults defaults{};
    read_pair(fields, "size", defaults.height, defaults.width);
    if (defaults.height % model.patch != 0 || defaults.width % model.patch != 0) {
        fields.refuse("the default size is no multiple of the patch");
    }
    const bool has_k = fields.has("k"), has_ratio = fields.has("k_ratio");
    if (model.kind == Kind::backbone && (has_k || has_ratio)) {
        fields.refuse("a plain backbone keeps every patch, so it has no k");
    }
    if (model.kind == Kind::lookwhere && has_k == has_ratio) {
        fields.refuse("defaults need either k or k_ratio");
    }
    defaults.k = has_k ? fields.integer("k", 1, INT64_MAX) : 0;
    defaults.k_ratio = has_ratio ? fields.number("k_ratio", 0.0, 1.0) : 0.0;
    if (has_ratio && defaults.k_ratio == 0.0) {
        fields.refuse("'k_ratio' must be above 0");
    }
    fields.finish();
    return defaults;
}

void read_image(Fields fields, Manifest& manifest) {
    read_channels(fields, "mean", -1e3, 1e3, manifest.mean);
    read_channels(fields, "std", 1e-3, 1e3, manifest.std);
    expect(fields, "color", "RGB");
    expect(fields, "layout", "HWC");
    expect(fields, "dtype", "uint8");
    expect(fields, "fit_filter", "bicubic-antialias");
    expect(fields, "selector_resize", "bilinear");
    fields.finish();
}

// One extent of a tensor: a whole number, or the name of what differs from run to run.
std::int64_t tensor_extent(const nlohmann::json& extent, const Fields& tensor) {
    if (extent.is_string()) {  // nlohmann's own comparison with a text allocates where nothing may be thrown
        const auto& name = extent.get_ref<const std::string&>();
        if (const std::int64_t named = named_extent(name); named != 0) {
            return named;
        }
    }
    if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() < 1 || extent.get<std::uint64_t>() > MAX_EXTENT) {
        tensor.refuse("'shape' must hold names like \"batch\" and whole numbers, 1 to " + std::to_string(MAX_EXTENT));
    }
    return extent.get<std::int64_t>();
}

// Reads a list of tensors into `out`; returns whether all are float32.
bool read_tensors(Fields& graph, const char* list, std::map<std::string, std::vector<std::int64_t>>& out) {
    bool is_float32 = true;
    for (const nlohmann::json& each : graph.array(list)) {
        Fields tensor(each, graph.where() + ": " + list, EXPORT_AGAIN);
        const std::string& dtype = tensor.text("dtype");
        if (dtype != "float32" && dtype != "float16") {
            tensor.refuse("'dtype' must be \"float32\" or \"float16\"");
        }
        is_float32 = is_float32 && dtype == "float32";
        std::vector<std::int64_t> extents;
        for (const nlohmann::json& extent : tensor.array("shape")) {
            extents.push_back(tensor_extent(extent, tensor));
        }
        out[tensor.text("name")] = std::move(extents);
        tensor.finish();
    }
    return is_float32;
}

std::map<std::string, GraphFile> read_variants(Fields variants, const Tensors& expected) {
    // No object: programs open bundles while they exit.
    constexpr const char* KNOWN[] = {"fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8"};
    std::map<std::string, GraphFile> files;
    for (const auto& [variant, unused] : variants.json().items()) {
        if (std::find(std::begin(KNOWN), std::end(KNOWN), variant) == std::end(KNOWN)) {
            variants.refuse("unknown variant '" + shown(variant) + "'");
        }
        Fields graph = variants.object(variant.c_str());
        GraphFile file{graph.file_name("file"), graph.sha256("sha256"), true};
        const std::string suffix = ".onnx";  // as Python wants it: engines go by the name where they are given a path
        if (file.file.size() < suffix.size() || file.file.compare(file.file.size() - suffix.size(), suffix.size(), suffix)) {
            graph.refuse("'file' must end in .onnx");
        }
        Tensors tensors;
        file.is_float32 = read_tensors(graph, "inputs", tensors.inputs);
        file.is_float32 = read_tensors(graph, "outputs", tensors.outputs) && file.is_float32;
        graph.finish();
        if (tensors != expected) {
            graph.refuse("its tensors do not fit the model's sizes");
        }
        files.emplace(variant, std::move(file));
    }
    return files;
}

Manifest read_manifest(Fields fields) {
    Manifest manifest{};
    manifest.model = read_model(fields.object("model"));
    manifest.task = read_task(fields, manifest.model.classes);
    manifest.defaults = read_defaults(fields.object("defaults"), manifest.model);
    read_image(fields.object("image"), manifest);
    Fields positions = fields.object("positions");
    manifest.positions_file = positions.file_name("file");
    manifest.positions_sha256 = positions.sha256("sha256");
    positions.finish();
    Fields graphs = fields.object("graphs");
    for (const Role role : roles_of(manifest)) {
        manifest.graphs[role] = read_variants(graphs.object(name_of(role)), contract_of(manifest, role));
    }
    graphs.finish();
    for (const char* name : {"format", "golden", "provenance", "parity"}) {
        fields.skip(name);
    }
    fields.finish();
    return manifest;
}

std::vector<float> read_positions(const Bundle& bundle) {
    const std::string path = bundle.path_of(bundle.manifest.positions_file);
    const std::string content = read_file(path, MAX_POSITIONS_BYTES, EXPORT_AGAIN);
    check_digest(sha256(content.data(), content.size()), bundle.manifest.positions_sha256, path, "bundle.json", EXPORT_AGAIN);
    FloatArray table = array_from_npy(content, path, EXPORT_AGAIN);
    const Model& model = bundle.manifest.model;
    const auto rows = static_cast<std::size_t>(model.base_grid.rows);
    const auto columns = static_cast<std::size_t>(model.base_grid.columns);
    const auto dim = static_cast<std::size_t>(model.dim);
    const bool is_flat = model.kind == Kind::backbone;
    if (table.shape != (is_flat ? std::vector{1 + rows * columns, dim} : std::vector{rows, columns, dim})) {
        fail(SACCADE_INVALID_BUNDLE, path + ": not the position table of this model's base grid; " + EXPORT_AGAIN);
    }
    return std::move(table.values);
}

}  // namespace

const GraphFile& Bundle::graph(Role role, const std::string& variant) const {
    const auto& variants = manifest.graphs.at(role);
    const auto found = variants.find(variant);
    if (found == variants.end()) {
        const std::string precision = variant.substr(0, variant.find('-'));  // int8-fp16 is int8's file for TensorRT
        fail(SACCADE_NOT_FOUND, path + ": no " + variant + " graphs; make them with 'saccade convert " + path +
                                    " --precision " + precision + (precision == "int8" || precision == "fp8" ? " --calibration IMAGES'" : "'"));
    }
    if (!found->second.is_float32) {
        fail(SACCADE_UNSUPPORTED, path + ": its " + variant + " graphs have inputs that are not float32; " + EXPORT_AGAIN);
    }
    return found->second;
}

Manifest manifest_from_json(const std::string& text, const std::string& where) {
    const Document parsed = parse_json(text, where, EXPORT_AGAIN);
    Fields fields(*parsed, where, EXPORT_AGAIN);
    const std::int64_t format = fields.integer("format", INT64_MIN, INT64_MAX);
    if (format != FORMAT_VERSION) {
        fail(SACCADE_UNSUPPORTED, where + ": bundle format " + std::to_string(format) + ", but this library reads format " +
                                      std::to_string(FORMAT_VERSION) + "; " +
                                      (format > FORMAT_VERSION ? "upgrade libsaccade" : EXPORT_AGAIN));
    }
    return read_manifest(std::move(fields));
}

Bundle bundle_from_folder(const std::string& path) {
    struct stat facts {};
    if (stat(path.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode)) {
        fail(SACCADE_NOT_FOUND, path + " is not a bundle folder; make one with 'saccade export CHECKPOINT -o FOLDER'");
    }
    Bundle bundle{path, {}, {}};
    const std::string where = bundle.path_of("bundle.json");
    bundle.manifest = manifest_from_json(read_file(where, MAX_MANIFEST_BYTES, EXPORT_AGAIN), where);
    bundle.positions = read_positions(bundle);
    return bundle;
}

}  // namespace saccade
