// One generation of TensorRT. Compiled once for each, with its headers first and these definitions:
//   SACCADE_TENSORRT_ENGINE   SACCADE_ENGINE_TENSORRT or SACCADE_ENGINE_TENSORRT_RTX
//   SACCADE_TENSORRT_ENTRY    the name of the function at the end
//   nvinfer1                  another name for their namespace: inline functions of two generations must not be merged
#include "tensorrt_adapter.hpp"

#include <NvInferRuntime.h>

#include "saccade.h"

#include <algorithm>
#include <mutex>

namespace saccade {
namespace {

// Keeps errors; TensorRT may log from any thread, and from several contexts at once.
class Log : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR && message != nullptr) {
            try {
                const std::lock_guard<std::mutex> lock(mutex_);
                last_error_ = message;
            } catch (...) {  // out of memory: the line is lost, the failure is not
            }
        }
    }

    std::string last_error() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_error_.empty() ? "no reason given" : last_error_;
    }

private:
    mutable std::mutex mutex_;
    std::string last_error_;
};

nvinfer1::Dims dims_of(int rank, const std::int64_t* shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = rank;
    std::copy_n(shape, rank, dims.d);
    return dims;
}

std::vector<std::int64_t> extents_of(const nvinfer1::Dims& dims) {
    return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

class Context : public TensorRTContext {
public:
    explicit Context(std::unique_ptr<nvinfer1::IExecutionContext> context) : context_(std::move(context)) {}

    bool set_input_shape(const char* name, int rank, const std::int64_t* shape) override {
        return context_->setInputShape(name, dims_of(rank, shape));
    }
    bool set_tensor_address(const char* name, void* device) override { return context_->setTensorAddress(name, device); }
    bool enqueue(void* stream) override { return context_->enqueueV3(static_cast<cudaStream_t>(stream)); }

private:
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

class Plan : public TensorRTPlan {
public:
    explicit Plan(std::unique_ptr<nvinfer1::ICudaEngine> engine) : engine_(std::move(engine)) {}

    std::unique_ptr<TensorRTContext> context() override {
        std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext());
        return context == nullptr ? nullptr : std::make_unique<Context>(std::move(context));
    }

    Tensors tensors() const override {
        Tensors found;
        for (std::int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* name = engine_->getIOTensorName(i);
            if (engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) {
                return {};
            }
            const bool is_input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
            (is_input ? found.inputs : found.outputs)[name] = extents_of(engine_->getTensorShape(name));
        }
        return found;
    }

    std::vector<std::int64_t> largest_input(const char* name) const override {
        return extents_of(engine_->getProfileShape(name, 0, nvinfer1::OptProfileSelector::kMAX));
    }

private:
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

class Adapter : public TensorRTAdapter {
public:
    bool open(void* create_runtime) {
        using Create = void* (*)(void* logger, std::int32_t version);
        const auto create = reinterpret_cast<Create>(create_runtime);
        runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(&log_, NV_TENSORRT_VERSION)));
        return runtime_ != nullptr;
    }

    std::unique_ptr<TensorRTPlan> plan(const void* data, std::size_t size) override {
        std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime_->deserializeCudaEngine(data, size));
        return engine == nullptr ? nullptr : std::make_unique<Plan>(std::move(engine));
    }

    std::string last_error() const override { return log_.last_error(); }

private:
    Log log_;  // outlives the runtime, which logs until its end
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
};

std::unique_ptr<TensorRTAdapter> open(void* create_runtime) {
    auto adapter = std::make_unique<Adapter>();
    return adapter->open(create_runtime) ? std::move(adapter) : nullptr;
}

}  // namespace

TensorRTGeneration SACCADE_TENSORRT_ENTRY();
TensorRTGeneration SACCADE_TENSORRT_ENTRY() {
    const std::int32_t divisor = SACCADE_TENSORRT_ENGINE == SACCADE_ENGINE_TENSORRT_RTX ? 100 : 10000;
    return {SACCADE_TENSORRT_ENGINE, static_cast<std::int32_t>(NV_TENSORRT_VERSION), divisor, open};
}

}  // namespace saccade
