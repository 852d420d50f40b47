// faults BUNDLE ENGINE_LIBRARY [STRIDE]: whatever allocation of libsaccade's own code finds no memory left, the call says
// SACCADE_OUT_OF_MEMORY, touches no output, loses nothing, and works once there is memory again. Every allocation of
// a call is tried (of a load, which takes its time, every STRIDEth) until the call needs fewer; none after it succeeds
// before the call returns.
#include <openssl/crypto.h>

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <new>

#include "allocator.hpp"

namespace {

const Origin* origin = nullptr;
thread_local bool is_injecting = false;  // this thread: libsaccade starts none
long left = 0;  // allocations of ours that still succeed

bool finds_memory() {
    if (!is_injecting) {
        return true;
    }
    is_injecting = false;
    const bool is_ours = origin->is_ours();
    is_injecting = true;
    return !is_ours || --left >= 0;
}

void* allocated(std::size_t size, std::size_t alignment) {
    if (!finds_memory()) {
        return nullptr;
    }
    return alignment <= alignof(std::max_align_t) ? std::malloc(size) : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

void* needed(std::size_t size, std::size_t alignment = 1) {
    if (void* data = allocated(size, alignment)) {
        return data;
    }
    throw std::bad_alloc();
}

void* crypto_malloc(std::size_t size, const char*, int) { return finds_memory() ? std::malloc(size) : nullptr; }
void* crypto_realloc(void* data, std::size_t size, const char*, int) { return finds_memory() ? std::realloc(data, size) : nullptr; }
void crypto_free(void* data, const char*, int) { std::free(data); }

}  // namespace

void* operator new(std::size_t size) { return needed(size); }
void* operator new[](std::size_t size) { return needed(size); }
void* operator new(std::size_t size, std::align_val_t alignment) { return needed(size, std::size_t(alignment)); }
void* operator new[](std::size_t size, std::align_val_t alignment) { return needed(size, std::size_t(alignment)); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocated(size, 1); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return allocated(size, 1); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete[](void* data, std::size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data, std::size_t, std::align_val_t) noexcept { std::free(data); }

namespace {

int open_files() {
    const std::filesystem::directory_iterator files("/proc/self/fd");
    return static_cast<int>(std::distance(begin(files), end(files)));
}

// Makes `call` fail at each of its allocations, and lets it succeed at last. `undo` follows each failure.
template <typename Call, typename Undo>
void each_allocation_fails(const char* what, long stride, Call call, Undo undo) {
    const int files = open_files();
    long failures = 0;
    for (long n = 0;; n += stride) {
        left = n;
        is_injecting = true;
        const saccade_status status = call();
        is_injecting = false;
        if (status == SACCADE_OK) {
            break;
        }
        REFUSED(status, SACCADE_OUT_OF_MEMORY, "out of memory");
        undo();
        CHECK(open_files() == files);
        ++failures;
    }
    CHECK(failures > 0);
    printf("%s: failed at %ld allocations\n", what, failures);
}

void check_bundle(const char* path) {
    saccade_bundle* bundle = nullptr;
    each_allocation_fails("open", 1, [&] { return saccade_bundle_open(path, &bundle); }, [&] { CHECK(bundle == nullptr); });
    saccade_built_engine engine = SACCADE_BUILT_ENGINE_INIT;
    const saccade_built_engine before = engine;
    each_allocation_fails("list engines", 1, [&] { return saccade_bundle_engine(bundle, 0, &engine); },
                          [&] { CHECK(std::memcmp(&engine, &before, sizeof engine) == 0); });
    saccade_bundle_free(bundle);
}

void check_load(const char* path, const char* engine_library, long stride) {
    const saccade_model_options options = options_with(engine_library);
    saccade_bundle* bundle = nullptr;
    saccade_model* model = nullptr;
    OK(saccade_bundle_open(path, &bundle));
    each_allocation_fails("load", stride, [&] { return saccade_model_load(bundle, &options, &model); },
                          [&] { CHECK(model == nullptr); });
    saccade_model_free(model);
    saccade_bundle_free(bundle);
}

// A session whose allocations fail one after the other, at each of which it goes on with what it has; and one that is new
// for each.
void check_session(saccade_model* model, bool is_plain, const saccade_image* images, std::size_t batch) {
    saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    options.k = is_plain ? 0 : 20;
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    OK(saccade_plan(model, images, batch, &options, &sizes));
    results made = results_for(&sizes), expected = results_for(&sizes);
    saccade_session* session = nullptr;
    OK(saccade_session_create(model, &session));
    OK(saccade_run(session, images, batch, &options, &expected.out));
    saccade_session_free(session);
    session = nullptr;

    each_allocation_fails("make a session", 1, [&] { return saccade_session_create(model, &session); },
                          [&] { CHECK(session == nullptr); });
    const auto nothing_is_written = [&] { CHECK(is_untouched(&made)); };
    each_allocation_fails("run", 1, [&] { return saccade_run(session, images, batch, &options, &made.out); }, nothing_is_written);
    CHECK(is_same(&made, &expected));

    const auto renew = [&] {
        nothing_is_written();
        saccade_session_free(session);
        OK(saccade_session_create(model, &session));
    };
    spoil(&made);
    renew();
    each_allocation_fails("run first", 1, [&] { return saccade_run(session, images, batch, &options, &made.out); }, renew);
    CHECK(is_same(&made, &expected));
    spoil(&made);
    renew();
    if (!is_plain) {
        const saccade_outputs look = of_look(made.out);
        each_allocation_fails("look first", 1, [&] { return saccade_look(session, images, batch, &options, &look); }, renew);
        spoil(&made);
        renew();
    }
    each_allocation_fails("warm up", 1, [&] { return saccade_warm_up(session, images, batch, &options); }, renew);
    saccade_session_free(session);
    free(expected.bytes);
    free(made.bytes);
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 3 || argc == 4);
    const long stride = argc == 4 ? std::atol(argv[3]) : 1;
    CHECK(CRYPTO_set_mem_functions(crypto_malloc, crypto_realloc, crypto_free) == 1);
    const bool is_plain = is_backbone(argv[1]);
    saccade_model* model = loaded_model(argv[1], argv[2]);
    const Origin here;
    origin = &here;
    check_bundle(argv[1]);
    check_load(argv[1], argv[2], stride);
    saccade_image images[] = {made_image(75, 100), made_image(126, 126)};
    check_session(model, is_plain, images, 2);
    for (saccade_image& each : images) {
        free_image(&each);
    }
    saccade_model_free(model);
    return 0;
}
