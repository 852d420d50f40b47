// Every exported function of saccade.h: read the caller's structs, make one call, turn what is thrown into a status.
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "bundle.hpp"
#include "engine.hpp"
#include "failure.hpp"
#include "fields.hpp"
#include "loaded_model.hpp"
#include "names.hpp"
#include "receipts.hpp"
#include "saccade.h"
#include "session.hpp"

using namespace saccade;

struct saccade_bundle {
    const Bundle content;
};

struct saccade_model {
    const std::shared_ptr<const LoadedModel> content;
};

struct saccade_session {
    Session content;
    explicit saccade_session(std::shared_ptr<const LoadedModel> model) : content(std::move(model)) {}
};

namespace {

constexpr std::size_t MAX_STRUCT = 4096;  // larger than any struct here will grow
constexpr int MAX_THREADS = 1024;
constexpr int MAX_STREAMS = 64;

// This thread's last error: an array, so that it can be written where no memory is left.
thread_local char last_error[1024] = "no call has failed in this thread";

// How many bytes the UTF-8 character at `text` has; 0 where there is none, or one that would break the line.
std::size_t character_size(const char* text) noexcept {
    const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char first = byte(0);
    if (first < 0x80) {
        return first < 0x20 || first == 0x7F ? 0 : 1;
    }
    const std::size_t size = first < 0xC2 || first > 0xF4 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    for (std::size_t i = 1; i < size; ++i) {
        if ((byte(i) & 0xC0) != 0x80) {  // the end of the text, too
            return 0;
        }
    }
    const bool is_overlong = (first == 0xE0 && byte(1) < 0xA0) || (first == 0xF0 && byte(1) < 0x90);
    const bool is_no_character = (first == 0xED && byte(1) > 0x9F) || (first == 0xF4 && byte(1) > 0x8F);  // surrogates
    const bool is_control = first == 0xC2 && byte(1) < 0xA0;
    const bool is_line_break = first == 0xE2 && byte(1) == 0x80 && (byte(2) == 0xA8 || byte(2) == 0xA9);
    return is_overlong || is_no_character || is_control || is_line_break ? 0 : size;
}

// Keeps the line, with what is not printable (a path or an engine's own words may be quoted) made visible.
saccade_status remember(saccade_status status, const char* line) noexcept {
    std::size_t used = 0;
    while (*line != '\0' && used + 5 < sizeof last_error) {
        const std::size_t size = character_size(line);
        if (size == 0) {
            const auto byte = static_cast<unsigned char>(*line++);
            used += static_cast<std::size_t>(std::snprintf(last_error + used, 5, "\\x%02x", byte));
        } else {
            std::memcpy(last_error + used, line, size);
            used += size;
            line += size;
        }
    }
    last_error[used] = '\0';
    return status;
}

// Puts off a pthread_cancel of this thread: its unwinding would have to get past `guarded`, and ends the process there.
class UncancelledThread {
public:
    UncancelledThread() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
    ~UncancelledThread() { pthread_setcancelstate(before_, nullptr); }
    UncancelledThread(const UncancelledThread&) = delete;
    UncancelledThread& operator=(const UncancelledThread&) = delete;

private:
    int before_ = 0;
};

// The one way into the library: nothing that is thrown gets past it.
template <typename Body>
saccade_status guarded(Body body) noexcept {
    const UncancelledThread held;
    try {
        body();
        return SACCADE_OK;
    } catch (const Failure& failure) {
        return remember(failure.status(), failure.what());
    } catch (const std::bad_alloc&) {
        return remember(SACCADE_OUT_OF_MEMORY, "out of memory; use fewer or smaller images, or a smaller k");
    } catch (const std::exception& error) {
        return remember(SACCADE_INTERNAL, error.what());
    } catch (...) {
        return remember(SACCADE_INTERNAL, "an exception of no known type; please report it");
    }
}

// The size of each struct in the first version of the header that had it. These numbers never change: a program built with
// that header states them.
static_assert(sizeof(void*) == 8, "saccade.h is laid out for 64 bits");
template <typename Struct>
constexpr std::size_t FIRST_SIZE = 0;
template <>
constexpr std::size_t FIRST_SIZE<saccade_info> = 84;
template <>
constexpr std::size_t FIRST_SIZE<saccade_built_engine> = 208;
template <>
constexpr std::size_t FIRST_SIZE<saccade_model_options> = 56;
template <>
constexpr std::size_t FIRST_SIZE<saccade_run_options> = 40;
template <>
constexpr std::size_t FIRST_SIZE<saccade_sizes> = 88;
template <>
constexpr std::size_t FIRST_SIZE<saccade_outputs> = 136;
template <>
constexpr std::size_t FIRST_SIZE<saccade_timings> = 72;
static_assert(sizeof(saccade_image) == 40, "saccade_image is passed in arrays and never grows");

// The size that a struct of the caller's says it has. A smaller one is of an older header, a larger one of a newer.
template <typename Struct>
std::size_t stated_size(const Struct* given, const char* init) {
    static_assert(FIRST_SIZE<Struct> > 0 && sizeof(Struct) >= FIRST_SIZE<Struct>, "structs only grow");
    std::uint32_t size = 0;
    std::memcpy(&size, given, sizeof size);
    if (size < FIRST_SIZE<Struct> || size > MAX_STRUCT) {
        fail(SACCADE_INVALID_ARGUMENT, "struct_size " + std::to_string(size) + " is wrong; start from " + init);
    }
    return size;
}

// A struct of the caller's as this library knows it; NULL gives `defaults`.
template <typename Struct>
Struct read_struct(const Struct* given, Struct defaults, const char* init) {
    if (given == nullptr) {
        return defaults;
    }
    const std::size_t size = stated_size(given, init);
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    for (std::size_t i = sizeof(Struct); i < size; ++i) {
        if (bytes[i] != 0) {
            fail(SACCADE_UNSUPPORTED, std::string("a field is set that this version does not know; start from ") + init +
                                          " or upgrade libsaccade");
        }
    }
    std::memcpy(&defaults, given, std::min(size, sizeof(Struct)));
    return defaults;
}

// Gives a struct out, as much of it as the caller has room for.
template <typename Struct>
void write_struct(const Struct& filled, Struct* out, const char* init) {
    const std::size_t size = stated_size(out, init);
    constexpr std::size_t HEAD = sizeof(std::uint32_t);  // struct_size stays the caller's
    std::memcpy(reinterpret_cast<unsigned char*>(out) + HEAD, reinterpret_cast<const unsigned char*>(&filled) + HEAD,
                std::min(size, sizeof(Struct)) - HEAD);
}

template <std::size_t size>
void copy_text(const std::string& text, char (&out)[size]) {
    const std::size_t count = std::min(text.size(), size - 1);
    std::memcpy(out, text.data(), count);
    out[count] = '\0';
}

saccade_info info_of(const Manifest& manifest) {
    const Model& model = manifest.model;
    saccade_info info = SACCADE_INFO_INIT;
    info.task = static_cast<std::int32_t>(manifest.task);
    info.patch = model.patch;
    info.dim = model.dim;
    info.prefix = model.prefix;
    info.classes = model.classes;
    info.selector_size = model.selector_size;
    info.map_size = model.map_size;
    info.base_rows = model.base_grid.rows;
    info.base_columns = model.base_grid.columns;
    info.kind = static_cast<std::int32_t>(model.kind);
    info.heads = model.heads;
    info.cls_blocks = model.has_cls_last4() ? CLS_BLOCKS : 0;
    info.default_height = manifest.defaults.height;
    info.default_width = manifest.defaults.width;
    const std::int64_t cells = std::int64_t{manifest.defaults.height / model.patch} * (manifest.defaults.width / model.patch);
    info.default_k = static_cast<std::int32_t>(std::min<std::int64_t>(manifest.defaults.k_on(cells), INT32_MAX));
    std::copy_n(manifest.mean, 3, info.mean);
    std::copy_n(manifest.std, 3, info.std);
    for (std::int32_t precision = SACCADE_FP32; precision <= SACCADE_FP8; ++precision) {
        const auto has = [&](const auto& graphs) { return graphs.second.count(precision_name(precision)) != 0; };
        info.precisions |= std::all_of(manifest.graphs.begin(), manifest.graphs.end(), has) ? 1u << precision : 0u;
    }
    return info;
}

EngineRequest request_from(const saccade_model_options& options) {
    const auto check = [](bool met, const char* name, std::int32_t value, const std::string& allowed) {
        if (!met) {
            fail(SACCADE_INVALID_ARGUMENT, std::string(name) + " " + std::to_string(value) + " is out of range; give " + allowed);
        }
    };
    check(engine_name(options.engine) != nullptr, "engine", options.engine, "one of SACCADE_ENGINE_...");
    check(precision_name(options.precision) != nullptr, "precision", options.precision, "one of SACCADE_FP32, ...");
    check(options.device >= 0, "device", options.device, "the index of a GPU, or 0");
    check(options.threads >= 0 && options.threads <= MAX_THREADS, "threads", options.threads, "0 to " + std::to_string(MAX_THREADS));
    check(options.streams >= 0 && options.streams <= MAX_STREAMS, "streams", options.streams, "0 to " + std::to_string(MAX_STREAMS));
    check(options.compile == 0 || options.compile == 1, "compile", options.compile, "0 or 1");
    check(options.reserved == 0, "reserved", options.reserved, "0");
    return {options.engine, options.precision, options.device, options.threads, std::max(options.streams, 1), options.compile == 1,
            options.engine_library == nullptr ? "" : options.engine_library, options.log, options.log_user};
}

saccade_run_options run_options(const saccade_run_options* options) {
    return read_struct<saccade_run_options>(options, SACCADE_RUN_OPTIONS_INIT, "SACCADE_RUN_OPTIONS_INIT");
}

saccade_outputs outputs_from(const saccade_outputs* outputs) {
    require(outputs != nullptr, "outputs is NULL; give a saccade_outputs");
    const saccade_outputs known = read_struct<saccade_outputs>(outputs, SACCADE_OUTPUTS_INIT, "SACCADE_OUTPUTS_INIT");
    require(known.reserved == 0, "reserved must be 0; start from SACCADE_OUTPUTS_INIT");
    return known;
}

}  // namespace

