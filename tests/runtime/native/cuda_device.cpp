/* The device through the CUDA driver, where the tests' driver is the one that is found: it loads the fatbin, or says in one
 * line why not, and what it copies and launches gives the bits of the CPU's kernels. */
#include "cuda_device.hpp"

#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "fatbin.hpp"
#include "failure.hpp"
#include "kernels.hpp"

using namespace saccade;

namespace {

int selects_like_the_cpu(const std::shared_ptr<const CudaDevice>& device) {
    constexpr int MAP = 11, K = 40;
    constexpr Grid grid{9, 15};
    std::vector<float> map(MAP * MAP), scores(static_cast<std::size_t>(grid.cells())), found_scores(scores.size());
    std::vector<std::int32_t> indices(K), found(K);
    for (std::size_t i = 0; i < map.size(); ++i) {
        map[i] = static_cast<float>(i * 37 % 29);  // with ties
    }
    Scratch scratch;
    if (!select(map.data(), MAP, grid, K, indices.data(), scores.data(), scratch)) {
        return 1;
    }
    const DeviceStream stream(device);
    const Device::Current current(*device);
    DeviceMemory memory(device, DeviceMemory::Kind::device), pinned(device, DeviceMemory::Kind::pinned);
    std::byte* start = memory.sized(8192);
    std::memcpy(pinned.sized(8192), map.data(), map.size() * sizeof(float));
    const cuda::SelectParams params{reinterpret_cast<float*>(start), reinterpret_cast<float*>(start + 1024),
                                    reinterpret_cast<std::int32_t*>(start + 2048), reinterpret_cast<std::int32_t*>(start + 4096),
                                    1, MAP, grid.rows, grid.columns, K, 0};
    device->copy_in(start, pinned.data(), map.size() * sizeof(float), stream.handle());
    device->launch(cuda::RESIZE_SCORES, &params, cuda::resize_scores_launch(params), stream.handle());
    device->launch(cuda::RANK, &params, cuda::rank_launch(params), stream.handle());
    device->copy_out(found_scores.data(), params.scores, scores.size() * sizeof(float), stream.handle());
    device->copy_out(found.data(), params.indices, K * sizeof(std::int32_t), stream.handle());
    device->synchronize(stream.handle());
    return found == indices && found_scores == scores ? 0 : 1;
}

}  // namespace

// Prints the failure's status and line, or the device's facts.
int main() {
    try {
        const auto device = std::make_shared<CudaDevice>(0);
        device->load_kernels(read_fatbin());
        std::printf("%s %s %s\n", device->name().c_str(), device->compute_capability().c_str(), device->driver_version().c_str());
        const Device::Current current(*device);
        try {
            device->allocate(std::size_t{1} << 41);
            return 1;
        } catch (const Failure& failure) {
            std::printf("%d %s\n", failure.status(), failure.what());
        }
        return selects_like_the_cpu(device);
    } catch (const Failure& failure) {
        std::printf("%d %s\n", failure.status(), failure.what());
        return 0;
    }
}
