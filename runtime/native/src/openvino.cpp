// The OpenVINO engine: compiled graphs straight from their mapped files. `engines/openvino.py` is its twin in Python.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <vector>

#include "engine.hpp"
#include "failure.hpp"
#include "fields.hpp"
#include "names.hpp"
#include "openvino_library.hpp"
#include "openvino_network.hpp"
#include "receipts.hpp"

namespace saccade {
namespace {

constexpr std::size_t MAX_REALISED = 1000;  // of what a receipt says was built, about 150

// What a precision means here: the graph file, the hint, and the word for it among the CPU's capabilities. bf16 and fp16
// are hints on the fp32 graph; what int8 leaves in floating point runs in bf16 where the CPU has it.
struct PrecisionRule {
    std::int32_t precision;
    const char* variant;
    const char* hint;
    const char* capability;
};
constexpr PrecisionRule RULES[] = {
    {SACCADE_FP32, "fp32", "f32", "FP32"},
    {SACCADE_BF16, "fp32", "bf16", "BF16"},
    {SACCADE_FP16, "fp32", "f16", "FP16"},
    {SACCADE_INT8, "int8", nullptr, "INT8"},
};

const PrecisionRule& rule_of(std::int32_t precision) {
    for (const PrecisionRule& rule : RULES) {
        if (rule.precision == precision) {
            return rule;
        }
    }
    fail(SACCADE_UNSUPPORTED, std::string("openvino offers fp32, bf16, fp16, int8, not ") + precision_name(precision) +
                                  "; use another engine");
}

std::set<std::string> words(const std::string& text) {
    std::istringstream stream(text);
    std::set<std::string> found;
    for (std::string word; stream >> word;) {
        found.insert(word);
    }
    return found;
}

std::string joined(const std::set<std::string>& words) {
    std::string text;
    for (const std::string& word : words) {
        text += (text.empty() ? "" : " ") + word;
    }
    return text;
}

// The hint for a precision on this CPU; asked for without the instructions, OpenVINO would compute in fp32.
const char* hint_of(const PrecisionRule& rule, const std::set<std::string>& capabilities) {
    if (capabilities.count(rule.capability) == 0) {
        fail(SACCADE_UNSUPPORTED, std::string("openvino: this CPU has no ") + precision_name(rule.precision) +
                                      " instructions; use precision fp32");
    }
    return rule.hint != nullptr ? rule.hint : capabilities.count("BF16") != 0 ? "bf16" : "f32";
}

// One compiled graph. The file it was imported from stays mapped: OpenVINO reads weights from there.
struct Compiled {
    std::unique_ptr<MappedFile> file;  // none where it was compiled in memory
    Owned<ov_compiled_model_t> model;
};

class OpenVINOEngine : public Engine {
public:
    OpenVINOEngine(const Bundle& bundle, const EngineRequest& request)
        : core_(std::make_shared<Core>(request.library)), rule_(rule_of(request.precision)) {
        if (request.device != 0) {
            fail(SACCADE_UNSUPPORTED, "openvino runs on the CPU here; leave device at 0");
        }
        const std::set<std::string> capabilities = words(core_->property("OPTIMIZATION_CAPABILITIES"));
        hint_ = hint_of(rule_, capabilities);
        configure(request);
        const Conditions wanted = conditions(bundle, request, capabilities);
        const std::vector<Receipt> receipts = receipts_of(bundle);
        const auto serves = [&](const Receipt& each) { return each.conditions == wanted; };
        const auto built = std::find_if(receipts.begin(), receipts.end(), serves);
        if (built == receipts.end()) {
            check_wanted_folder(bundle, wanted);
        }
        for (const Role role : roles_of(bundle.manifest)) {
            compiled_.emplace(role, built != receipts.end() ? imported(*built, role, request)
                                                            : compiled(bundle, role, request, why_none_serves(receipts, wanted)));
            check_hint(role);
            check_ports(bundle, role);
        }
        const std::string how = built != receipts.end() ? shown(built->realised, MAX_REALISED)
                                                        : "compiled in memory, INFERENCE_PRECISION_HINT " + hint_;
        description_ = "openvino " + core_->api.version() + " on " + wanted.at("cpu") + ", " +
                       precision_name(request.precision) + ", " + how;
    }

    std::unique_ptr<Network> network(Role role, void*) const override {
        return std::make_unique<OpenVINONetwork>(core_, compiled_.at(role).model.get(), role);
    }

    const std::string& description() const override { return description_; }

    void check_files() const override {
        for (const auto& [role, each] : compiled_) {
            if (each.file != nullptr && !each.file->is_unchanged()) {
                fail(SACCADE_CHANGED, each.file->path() + " was changed while it was loaded; load the model again");
            }
        }
    }

private:
    // Properties of the core, which the models it imports and compiles take over.
    void configure(const EngineRequest& request) const {
        core_->set("INFERENCE_PRECISION_HINT", hint_);
        if (request.threads > 0) {
            core_->set("INFERENCE_NUM_THREADS", std::to_string(request.threads));
        }
        if (request.streams > 1) {  // beside the latency hint it would be ignored
            core_->set("NUM_STREAMS", std::to_string(request.streams));
        } else {
            core_->set("PERFORMANCE_HINT", "LATENCY");
        }
    }

    // All that a built engine depends on, in the store's words.
    Conditions conditions(const Bundle& bundle, const EngineRequest& request, const std::set<std::string>& capabilities) const {
        Conditions wanted{{"engine", "openvino"},
                          {"precision", precision_name(request.precision)},
                          {"version", core_->api.version()},
                          {"cpu", core_->property("FULL_DEVICE_NAME")},
                          {"cpu_capabilities", joined(capabilities)},
                          {"precision_hint", hint_}};
        add_graphs(wanted, bundle, rule_.variant);
        return wanted;
    }

