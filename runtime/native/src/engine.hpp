// What every inference engine offers a chain: a bundle's loaded graphs, run on named float32 arrays of the host or a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "bundle.hpp"
#include "contract.hpp"
#include "saccade.h"

namespace saccade {

class Device;

// One input or output of one run: dense, row-major, where the engine's networks have their memory.
struct Array {
    const char* name;  // a literal
    float* data;
    int rank;
    std::int64_t shape[4];
};

inline std::size_t bytes_of(const Array& array) {
    std::size_t bytes = sizeof(float);
    for (int axis = 0; axis < array.rank; ++axis) {
        bytes *= static_cast<std::size_t>(array.shape[axis]);
    }
    return bytes;
}

struct Arrays {
    const Array* first;
    std::size_t count;
    const Array* begin() const { return first; }
    const Array* end() const { return first + count; }
};

// One loaded graph with the state of one inference: one run at a time.
class Network {
public:
    virtual ~Network() = default;
    // Runs once, from `inputs` into `outputs`; on a device, gives that to the stream and returns. Allocates nothing of ours
    // where the addresses and shapes are the last run's.
    virtual void run(Arrays inputs, Arrays outputs) = 0;
    // Makes a run that is under way in another thread fail soon; one that has not begun is not affected.
    virtual void cancel() noexcept = 0;
};

// The graphs of a bundle, loaded; shared by threads.
class Engine {
public:
    virtual ~Engine() = default;
    // The GPU whose memory the networks read and write; nullptr: the host's.
    virtual std::shared_ptr<const Device> device() const { return nullptr; }
    // `stream` is the device's, that of all runs; nullptr where there is no device.
    virtual std::unique_ptr<Network> network(Role role, void* stream) const = 0;
    // One line: engine, version, device, precision.
    virtual const std::string& description() const = 0;
    // Fails with SACCADE_CHANGED where a file that a run reads was written to since it was loaded.
    virtual void check_files() const = 0;
};

struct EngineRequest {
    std::int32_t engine;
    std::int32_t precision;
    std::int32_t device;
    std::int32_t threads;  // 0: the engine's own choice
    std::int32_t streams;
    bool compile;  // in memory, where no built engine serves
    std::string library;  // path, or empty: as the loader finds it
    saccade_log_callback log;
    void* log_user;

    void note(std::int32_t level, const std::string& line) const {
        if (log != nullptr) {
            log(log_user, level, line.c_str());
        }
    }
};

// Loads a bundle on the engine that is asked for.
std::unique_ptr<Engine> load_engine(const Bundle& bundle, const EngineRequest& request);

// Each in a source of its own, where that engine is compiled in.
std::unique_ptr<Engine> load_openvino(const Bundle& bundle, const EngineRequest& request);
std::unique_ptr<Engine> load_tensorrt(const Bundle& bundle, const EngineRequest& request);  // TensorRT-RTX too

}  // namespace saccade
