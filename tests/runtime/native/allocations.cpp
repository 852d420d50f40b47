// allocations BUNDLE ENGINE_LIBRARY: after a warm-up, runs and looks allocate nothing in libsaccade's own code. malloc and
// its kin are replaced by counting ones, below operator new too.
#include <cerrno>

#include "allocator.hpp"

// glibc's own, by the names that it keeps for programs like this one.
extern "C" void* __libc_malloc(std::size_t size);
extern "C" void* __libc_calloc(std::size_t count, std::size_t size);
extern "C" void* __libc_realloc(void* data, std::size_t size);
extern "C" void* __libc_memalign(std::size_t alignment, std::size_t size);

namespace {

const Origin* origin = nullptr;  // set while allocations are counted
thread_local bool is_counting = false;  // this thread: libsaccade starts none
int ours = 0, others = 0;

void count() {
    if (is_counting) {
        is_counting = false;  // should a backtrace allocate
        ++(origin->is_ours() ? ours : others);
        is_counting = true;
    }
}

template <typename Body>
int counted(Body body) {
    ours = 0;
    is_counting = true;
    const saccade_status status = body();
    is_counting = false;
    OK(status);
    return ours;
}

}  // namespace

extern "C" {

void* malloc(std::size_t size) {
    count();
    return __libc_malloc(size);
}

void* calloc(std::size_t number, std::size_t size) {
    count();
    return __libc_calloc(number, size);
}

void* realloc(void* data, std::size_t size) {
    count();
    return __libc_realloc(data, size);
}

void* memalign(std::size_t alignment, std::size_t size) {
    count();
    return __libc_memalign(alignment, size);
}

void* aligned_alloc(std::size_t alignment, std::size_t size) { return memalign(alignment, size); }

int posix_memalign(void** out, std::size_t alignment, std::size_t size) {
    *out = memalign(alignment, size);
    return *out == nullptr ? ENOMEM : 0;
}

}  // extern "C"

int main(int argc, char** argv) {
    CHECK(argc == 3);
    constexpr std::size_t MOST = 3;
    saccade_image images[MOST] = {made_image(300, 400), made_image(75, 100), made_image(126, 126)};
    for (saccade_image& each : images) {
        each.format = SACCADE_BGR;
    }
    const bool is_plain = is_backbone(argv[1]);
    saccade_model* model = loaded_model(argv[1], argv[2]);
    const Origin here;
    origin = &here;
    for (const std::int32_t fit : {SACCADE_FIT_SQUASH, SACCADE_FIT_CROP}) {
        for (const std::size_t batch : {std::size_t{1}, MOST}) {
            saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
            options.fit = fit;
            options.k = is_plain ? 0 : 20;
            saccade_sizes sizes = SACCADE_SIZES_INIT;
            OK(saccade_plan(model, images, batch, &options, &sizes));
            results made = results_for(&sizes);
            const saccade_outputs look = of_look(made.out);
            saccade_session* session = nullptr;
            // That the counter counts: making a session and warming it up cannot do without.
            CHECK(counted([&] { return saccade_session_create(model, &session); }) > 0);
            CHECK(counted([&] { return saccade_warm_up(session, images, batch, &options); }) > 10);
            others = 0;
            for (int i = 0; i < 3; ++i) {
                CHECK(counted([&] { return saccade_run(session, images, batch, &options, &made.out); }) == 0);
                if (!is_plain) {
                    CHECK(counted([&] { return saccade_look(session, images, batch, &options, &look); }) == 0);
                }
                CHECK(counted([&] { return saccade_cancel(session); }) == 0);
            }
            CHECK(!is_untouched(&made));
            printf("batch %zu: none of ours and %d of the engine's in 3 runs and looks\n", batch, others);
            saccade_session_free(session);
            free(made.bytes);
        }
    }
    for (saccade_image& each : images) {
        free_image(&each);
    }
    saccade_model_free(model);
    return 0;
}
