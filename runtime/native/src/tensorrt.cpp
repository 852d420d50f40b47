// The TensorRT engines: plans on one GPU, on device memory. `engines/tensorrt.py` is their twin in Python.
#include <sys/stat.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <sstream>
#include <vector>

#include "cuda_device.hpp"
#include "engine.hpp"
#include "failure.hpp"
#include "fatbin.hpp"
#include "fields.hpp"
#include "names.hpp"
#include "receipts.hpp"
#include "tensorrt_adapter.hpp"

namespace saccade {
namespace {

constexpr char BUILD_HERE[] = "build it again here";
// Conditions that say how much an engine takes, and not what it is made of or runs on; as in engines/tensorrt.py.
constexpr const char* LENIENT[] = {"max_batch", "max_k", "opt_k", "compute_capabilities"};

// int8 wants fp16 around it, or attention does not fuse; the other precisions are graphs of their own name.
const char* variant_of(std::int32_t precision) { return precision == SACCADE_INT8 ? "int8-fp16" : precision_name(precision); }

std::vector<std::string> library_names(const EngineRequest& request) {
    if (request.engine == SACCADE_ENGINE_TENSORRT_RTX) {
        return {"libtensorrt_rtx.so.1"};
    }
    std::vector<std::string> names;
    for (const TensorRTGeneration& each : tensorrt_generations()) {
        if (each.engine == request.engine) {
            names.push_back("libnvinfer.so." + std::to_string(each.version / each.divisor));
        }
    }
    return names;
}

std::string version_text(std::int32_t version) {
    return std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." + std::to_string(version % 100);
}

// TensorRT's library and the adapter that was compiled for its generation.
class TensorRTLibrary {
public:
    explicit TensorRTLibrary(const EngineRequest& request)
        : library_(engine_name(request.engine), request.library, library_names(request),
                   "install it, or give the path of its library as engine_library") {
        int (*version)() = nullptr;
        library_.bind(version, "getInferLibVersion");
        version_ = version();
        const auto fits = [&](const TensorRTGeneration& each) {
            return each.engine == request.engine && each.version / each.divisor == version_ / each.divisor;
        };
        const auto generations = tensorrt_generations();
        const auto generation = std::find_if(generations.begin(), generations.end(), fits);
        if (generation == generations.end()) {
            fail(SACCADE_ENGINE_UNAVAILABLE, library_.path() + " is version " + version_text(version_) +
                                                 ", which this libsaccade was not compiled for; configure it with those headers");
        }
        adapter_ = generation->open(library_.symbol("createInferRuntime_INTERNAL"));
        if (adapter_ == nullptr) {
            fail(SACCADE_ENGINE_FAILED, library_.path() + " cannot start; check the GPU with nvidia-smi");
        }
    }

    std::string version() const { return version_text(version_); }
    TensorRTAdapter& adapter() const { return *adapter_; }

private:
    Library library_;
    std::int32_t version_ = 0;
    std::unique_ptr<TensorRTAdapter> adapter_;
};

// One execution context on one stream.
class TensorRTNetwork : public Network {
public:
    TensorRTNetwork(std::shared_ptr<const CudaDevice> device, std::shared_ptr<TensorRTLibrary> library,
                    std::shared_ptr<TensorRTPlan> plan, Role role, void* stream)
        : device_(std::move(device)), library_(std::move(library)), plan_(std::move(plan)), role_(role), stream_(stream) {
        const CudaDevice::Current current(*device_);
        context_ = plan_->context();
        if (context_ == nullptr) {
            refuse("create its execution context", "free GPU memory, or build with smaller limits");
        }
    }

    ~TensorRTNetwork() override {
        try {
            const CudaDevice::Current current(*device_);
            context_.reset();
        } catch (...) {  // the device is gone, and its memory with it
        }
    }

