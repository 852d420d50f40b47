// TensorRT behind an interface without its types, so that generations whose classes differ can live side by side.
//
// Its C++ classes are called through virtual tables that changed between 10 and 11 and differ in TensorRT-RTX, so
// tensorrt_adapter.cpp is compiled once for the headers of each, and only with a library of the same generation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "contract.hpp"

namespace saccade {

// One execution context: one inference at a time.
class TensorRTContext {
public:
    virtual ~TensorRTContext() = default;
    virtual bool set_input_shape(const char* name, int rank, const std::int64_t* shape) = 0;
    virtual bool set_tensor_address(const char* name, void* device) = 0;
    virtual bool enqueue(void* stream) = 0;
};

// One deserialised engine; shared by contexts.
class TensorRTPlan {
public:
    virtual ~TensorRTPlan() = default;
    virtual std::unique_ptr<TensorRTContext> context() = 0;  // nullptr on failure
    virtual Tensors tensors() const = 0;  // as ports_of; none where one is not float32
    virtual std::vector<std::int64_t> largest_input(const char* name) const = 0;  // of optimization profile 0
};

class TensorRTAdapter {
public:
    virtual ~TensorRTAdapter() = default;
    virtual std::unique_ptr<TensorRTPlan> plan(const void* data, std::size_t size) = 0;  // nullptr on failure
    virtual std::string last_error() const = 0;  // what TensorRT logged last, since its calls say no more than "failed"
};

// One generation that this library was compiled for.
struct TensorRTGeneration {
    std::int32_t engine;  // SACCADE_ENGINE_TENSORRT or _RTX
    std::int32_t version;  // of its headers: major * 10000 + minor * 100 + patch
    // Versions agree where they do after this division: by major for TensorRT, by minor for TensorRT-RTX, whose
    // interface has broken with a minor release.
    std::int32_t divisor;
    // `create_runtime` is the library's createInferRuntime_INTERNAL; nullptr where it fails.
    std::unique_ptr<TensorRTAdapter> (*open)(void* create_runtime);
};

// Those that were compiled in.
struct TensorRTGenerations {
    const TensorRTGeneration* first;
    std::size_t count;
    const TensorRTGeneration* begin() const { return first; }
    const TensorRTGeneration* end() const { return first + count; }
};
TensorRTGenerations tensorrt_generations();

}  // namespace saccade
