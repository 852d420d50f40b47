// What calls a fuzz target: libFuzzer, or a main that runs the files it is given and prints how the library took each.
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include "fuzz.hpp"

#ifdef SACCADE_LIBFUZZER

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    accepts(data, size);
    return 0;
}

#else

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        std::ifstream file(argv[i], std::ios::binary);
        if (!file) {
            std::cerr << argv[i] << " cannot be opened\n";
            return 1;
        }
        const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
        const bool accepted = accepts(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
        std::cout << (accepted ? "accepted " : "refused ") << argv[i] << std::endl;  // before the next one may end it all
    }
}

#endif
