#include "npy.hpp"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr std::size_t MAGIC_SIZE = 8;  // "\x93NUMPY" and two bytes of version
constexpr std::size_t MAX_HEADER = 1024;  // NumPy writes about 120
constexpr std::size_t MAX_ELEMENTS = std::size_t{1} << 28;  // 1 GiB, as in Python

// The size of the header text and where it begins: version 1 states the size in two bytes, later ones in four.
bool header_extent(const std::string& content, std::size_t& begin, std::size_t& size) {
    if (content.size() < MAGIC_SIZE + 4 || std::memcmp(content.data(), "\x93NUMPY", 6) != 0) {
        return false;
    }
    const auto byte = [&](std::size_t at) { return static_cast<std::size_t>(static_cast<unsigned char>(content[at])); };
    const std::size_t version = byte(6), minor = byte(7);
    if (version < 1 || version > 3 || minor != 0) {
        return false;
    }
    const std::size_t width = version == 1 ? 2 : 4;
    size = 0;
    for (std::size_t i = width; i-- > 0;) {
        size = size << 8 | byte(MAGIC_SIZE + i);
    }
    begin = MAGIC_SIZE + width;
    return size <= MAX_HEADER && begin + size <= content.size();
}

// Takes `word` from the front of `text`; false, with `text` as it was, where something else stands there.
bool take(std::string_view& text, std::string_view word) {
    const bool is_there = text.substr(0, word.size()) == word;
    text.remove_prefix(is_there ? word.size() : 0);
    return is_there;
}

// Takes a whole number of at most nine digits, as Python writes it.
bool take_extent(std::string_view& text, std::size_t& extent) {
    const std::size_t end = std::min(text.find_first_not_of("0123456789"), text.size());
    if (end < 1 || end > 9 || (text[0] == '0' && end > 1)) {
        return false;
    }
    extent = std::stoul(std::string(text.substr(0, end)));
    text.remove_prefix(end);
    return true;
}

// Reads the header that NumPy writes for a plain array: one text, of which only the shape and the spaces at its end vary.
bool read_shape(std::string_view header, std::vector<std::size_t>& shape) {
    if (!take(header, "{'descr': '<f4', 'fortran_order': False, 'shape': (")) {
        return false;
    }
    for (std::size_t extent = 0; take_extent(header, extent);) {
        shape.push_back(extent);
        if (!take(header, ", ") && !take(header, ",")) {  // none behind the last, but where there is only one
            break;
        }
    }
    return take(header, "), }") && header.find_first_not_of(" \n") == std::string_view::npos;
}

}  // namespace

FloatArray array_from_npy(const std::string& content, const std::string& where, const char* remedy) {
    const auto refuse = [&](const char* what) { fail(SACCADE_INVALID_BUNDLE, where + ": " + what + "; " + remedy); };
    std::size_t begin = 0, size = 0;
    if (!header_extent(content, begin, size)) {
        refuse("not a .npy file");
    }
    FloatArray array;
    if (!read_shape(std::string_view(content).substr(begin, size), array.shape)) {
        refuse("not a plain array of float32");
    }
    std::size_t count = 1;
    for (const std::size_t extent : array.shape) {
        if (extent == 0 || extent > MAX_ELEMENTS / count) {
            refuse("an array of no size, or larger than any position table");
        }
        count *= extent;
    }
    if (content.size() - begin - size != count * sizeof(float)) {
        refuse("cut short, or longer than its header says");
    }
    array.values.resize(count);
    std::memcpy(array.values.data(), content.data() + begin + size, count * sizeof(float));
    return array;
}

}  // namespace saccade
