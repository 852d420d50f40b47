#include "npy.hpp"

#include <cstdint>
#include <cstring>
#include <regex>

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

}  // namespace

FloatArray array_from_npy(const std::string& content, const std::string& where, const char* remedy) {
    const auto refuse = [&](const char* what) { fail(SACCADE_INVALID_BUNDLE, where + ": " + what + "; " + remedy); };
    std::size_t begin = 0, size = 0;
    if (!header_extent(content, begin, size)) {
        refuse("not a .npy file");
    }
    static const std::regex HEADER(R"(\{'descr': '<f4', 'fortran_order': False, 'shape': )"
                                   R"(\(((?:(?:0|[1-9][0-9]{0,8}), ?)*(?:0|[1-9][0-9]{0,8})?)\), \}\s*)");
    const std::string header = content.substr(begin, size);
    std::smatch match;
    if (!std::regex_match(header, match, HEADER)) {
        refuse("not a plain array of float32");
    }
    FloatArray array;
    static const std::regex EXTENT("[0-9]{1,9}");
    const std::string extents = match[1];
    std::size_t count = 1;
    for (std::sregex_iterator each(extents.begin(), extents.end(), EXTENT), end; each != end; ++each) {
        array.shape.push_back(std::stoul(each->str()));
        if (array.shape.back() == 0 || array.shape.back() > MAX_ELEMENTS / count) {
            refuse("an array of no size, or larger than any position table");
        }
        count *= array.shape.back();
    }
    if (content.size() - begin - size != count * sizeof(float)) {
        refuse("cut short, or longer than its header says");
    }
    array.values.resize(count);
    std::memcpy(array.values.data(), content.data() + begin + size, count * sizeof(float));
    return array;
}

}  // namespace saccade
