// The CUDA kernels' own source, run on the CPU: every block of a launch in turn, every phase of a block thread by thread.
//
// The order of blocks and threads is whatever `order` says, since a GPU promises none: 0 ascending, 1 descending, any
// other number the seed of a shuffle, new for each phase. Shared memory is full of garbage when a block starts.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fill.cuh"
#include "gather.cuh"
#include "launch.hpp"
#include "preprocess.cuh"
#include "select.cuh"

namespace {

using namespace saccade::cuda;

class Order {
public:
    explicit Order(std::uint32_t seed) : seed_(seed), random_(seed) {}

    template <class Visit>
    void visit(std::size_t count, Visit visit) {
        numbers_.resize(count);
        std::iota(numbers_.begin(), numbers_.end(), 0);
        if (seed_ == 1) {
            std::reverse(numbers_.begin(), numbers_.end());
        } else if (seed_ > 1) {
            std::shuffle(numbers_.begin(), numbers_.end(), random_);
        }
        for (const int number : numbers_) {
            visit(number);
        }
    }

private:
    std::uint32_t seed_;
    std::minstd_rand random_;
    std::vector<int> numbers_;
};

struct EachThreadInTurn {
    int count;
    Order* order;

    template <class Phase>
    void operator()(Phase phase) const {
        order->visit(static_cast<std::size_t>(count), phase);
    }
};

template <class RunBlock>
void each_block(Launch launch, std::uint32_t seed, RunBlock run_block) {
    Order blocks(seed);
    Order threads(seed);
    blocks.visit(static_cast<std::size_t>(launch.x) * launch.y, [&](int number) {
        const int width = static_cast<int>(launch.x);
        run_block(Block{number % width, number / width}, EachThreadInTurn{static_cast<int>(launch.threads), &threads});
    });
}

// A kernel without barriers is a function of the thread alone.
template <class Params>
void launch_threads(void (*kernel)(const Params&, Block, int), Launch (*shape)(const Params&), const void* bytes,
                    std::uint32_t order) {
    const Params& params = *static_cast<const Params*>(bytes);
    each_block(shape(params), order, [&](Block block, EachThreadInTurn each_thread) {
        each_thread([&](int thread) { kernel(params, block, thread); });
    });
}

template <class Shared, class Params>
void launch_blocks(void (*kernel)(const Params&, Block, Shared&, EachThreadInTurn), Launch (*shape)(const Params&),
                   const void* bytes, std::uint32_t order) {
    const Params& params = *static_cast<const Params*>(bytes);
    Shared shared;
    each_block(shape(params), order, [&](Block block, EachThreadInTurn each_thread) {
        std::memset(static_cast<void*>(&shared), 0xA5, sizeof shared);
        kernel(params, block, shared, each_thread);
    });
}

}  // namespace

extern "C" {

// Returns 0 where there is no kernel of this name.
int launch(const char* kernel, const void* params, std::uint32_t order) {
    const std::string name = kernel;
    if (name == PREPROCESS_FP32 || name == PREPROCESS_FP16 || name == PREPROCESS_BF16) {
        const auto run = name == PREPROCESS_FP32   ? preprocess<float>
                         : name == PREPROCESS_FP16 ? preprocess<Half>
                                                   : preprocess<Bfloat16>;
        launch_threads(run, preprocess_launch, params, order);
    } else if (name == RESIZE_SCORES) {
        launch_threads(resize_score, resize_scores_launch, params, order);
    } else if (name == RANK) {
        launch_blocks<RankShared>(rank_block<EachThreadInTurn>, rank_launch, params, order);
    } else if (name == GATHER_32BIT || name == GATHER_16BIT) {
        const auto run = name == GATHER_32BIT ? gather<std::uint32_t> : gather<std::uint16_t>;
        launch_threads(run, gather_launch, params, order);
    } else if (name == FILL) {
        launch_blocks<FillShared>(fill_block<EachThreadInTurn>, fill_launch, params, order);
    } else {
        return 0;
    }
    return 1;
}

// The grid and block of a kernel with these parameters, as `launch.hpp` has them; 0 where there is no kernel of this name.
int launch_shape(const char* kernel, const void* params, std::uint32_t shape[3]) {
    const std::string name = kernel;
    Launch found{};
    if (name == PREPROCESS_FP32 || name == PREPROCESS_FP16 || name == PREPROCESS_BF16) {
        found = preprocess_launch(*static_cast<const PreprocessParams*>(params));
    } else if (name == RESIZE_SCORES) {
        found = resize_scores_launch(*static_cast<const SelectParams*>(params));
    } else if (name == RANK) {
        found = rank_launch(*static_cast<const SelectParams*>(params));
    } else if (name == GATHER_32BIT || name == GATHER_16BIT) {
        found = gather_launch(*static_cast<const GatherParams*>(params));
    } else if (name == FILL) {
        found = fill_launch(*static_cast<const FillParams*>(params));
    } else {
        return 0;
    }
    shape[0] = found.x;
    shape[1] = found.y;
    shape[2] = found.threads;
    return 1;
}

// The layouts that a caller in another language has to match.
void struct_sizes(std::uint64_t sizes[5]) {
    const std::uint64_t all[5] = {sizeof(ImageView), sizeof(PreprocessParams), sizeof(SelectParams),
                                  sizeof(GatherParams), sizeof(FillParams)};
    std::copy_n(all, 5, sizes);
}

void round_to_half(const float* values, std::int64_t count, Half* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        store(values[i], out + i);
    }
}

void round_to_bfloat16(const float* values, std::int64_t count, Bfloat16* out) {
    for (std::int64_t i = 0; i < count; ++i) {
        store(values[i], out + i);
    }
}

// A block with a race: each thread reads in one phase what its neighbour writes in it.
void racy_block(std::int32_t* values, int count, std::uint32_t order) {
    Order threads(order);
    EachThreadInTurn{count, &threads}([&](int thread) { values[thread] += values[(thread + 1) % count]; });
}

}  // extern "C"