    void run(Arrays inputs, Arrays outputs) override {
        for (const Array& each : inputs) {
            if (!context_->set_input_shape(each.name, each.rank, each.shape)) {
                refuse_shape(each);
            }
            bind(each);
        }
        for (const Array& each : outputs) {
            bind(each);
        }
        if (!context_->enqueue(stream_)) {
            refuse("run", "free GPU memory, or use a smaller batch");
        }
    }

    void cancel() noexcept override {}  // what a stream has taken runs to its end; the session stops after it

private:
    void bind(const Array& array) {
        if (!context_->set_tensor_address(array.name, array.data)) {
            refuse("take its tensors", BUILD_HERE);
        }
    }

    // A shape outside the optimization profile: say by how much.
    [[noreturn]] void refuse_shape(const Array& array) const {
        const std::vector<std::int64_t> largest = plan_->largest_input(array.name);
        std::string beyond;
        for (std::size_t axis = 0; axis < largest.size() && axis < 2; ++axis) {
            if (array.shape[axis] > largest[axis]) {
                beyond += std::string(beyond.empty() ? "" : " and ") + (axis == 0 ? "batch " : "k ") +
                          std::to_string(array.shape[axis]) + " is beyond the " + std::to_string(largest[axis]);
            }
        }
        fail(SACCADE_INVALID_ARGUMENT, std::string(name_of(role_)) + ": " + (beyond.empty() ? "a shape is outside the limits" : beyond) +
                                           " that the engine was built for; build a larger one with --max-batch and --max-k");
    }

    [[noreturn]] void refuse(const char* what, const char* remedy) const {
        fail(SACCADE_ENGINE_FAILED, std::string("tensorrt: the ") + name_of(role_) + " cannot " + what + " (" +
                                        library_->adapter().last_error() + "); " + remedy);
    }

