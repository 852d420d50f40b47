// The field's words for engines and precisions, by their numbers in saccade.h.
#pragma once

#include <cstdint>

namespace saccade {

const char* engine_name(std::int32_t engine);        // nullptr where there is none
const char* precision_name(std::int32_t precision);  // nullptr where there is none
std::int32_t engine_from_name(const char* name);       // -1 where there is none
std::int32_t precision_from_name(const char* name);    // -1 where there is none

}  // namespace saccade
