/* The chain on a device gives what the chain on the host gives, to the last bit: the same networks, OpenVINO's, between the
 * CUDA kernels' own source in a GPU that the host plays.  What goes wrong there leaves outputs alone and loses nothing. */
#include "device_chain.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "check.h"
#include "failure.hpp"
#include "host_device.hpp"
#include "session.hpp"

using namespace saccade;

namespace {

// What a network on the device does besides: after it has run, and while it is being given its work.
struct Mischief {
    float score_of_the_last_image = 0.0f;  // put into its map unless 0
    std::function<void()> when_given;
};

class PlayedNetwork : public Network {
public:
    PlayedNetwork(std::unique_ptr<Network> network, std::shared_ptr<HostDevice> device, void* stream, const Mischief& mischief)
        : network_(std::move(network)), device_(std::move(device)), stream_(stream), mischief_(mischief) {}

    void run(Arrays inputs, Arrays outputs) override {
        const std::vector<Array> from(inputs.begin(), inputs.end()), to(outputs.begin(), outputs.end());
        for (const Arrays& all : {inputs, outputs}) {
            std::for_each(all.begin(), all.end(), [&](const Array& each) { device_->check_address(each.data); });
        }
        device_->give("network", stream_, [=] {
            network_->run({from.data(), from.size()}, {to.data(), to.size()});
            if (std::strcmp(to[0].name, "score_map") == 0 && mischief_.score_of_the_last_image != 0.0f) {
                to[0].data[bytes_of(to[0]) / sizeof(float) - 1] = mischief_.score_of_the_last_image;
            }
        });
        if (mischief_.when_given) {
            mischief_.when_given();
        }
    }
    void cancel() noexcept override {}

private:
    std::unique_ptr<Network> network_;
    std::shared_ptr<HostDevice> device_;
    void* stream_;
    const Mischief& mischief_;
};

class PlayedEngine : public Engine {
public:
    PlayedEngine(std::unique_ptr<Engine> engine, std::shared_ptr<HostDevice> device, const Mischief& mischief)
        : engine_(std::move(engine)), device_(std::move(device)), mischief_(mischief) {}

    std::shared_ptr<const Device> device() const override { return device_; }
    std::unique_ptr<Network> network(Role role, void* stream) const override {
        return std::make_unique<PlayedNetwork>(engine_->network(role, nullptr), device_, stream, mischief_);
    }
    const std::string& description() const override { return engine_->description(); }
    void check_files() const override { engine_->check_files(); }

private:
    std::unique_ptr<Engine> engine_;
    std::shared_ptr<HostDevice> device_;
    const Mischief& mischief_;
};

// One bundle, loaded for either.
struct Both {
    Bundle bundle;
    std::shared_ptr<HostDevice> gpu = std::make_shared<HostDevice>();
    Mischief mischief;
    std::shared_ptr<const LoadedModel> on_host, on_device;

    Both(const char* path, const char* engine_library) : bundle(bundle_from_folder(path)) {
        const EngineRequest request{SACCADE_ENGINE_OPENVINO, SACCADE_FP32, 0, 0, 0, false, engine_library, nullptr, nullptr};
        on_host = std::make_shared<LoadedModel>(bundle, load_engine(bundle, request));
        auto played = std::make_unique<PlayedEngine>(load_engine(bundle, request), gpu, mischief);
        on_device = std::make_shared<LoadedModel>(bundle, std::move(played));
    }
};

struct Request {
    std::vector<std::pair<int, int>> images;  // height, width
    int fit, height, width, k;
};

const Request REQUESTS[] = {
    {{{200, 300}}, SACCADE_FIT_SQUASH, 0, 0, 0},
    {{{200, 300}, {126, 126}, {90, 61}}, SACCADE_FIT_SQUASH, 126, 126, 24},
    {{{200, 300}}, SACCADE_FIT_SQUASH, 84, 210, 31},
    {{{126, 126}, {126, 126}}, SACCADE_FIT_SQUASH, 126, 126, 81},
    {{{150, 90}, {112, 126}}, SACCADE_FIT_CROP, 112, 126, 20},
    {{{113, 141}, {125, 140}}, SACCADE_FIT_NATIVE, 0, 0, 30},
    {{{14, 140}}, SACCADE_FIT_SQUASH, 14, 140, 1},
};

// Images of a request: each upside down in padded rows where its number is odd, the last one BGR.
class Images {
public:
    explicit Images(const Request& request) {
        for (const auto& [height, width] : request.images) {
            const int stride = 3 * width + 5;
            pixels_.emplace_back(static_cast<std::size_t>(height) * static_cast<std::size_t>(stride));
            std::generate(pixels_.back().begin(), pixels_.back().end(), [this] {
                state_ = state_ * 1664525u + 1013904223u;
                return static_cast<std::uint8_t>(state_ >> 24);
            });
            const bool is_odd = pixels_.size() % 2 == 1;
            const std::uint8_t* first = pixels_.back().data() + (is_odd ? (height - 1) * stride : 0);
            list.push_back({first, height, width, is_odd ? -stride : stride, SACCADE_RGB, 0});
        }
        list.back().format = SACCADE_BGR;
    }