    std::shared_ptr<const CudaDevice> device_;
    std::shared_ptr<TensorRTLibrary> library_;
    std::shared_ptr<TensorRTPlan> plan_;
    Role role_;
    void* stream_;
    std::unique_ptr<TensorRTContext> context_;
};

// Whether a built engine does here what is asked; limits and targets beyond this GPU do not matter.
bool serves(const Receipt& receipt, const Conditions& wanted, const std::string& compute_capability) {
    for (const auto& [name, value] : wanted) {
        const auto built = receipt.conditions.find(name);
        // A binding's version may end with a build number, which the library does not tell.
        const bool same = built != receipt.conditions.end() &&
                          (built->second == value || (name == "version" && built->second.rfind(value + ".", 0) == 0));
        if (!same) {
            return false;
        }
    }
    for (const auto& [name, unused] : receipt.conditions) {
        if (wanted.count(name) == 0 && std::find(std::begin(LENIENT), std::end(LENIENT), name) == std::end(LENIENT)) {
            return false;
        }
    }
    const auto targets = receipt.conditions.find("compute_capabilities");
    if (targets == receipt.conditions.end() || targets->second == "default") {
        return true;
    }
    std::istringstream words(targets->second);
    for (std::string word; words >> word;) {
        if (word == compute_capability) {
            return true;
        }
    }
    return false;
}

// When a receipt was written; a run takes the newest engine that serves.
std::timespec written(const Receipt& receipt) {
    struct stat facts {};
    return stat((receipt.folder + "/receipt.json").c_str(), &facts) == 0 ? facts.st_mtim : std::timespec{};
}

bool is_older(const Receipt& one, const Receipt& other) {
    const std::timespec a = written(one), b = written(other);
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

class TensorRTEngine : public Engine {
public:
    TensorRTEngine(const Bundle& bundle, const EngineRequest& request) : name_(engine_name(request.engine)) {
        if (request.compile) {
            fail(SACCADE_UNSUPPORTED, name_ + " compiles no graphs here; build it with 'saccade build' and leave compile at 0");
        }
        if (request.streams > 1 || request.threads > 0) {
            fail(SACCADE_UNSUPPORTED, name_ + " runs on a GPU; leave threads and streams alone, and make one session per thread");
        }
        device_ = device_with_kernels(request.device);  // first: see CudaDriver
        library_ = std::make_shared<TensorRTLibrary>(request);
        const Conditions wanted = conditions(bundle, request);
        const std::vector<Receipt> receipts = receipts_of(bundle);
        const Receipt* newest = nullptr;
        for (const Receipt& each : receipts) {
            if (serves(each, wanted, device_->compute_capability()) && (newest == nullptr || is_older(*newest, each))) {
                newest = &each;
            }
        }
        if (newest == nullptr) {
            fail(SACCADE_NOT_FOUND, bundle.path + ": " + why_none_serves(receipts, wanted) + "; build it with 'saccade build " +
                                        bundle.path + " --engine " + name_ + " --precision " + precision_name(request.precision) + "'");
        }
        for (const Role role : roles_of(bundle.manifest)) {
            request.note(SACCADE_LOG_INFO, "load " + shown(newest->name, newest->name.size()) + ", " + name_of(role));
            plans_.emplace(role, load(bundle, *newest, role));
        }
        description_ = name_ + " " + library_->version() + " on " + device_->name() + ", " + precision_name(request.precision) + ", " +
                       shown(newest->realised, 200);
    }

    ~TensorRTEngine() override {
        try {
            const CudaDevice::Current current(*device_);
            plans_.clear();
        } catch (...) {  // the device is gone
        }
    }

    std::shared_ptr<const Device> device() const override { return device_; }

    std::unique_ptr<Network> network(Role role, void* stream) const override {
        return std::make_unique<TensorRTNetwork>(device_, library_, plans_.at(role), role, stream);
    }

    const std::string& description() const override { return description_; }

    void check_files() const override {}  // a plan was copied to the device

private:
    static std::shared_ptr<const CudaDevice> device_with_kernels(int index) {
        auto device = std::make_shared<CudaDevice>(index);
        device->load_kernels(read_fatbin());
        return device;
    }

    Conditions conditions(const Bundle& bundle, const EngineRequest& request) const {
        const bool is_rtx = request.engine == SACCADE_ENGINE_TENSORRT_RTX;
        Conditions wanted{{"engine", name_},
                          {"precision", precision_name(request.precision)},
                          {"binding", is_rtx ? "tensorrt_rtx" : "tensorrt"},
                          {"version", library_->version()}};
        add_graphs(wanted, bundle, variant_of(request.precision));
        if (!is_rtx) {
            wanted["gpu"] = device_->name();
            wanted["compute_capability"] = device_->compute_capability();
            wanted["driver"] = device_->driver_version();
        }
        return wanted;
    }

    std::shared_ptr<TensorRTPlan> load(const Bundle& bundle, const Receipt& receipt, Role role) const {
        const CudaDevice::Current current(*device_);
        const auto file = map_engine_file(receipt, role);
        std::shared_ptr<TensorRTPlan> plan = library_->adapter().plan(file->data(), file->size());
        if (plan == nullptr) {
            fail(SACCADE_ENGINE_FAILED, name_ + " cannot load " + file->path() + " (" + library_->adapter().last_error() + "); " + BUILD_HERE);
        }
        if (plan->tensors() != ports_of(bundle.manifest, role)) {
            fail(SACCADE_INVALID_BUNDLE, file->path() + ": its tensors are not those of bundle.json's " + name_of(role) + "; " + BUILD_HERE);
        }
        return plan;
    }

    std::string name_;
    std::shared_ptr<const CudaDevice> device_;
    std::shared_ptr<TensorRTLibrary> library_;
    std::map<Role, std::shared_ptr<TensorRTPlan>> plans_;
    std::string description_;
};

}  // namespace

std::unique_ptr<Engine> load_tensorrt(const Bundle& bundle, const EngineRequest& request) {
    return std::make_unique<TensorRTEngine>(bundle, request);
}

}  // namespace saccade
