#include "names.hpp"

#include <cstddef>
#include <cstring>

namespace saccade {
namespace {

constexpr const char* ENGINES[] = {"openvino", "tensorrt", "tensorrt-rtx"};
constexpr const char* PRECISIONS[] = {"fp32", "fp16", "bf16", "int8", "fp8"};

template <std::size_t count>
const char* name_in(const char* const (&names)[count], std::int32_t index) {
    return index >= 0 && index < static_cast<std::int32_t>(count) ? names[index] : nullptr;
}

template <std::size_t count>
std::int32_t index_in(const char* const (&names)[count], const char* name) {
    for (std::size_t i = 0; name != nullptr && i < count; ++i) {
        if (std::strcmp(names[i], name) == 0) {
            return static_cast<std::int32_t>(i);
        }
    }
    return -1;
}

}  // namespace

const char* engine_name(std::int32_t engine) { return name_in(ENGINES, engine); }
const char* precision_name(std::int32_t precision) { return name_in(PRECISIONS, precision); }
std::int32_t engine_from_name(const char* name) { return index_in(ENGINES, name); }
std::int32_t precision_from_name(const char* name) { return index_in(PRECISIONS, name); }

}  // namespace saccade
