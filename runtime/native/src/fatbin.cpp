#include "fatbin.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "failure.hpp"
#include "files.hpp"

namespace saccade {
namespace {

constexpr char VARIABLE[] = "SACCADE_FATBIN";
constexpr char NAME[] = "saccade.fatbin";
constexpr char COMPILE[] = "compile the kernels with 'make cuda'";
constexpr std::size_t MAX_BYTES = std::size_t{64} << 20;  // 70 times what nvcc 13.0 makes of them

// The folder of the library, or program, that this code is part of, with its slash; "" where only its name is known.
std::string own_folder() {
    Dl_info own{};
    const bool known = dladdr(reinterpret_cast<const void*>(&read_fatbin), &own) != 0 && own.dli_fname != nullptr;
    const std::string path = known ? own.dli_fname : "";
    return path.substr(0, path.rfind('/') + 1);
}

// How a fatbin starts. The driver reads as far as it says, and does not know how long the file is.
struct Header {
    std::uint32_t magic;
    std::uint16_t version;
    std::uint16_t bytes;    // of this header
    std::uint64_t content;  // bytes after it
};
constexpr std::uint32_t MAGIC = 0xBA55ED50;

bool is_whole(const std::string& fatbin) {
    Header header{};
    if (fatbin.size() < sizeof header) {
        return false;
    }
    std::memcpy(&header, fatbin.data(), sizeof header);
    return header.magic == MAGIC && header.bytes <= fatbin.size() && header.content <= fatbin.size() - header.bytes;
}

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// Where the kernels should be; "" where that is not known, and never a file of the folder that one happens to be in.
std::string fatbin_path() {
    const char* named = std::getenv(VARIABLE);
    if (named != nullptr && *named != '\0') {
        return named;
    }
    const std::string folder = own_folder();
    if (folder.empty()) {
        return "";
    }
    const std::string built = folder + "../cuda/" + NAME;
    return exists(folder + NAME) || !exists(built) ? folder + NAME : built;
}

}  // namespace

std::string read_fatbin() {
    const std::string path = fatbin_path();
    if (path.empty()) {
        fail(SACCADE_NOT_FOUND, std::string("the CUDA kernels cannot be found beside a program that has no path; name their file by ") +
                                    VARIABLE);
    }
    if (!exists(path)) {
        fail(SACCADE_NOT_FOUND, path + ": the CUDA kernels are not there; " + COMPILE + ", and put saccade.fatbin beside " +
                                    "libsaccade.so or name it by " + VARIABLE);
    }
    std::string fatbin = read_file(path, MAX_BYTES, COMPILE);
    if (!is_whole(fatbin)) {
        fail(SACCADE_UNSUPPORTED, path + ": no fatbin, or one that was cut; " + COMPILE);
    }
    return fatbin;
}

}  // namespace saccade
