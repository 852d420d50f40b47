// What only C++ can see of the kernels, for test_kernels.py: prints what is wrong and exits with 1.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <random>
#include <vector>

#include "bicubic.cpp"  // its internal functions too
#include "kernels.hpp"

namespace {

long allocations = 0;
int failures = 0;

void check(bool holds, const char* what) {
    if (!holds) {
        std::printf("%s\n", what);
        failures = 1;
    }
}

}  // namespace

void* operator new(std::size_t size) {
    ++allocations;
    if (void* memory = std::malloc(size)) {
        return memory;
    }
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// The second of two equal calls allocates nothing.
template <typename Call>
void check_reuses_scratch(const char* kernel, Call call) {
    saccade::Scratch scratch;
    call(scratch);
    const long before = allocations;
    call(scratch);
    check(allocations == before, kernel);
}

void check_scratch() {
    using namespace saccade;
    std::mt19937 random(1);
    std::vector<std::uint8_t> pixels(61 * 47 * 3);
    for (auto& pixel : pixels) {
        pixel = static_cast<std::uint8_t>(random());
    }
    const Image image{pixels.data(), 61, 47, 47 * 3};
    const Grid grid{9, 7};
    std::vector<float> table(768), map(16 * 16), scores(63), lowres(3 * 20 * 20), tokens(6 * 5), dense(5 * 63);
    for (auto& score : map) {
        score = static_cast<float>(random() % 1000);
    }
    std::vector<std::int32_t> best(6);
    std::vector<std::uint8_t> resized(30 * 40 * 3);
    check_reuses_scratch("lowres_from_image allocates", [&](Scratch& scratch) {
        lowres_from_image(image, table.data(), 20, lowres.data(), scratch);
    });
    check_reuses_scratch("resize_scores allocates", [&](Scratch& scratch) {
        resize_scores(map.data(), 16, grid, scores.data(), scratch);
    });
    check_reuses_scratch("select allocates", [&](Scratch& scratch) {
        check(select(map.data(), 16, grid, 6, best.data(), scores.data(), scratch), "select refuses finite scores");
    });
    check_reuses_scratch("fill allocates", [&](Scratch& scratch) {
        fill(tokens.data(), best.data(), 6, 5, grid, dense.data(), scratch);
    });
    for (const Size to : {Size{50, 40}, Size{50, 47}, Size{61, 40}, Size{31, 70}}) {
        check_reuses_scratch("resize_bicubic allocates", [&](Scratch& scratch) {
            resize_bicubic(image, to, {1, 0, 30, 40}, resized.data(), scratch);
        });
    }
}

// What this CPU runs and what any CPU can run give the same bytes, on memory that ends with the last one.
void check_weigh() {
    using namespace saccade;
    std::mt19937 random(2);
    const Weigh weigh = weigh_for_this_cpu();
    for (int round = 0; round < 400; ++round) {
        const std::size_t width = 1 + random() % 150;
        const int count = 1 + static_cast<int>(random() % (round % 10 == 0 ? 2000 : 12));
        std::vector<std::uint8_t> rows(width * static_cast<std::size_t>(count));
        for (auto& pixel : rows) {
            pixel = round % 3 == 0 ? 255 : static_cast<std::uint8_t>(random());
        }
        std::vector<WeightPair> pairs(static_cast<std::size_t>(count + 1) / 2);
        for (int tap = 0; tap < count; ++tap) {
            const double weight = (static_cast<double>(random() % 3000) - 1000.0) / 1000.0 / count;
            set_weight(pairs.data(), tap, fixed_point(weight));
        }
        std::vector<std::uint8_t> plain(width), fast(width);
        const WeightedRows weighted{rows.data(), static_cast<std::ptrdiff_t>(width), count, pairs.data()};
        weigh_plain(weighted, width, plain.data());
        weigh(weighted, width, fast.data());
        check(plain == fast, "the plain and the vector code of resize_bicubic differ");
    }
}

}  // namespace

int main() {
    check_scratch();
    check_weigh();
    return failures;
}
