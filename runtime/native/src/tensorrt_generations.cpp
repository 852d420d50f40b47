// The generations of TensorRT that this library is compiled for; CMake writes one line for each.
#include <iterator>

#include "tensorrt_adapter.hpp"

namespace saccade {

#define SACCADE_GENERATION(entry) TensorRTGeneration entry();
#include "tensorrt_generations.inc"
#undef SACCADE_GENERATION

TensorRTGenerations tensorrt_generations() {
    static const TensorRTGeneration generations[] = {
#define SACCADE_GENERATION(entry) entry(),
#include "tensorrt_generations.inc"
#undef SACCADE_GENERATION
    };
    return {generations, std::size(generations)};
}

}  // namespace saccade