extern "C" {

uint32_t saccade_version(void) { return SACCADE_VERSION_NUMBER; }

const char* saccade_status_name(saccade_status status) {
    switch (status) {
        case SACCADE_OK: return "ok";
        case SACCADE_INVALID_ARGUMENT: return "invalid argument";
        case SACCADE_NOT_FOUND: return "not found";
        case SACCADE_IO_ERROR: return "i/o error";
        case SACCADE_INVALID_BUNDLE: return "invalid bundle";
        case SACCADE_UNSUPPORTED: return "unsupported";
        case SACCADE_ENGINE_UNAVAILABLE: return "engine unavailable";
        case SACCADE_ENGINE_FAILED: return "engine failed";
        case SACCADE_BUFFER_TOO_SMALL: return "buffer too small";
        case SACCADE_BUSY: return "busy";
        case SACCADE_CANCELLED: return "cancelled";
        case SACCADE_NOT_FINITE: return "not finite";
        case SACCADE_OUT_OF_MEMORY: return "out of memory";
        case SACCADE_CHANGED: return "changed";
        case SACCADE_INTERNAL: return "internal error";
        default: return "unknown";
    }
}

const char* saccade_engine_name(int32_t engine) {
    const char* name = engine_name(engine);
    return name != nullptr ? name : "unknown";
}

const char* saccade_precision_name(int32_t precision) {
    const char* name = precision_name(precision);
    return name != nullptr ? name : "unknown";
}

int32_t saccade_engine_from_name(const char* name) { return engine_from_name(name); }

int32_t saccade_precision_from_name(const char* name) { return precision_from_name(name); }

const char* saccade_last_error(void) { return last_error; }

saccade_status saccade_bundle_open(const char* path, saccade_bundle** out_bundle) {
    return guarded([&] {
        require(path != nullptr && *path != '\0', "path is NULL or empty; give a bundle folder");
        require(out_bundle != nullptr, "out_bundle is NULL; give the address of a handle");
        *out_bundle = new saccade_bundle{bundle_from_folder(path)};
    });
}

void saccade_bundle_free(saccade_bundle* bundle) { delete bundle; }

saccade_status saccade_bundle_info(const saccade_bundle* bundle, saccade_info* out_info) {
    return guarded([&] {
        require(bundle != nullptr, "bundle is NULL; open one with saccade_bundle_open");
        require(out_info != nullptr, "out_info is NULL; give a saccade_info");
        write_struct(info_of(bundle->content.manifest), out_info, "SACCADE_INFO_INIT");
    });
}

saccade_status saccade_bundle_engine(const saccade_bundle* bundle, size_t index, saccade_built_engine* out_engine) {
    return guarded([&] {
        require(bundle != nullptr, "bundle is NULL; open one with saccade_bundle_open");
        require(out_engine != nullptr, "out_engine is NULL; give a saccade_built_engine");
        std::vector<Receipt> receipts = receipts_of(bundle->content);
        const auto is_foreign = [](const Receipt& each) {  // onnxruntime's, and those of words that only a newer one knows
            return engine_from_name(each.engine.c_str()) < 0 || precision_from_name(each.precision.c_str()) < 0;
        };
        receipts.erase(std::remove_if(receipts.begin(), receipts.end(), is_foreign), receipts.end());
        if (index >= receipts.size()) {
            fail(SACCADE_NOT_FOUND, bundle->content.path + ": built engines that can be read: " +
                                        std::to_string(receipts.size()) + ", so there is no number " + std::to_string(index));
        }
        const Receipt& receipt = receipts[index];
        saccade_built_engine built = SACCADE_BUILT_ENGINE_INIT;
        built.engine = engine_from_name(receipt.engine.c_str());
        built.precision = precision_from_name(receipt.precision.c_str());
        built.runs = has_form(receipt.conditions) ? 0 : 1;
        const auto version = receipt.conditions.find("version");
        copy_text(version != receipt.conditions.end() ? shown(version->second, sizeof built.version) : "unknown", built.version);
        copy_text(shown(receipt.name, receipt.name.size()), built.folder);
        write_struct(built, out_engine, "SACCADE_BUILT_ENGINE_INIT");
    });
}

saccade_status saccade_model_load(const saccade_bundle* bundle, const saccade_model_options* options, saccade_model** out_model) {
    return guarded([&] {
        require(bundle != nullptr, "bundle is NULL; open one with saccade_bundle_open");
        require(out_model != nullptr, "out_model is NULL; give the address of a handle");
        const EngineRequest request = request_from(
            read_struct<saccade_model_options>(options, SACCADE_MODEL_OPTIONS_INIT, "SACCADE_MODEL_OPTIONS_INIT"));
        auto engine = load_engine(bundle->content, request);
        *out_model = new saccade_model{std::make_shared<const LoadedModel>(bundle->content, std::move(engine))};
    });
}

void saccade_model_free(saccade_model* model) { delete model; }

const char* saccade_model_description(const saccade_model* model) {
    return model == nullptr ? "no model" : model->content->engine->description().c_str();
}

saccade_status saccade_plan(const saccade_model* model, const saccade_image* images, size_t count,
                            const saccade_run_options* options, saccade_sizes* out_sizes) {
    return guarded([&] {
        require(model != nullptr, "model is NULL; load one with saccade_model_load");
        require(out_sizes != nullptr, "out_sizes is NULL; give a saccade_sizes");
        const Manifest& manifest = model->content->manifest;
        write_struct(sizes_of(manifest, plan_of(manifest, images, count, run_options(options))), out_sizes, "SACCADE_SIZES_INIT");
    });
}

saccade_status saccade_session_create(const saccade_model* model, saccade_session** out_session) {
    return guarded([&] {
        require(model != nullptr, "model is NULL; load one with saccade_model_load");
        require(out_session != nullptr, "out_session is NULL; give the address of a handle");
        model->content->engine->check_files();  // which the engine may read to make its requests
        *out_session = new saccade_session(model->content);
    });
}

void saccade_session_free(saccade_session* session) { delete session; }

saccade_status saccade_run(saccade_session* session, const saccade_image* images, size_t count,
                           const saccade_run_options* options, const saccade_outputs* outputs) {
    return guarded([&] {
        require(session != nullptr, "session is NULL; make one with saccade_session_create");
        session->content.run(images, count, run_options(options), outputs_from(outputs));
    });
}

saccade_status saccade_look(saccade_session* session, const saccade_image* images, size_t count,
                            const saccade_run_options* options, const saccade_outputs* outputs) {
    return guarded([&] {
        require(session != nullptr, "session is NULL; make one with saccade_session_create");
        session->content.look(images, count, run_options(options), outputs_from(outputs));
    });
}

saccade_status saccade_warm_up(saccade_session* session, const saccade_image* images, size_t count,
                               const saccade_run_options* options) {
    return guarded([&] {
        require(session != nullptr, "session is NULL; make one with saccade_session_create");
        session->content.warm_up(images, count, run_options(options));
    });
}

saccade_status saccade_cancel(saccade_session* session) {
    return guarded([&] {
        require(session != nullptr, "session is NULL; make one with saccade_session_create");
        session->content.cancel();
    });
}

saccade_status saccade_session_timings(saccade_session* session, saccade_timings* out_timings) {
    return guarded([&] {
        require(session != nullptr, "session is NULL; make one with saccade_session_create");
        require(out_timings != nullptr, "out_timings is NULL; give a saccade_timings");
        write_struct(session->content.timings(), out_timings, "SACCADE_TIMINGS_INIT");
    });
}

}  // extern "C"