    Compiled imported(const Receipt& receipt, Role role, const EngineRequest& request) const {
        request.note(SACCADE_LOG_INFO, "load " + shown(receipt.name, receipt.name.size()) + ", " + name_of(role));
        auto file = map_engine_file(receipt, role);
        ov_compiled_model_t* model = nullptr;
        core_->api.check(core_->api.ov_core_import_model(core_->get(), file->data(), file->size(), OPENVINO_DEVICE, &model),
                         "import", file->path().c_str(), BUILD_AGAIN);
        return {std::move(file), owned(model)};
    }

    Compiled compiled(const Bundle& bundle, Role role, const EngineRequest& request, const std::string& reason) const {
        if (!request.compile) {
            fail(SACCADE_NOT_FOUND, bundle.path + ": " + reason + "; build it here, with OpenVINO " + core_->api.version() +
                                        ", by 'saccade build " + bundle.path + " --engine openvino --precision " +
                                        precision_name(request.precision) + "', or set the option compile");
        }
        const GraphFile& graph = bundle.graph(role, rule_.variant);
        const std::string path = bundle.path_of(graph.file);
        request.note(SACCADE_LOG_WARNING, reason + ": compiling " + graph.file);
        const MappedFile file(path, EXPORT_AGAIN);
        check_digest(sha256(file.data(), file.size()), graph.sha256, path, "bundle.json", EXPORT_AGAIN);
        // From the bytes that were hashed, and not from the path: another file could stand there by now, or weights beside it.
        ov_model_t* read = nullptr;
        core_->api.check(core_->api.ov_core_read_model_from_memory_buffer(core_->get(), file.data(), file.size(), nullptr, &read),
                         "read", path.c_str(), EXPORT_AGAIN);
        const Owned<ov_model_t> graph_read(read, core_->api.ov_model_free);
        ov_compiled_model_t* model = nullptr;
        core_->api.check(core_->api.ov_core_compile_model(core_->get(), graph_read.get(), OPENVINO_DEVICE, 0, &model), "compile",
                         path.c_str(), EXPORT_AGAIN);
        return {nullptr, owned(model)};
    }

    Owned<ov_compiled_model_t> owned(ov_compiled_model_t* model) const { return {model, core_->api.ov_compiled_model_free}; }

    // A hint is only a wish: what came of it is the engine's to say.
    void check_hint(Role role) const {
        char* value = nullptr;
        ov_compiled_model_t* model = compiled_.at(role).model.get();
        core_->api.check(core_->api.ov_compiled_model_get_property(model, "INFERENCE_PRECISION_HINT", &value), "describe the",
                         name_of(role), BUILD_AGAIN);
        const Owned<const char> owner(value, core_->api.ov_free);
        if (hint_ != value) {
            fail(SACCADE_UNSUPPORTED, std::string("openvino computes the ") + name_of(role) + " in " + value + " here and not in " +
                                          hint_ + "; use another precision");
        }
    }

    // A buffer of the wrong size would be written past its end, so the graph's tensors have to be the manifest's.
    void check_ports(const Bundle& bundle, Role role) const {
        const Compiled& graph = compiled_.at(role);
        if (read_ports(role) != ports_of(bundle.manifest, role)) {
            fail(SACCADE_INVALID_BUNDLE, (graph.file != nullptr ? graph.file->path() : bundle.path) +
                                             ": its tensors are not those of bundle.json's " + name_of(role) + "; " + EXPORT_AGAIN);
        }
    }

    Tensors read_ports(Role role) const {
        const OpenVINO& api = core_->api;
        ov_compiled_model_t* model = compiled_.at(role).model.get();
        const auto read = [&](ov_status_e status) { api.check(status, "read the tensors of", name_of(role), BUILD_AGAIN); };
        std::size_t inputs = 0, outputs = 0;
        read(api.ov_compiled_model_inputs_size(model, &inputs));
        read(api.ov_compiled_model_outputs_size(model, &outputs));
        Tensors ports;
        for (std::size_t i = 0; i < inputs + outputs; ++i) {
            ov_output_const_port_t* raw = nullptr;
            read(i < inputs ? api.ov_compiled_model_input_by_index(model, i, &raw)
                            : api.ov_compiled_model_output_by_index(model, i - inputs, &raw));
            const Owned<ov_output_const_port_t> port(raw, api.ov_output_const_port_free);
            char* name = nullptr;
            read(api.ov_port_get_any_name(port.get(), &name));
            const Owned<const char> name_owner(name, api.ov_free);
            ov_element_type_e type{};
            read(api.ov_port_get_element_type(port.get(), &type));
            ov_partial_shape_t shape{};
            read(api.ov_port_get_partial_shape(port.get(), &shape));
            const Owned<ov_partial_shape_t> shape_owner(&shape, api.ov_partial_shape_free);
            if (type != F32) {
                return {};  // as no graph has them
            }
            std::vector<std::int64_t> extents;
            for (std::int64_t axis = 0; axis < shape.rank.max; ++axis) {
                const ov_dimension_t& extent = shape.dims[axis];
                // Of the four rows of cls_last4 the engine may know no more than that there are at most four; each run looks.
                extents.push_back(extent.max < 0 ? ANY : extent.max);
            }
            (i < inputs ? ports.inputs : ports.outputs)[name] = std::move(extents);
        }
        return ports;
    }

    std::shared_ptr<const Core> core_;
    const PrecisionRule& rule_;
    std::string hint_;
    std::map<Role, Compiled> compiled_;
    std::string description_;
};

}  // namespace

std::unique_ptr<Engine> load_openvino(const Bundle& bundle, const EngineRequest& request) {
    return std::make_unique<OpenVINOEngine>(bundle, request);
}

}  // namespace saccade