    std::vector<saccade_image> list;

private:
    std::uint32_t state_ = 1;
    std::vector<std::vector<std::uint8_t>> pixels_;
};

saccade_run_options options_of(const Request& request) {
    saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    options.fit = request.fit;
    options.height = request.height;
    options.width = request.width;
    options.k = request.k;
    return options;
}

results results_of(const Both& both, const Images& images, const saccade_run_options& options) {
    const Manifest& manifest = both.bundle.manifest;
    const saccade_sizes sizes = sizes_of(manifest, plan_of(manifest, images.list.data(), images.list.size(), options));
    return results_for(&sizes);
}

// The status of a call and its line; SACCADE_OK and none.
template <typename Call>
std::pair<saccade_status, std::string> outcome(Call call) {
    try {
        call();
        return {SACCADE_OK, ""};
    } catch (const Failure& failure) {
        return {failure.status(), failure.what()};
    }
}

void check_equal(Both& both) {
    Session on_host(both.on_host), on_device(both.on_device);
    for (int round = 0; round < 2; ++round) {  // memory that a larger request left must not show in a smaller one
        for (const Request& request : REQUESTS) {
            const Images images(request);
            const saccade_run_options options = options_of(request);
            results expected = results_of(both, images, options), found = results_of(both, images, options);
            on_host.run(images.list.data(), images.list.size(), options, expected.out);
            on_device.run(images.list.data(), images.list.size(), options, found.out);
            CHECK(is_same(&expected, &found));
            spoil(&expected);
            spoil(&found);
            on_host.look(images.list.data(), images.list.size(), options, of_look(expected.out));
            on_device.look(images.list.data(), images.list.size(), options, of_look(found.out));
            CHECK(is_same(&expected, &found) && !is_untouched(&found));
            free(expected.bytes);
            free(found.bytes);
        }
    }
}

void check_order(Both& both) {
    Session session(both.on_device);
    const Images images(REQUESTS[1]);
    const saccade_run_options options = options_of(REQUESTS[1]);
    results out = results_of(both, images, options);
    session.warm_up(images.list.data(), images.list.size(), options);
    both.gpu->calls.clear();
    session.run(images.list.data(), images.list.size(), options, out.out);
    const std::vector<std::string> steps = {"copy_in", cuda::PREPROCESS_FP32, "network", cuda::RESIZE_SCORES, cuda::RANK,
                                            cuda::GATHER_32BIT, "network", cuda::FILL};
    const std::vector<std::string>& calls = both.gpu->calls;
    CHECK(calls.size() > steps.size() && std::equal(steps.begin(), steps.end(), calls.begin()));
    const auto copies = std::count(calls.begin(), calls.end(), "copy_out");
    const auto wanted = both.bundle.manifest.task == Task::segment ? 7 : 8;  // the status besides; a segment has nothing pooled
    CHECK(copies == wanted);
    CHECK(calls[steps.size() + static_cast<std::size_t>(copies)] == "synchronize");  // the first wait comes after all work

    both.gpu->calls.clear();
    saccade_outputs cls_alone = SACCADE_OUTPUTS_INIT;
    session.run(images.list.data(), images.list.size(), options, cls_alone);
    CHECK(std::count(calls.begin(), calls.end(), "copy_out") == 1 && std::count(calls.begin(), calls.end(), cuda::FILL) == 0);
    free(out.bytes);
}

void check_scores_that_are_no_numbers(Both& both) {
    Session session(both.on_device);
    const Images images(REQUESTS[1]);
    const saccade_run_options options = options_of(REQUESTS[1]);
    results out = results_of(both, images, options);
    for (const float score : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        both.mischief.score_of_the_last_image = score;
        const auto run = outcome([&] { session.run(images.list.data(), images.list.size(), options, out.out); });
        const auto look = outcome([&] { session.look(images.list.data(), images.list.size(), options, of_look(out.out)); });
        CHECK(run.first == SACCADE_NOT_FINITE && run.second.rfind("image 2: the score map holds NaN or infinity", 0) == 0);
        CHECK(look == run && is_untouched(&out));
    }
    both.mischief.score_of_the_last_image = 0.0f;
    session.run(images.list.data(), images.list.size(), options, out.out);
    CHECK(!is_untouched(&out));
    free(out.bytes);
}

void check_cancel(Both& both) {
    Session session(both.on_device);
    const Images images(REQUESTS[1]);
    const saccade_run_options options = options_of(REQUESTS[1]);
    results out = results_of(both, images, options);
    both.mischief.when_given = [&] { session.cancel(); };
    const auto run = outcome([&] { session.run(images.list.data(), images.list.size(), options, out.out); });
    const auto look = outcome([&] { session.look(images.list.data(), images.list.size(), options, of_look(out.out)); });
    CHECK(run.first == SACCADE_CANCELLED && look == run && is_untouched(&out));
    both.mischief.when_given = nullptr;
    session.run(images.list.data(), images.list.size(), options, out.out);
    CHECK(!is_untouched(&out));
    free(out.bytes);
}

// Every call of the device fails once: in a session's making, its first run, and the next after another shape.
void check_failures(Both& both) {
    const Images images(REQUESTS[1]);
    const saccade_run_options options = options_of(REQUESTS[1]);
    results expected = results_of(both, images, options), out = results_of(both, images, options);
    Session(both.on_host).run(images.list.data(), images.list.size(), options, expected.out);
    int failures = 0;
    for (int number = 1;; ++number, ++failures) {
        both.gpu->countdown = number;
        std::unique_ptr<Session> session;
        const auto made = outcome([&] { session = std::make_unique<Session>(both.on_device); });
        const auto run = session == nullptr ? made : outcome([&] {
            session->run(images.list.data(), images.list.size(), options, out.out);
        });
        const bool is_past_the_last = both.gpu->countdown > 0;
        both.gpu->countdown = 0;
        if (is_past_the_last) {
            break;
        }
        if (run.first == SACCADE_OK) {
            CHECK(both.gpu->calls.back() == "synchronize");  // the wait that only makes sure, of a run that is done
            spoil(&out);
        }
        CHECK(run.first == SACCADE_OK || run.second.rfind("the host's GPU cannot ", 0) == 0);
        CHECK(is_untouched(&out));
        if (session != nullptr) {
            session->run(images.list.data(), images.list.size(), options, out.out);
            CHECK(is_same(&expected, &out));
            spoil(&out);
        }
    }
    CHECK(failures > 25);
    free(expected.bytes);
    free(out.bytes);
}

}  // namespace

int main(int count, char** arguments) {
    CHECK(count == 3);
    try {
        Both both(arguments[1], arguments[2]);
        check_equal(both);
        check_order(both);
        check_scores_that_are_no_numbers(both);
        check_cancel(both);
        check_failures(both);
    } catch (const Failure& failure) {
        std::fprintf(stderr, "failed: %s\n", failure.what());
        return 1;
    }
    return 0;
}
