// NumPy's .npy format, version 1 to 3: one dense row-major array of little-endian float32.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace saccade {

struct FloatArray {
    std::vector<std::size_t> shape;
    std::vector<float> values;
};

// Reads an array from the content of a file; `where` and `remedy` frame the line of what goes wrong.
FloatArray array_from_npy(const std::string& content, const std::string& where, const char* remedy);

}  // namespace saccade
