// changes BUNDLE ENGINE_LIBRARY SCRATCH: a bundle that changes on disk under a loaded model, and under an open bundle. What
// is written over or cut is SACCADE_CHANGED, what is deleted or replaced goes on as it was; nothing crashes.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "check.h"

namespace fs = std::filesystem;

namespace {

const char* engine_library;
bool is_plain;  // a plain backbone's bundle
saccade_image image;

fs::path fresh_copy(const fs::path& bundle, const fs::path& scratch) {
    const fs::path copy = scratch / "bundle";
    fs::remove_all(copy);
    fs::copy(bundle, copy, fs::copy_options::recursive);
    return copy;
}

fs::path engine_folder(const fs::path& bundle) {
    saccade_bundle* opened = nullptr;
    saccade_built_engine engine = SACCADE_BUILT_ENGINE_INIT;
    OK(saccade_bundle_open(bundle.c_str(), &opened));
    OK(saccade_bundle_engine(opened, 0, &engine));
    saccade_bundle_free(opened);
    return bundle / "engines" / engine.folder;
}

void write_over(const fs::path& file) {
    const auto size = fs::file_size(file);
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    const std::string zeros(size, '\0');
    CHECK(stream.write(zeros.data(), static_cast<std::streamsize>(size)).flush());
}

void cut_short(const fs::path& file) { fs::resize_file(file, 100); }

void make_empty(const fs::path& file) { fs::resize_file(file, 0); }

void append_to(const fs::path& file) { CHECK(std::ofstream(file, std::ios::binary | std::ios::app).put('\0').flush()); }

void delete_file(const fs::path& file) { fs::remove(file); }

void replace_file(const fs::path& file) {
    const fs::path other = file.string() + ".new";
    CHECK(std::ofstream(other, std::ios::binary).write("something else", 14).flush());
    fs::rename(other, file);
}

// A session that was warm before the change, all buffers of its outputs, and what it gave then.
struct Loaded {
    saccade_model* model;
    saccade_session* session = nullptr;
    results expected, made;

    explicit Loaded(const fs::path& bundle) : model(loaded_model(bundle.c_str(), engine_library)) {
        saccade_sizes sizes = SACCADE_SIZES_INIT;
        OK(saccade_session_create(model, &session));
        OK(saccade_plan(model, &image, 1, nullptr, &sizes));
        expected = results_for(&sizes);
        made = results_for(&sizes);
        OK(saccade_run(session, &image, 1, nullptr, &expected.out));
    }
    ~Loaded() {
        saccade_session_free(session);
        saccade_model_free(model);
        free(expected.bytes);
        free(made.bytes);
    }
    Loaded(const Loaded&) = delete;
    Loaded& operator=(const Loaded&) = delete;

    void check_run_is_unchanged(saccade_session* in) {
        spoil(&made);
        OK(saccade_run(in, &image, 1, nullptr, &made.out));
        CHECK(is_same(&made, &expected));
    }
    void check_refuses(saccade_session* in, const char* file) {
        const saccade_outputs look = of_look(made.out);
        spoil(&made);
        REFUSED(saccade_run(in, &image, 1, nullptr, &made.out), SACCADE_CHANGED, file);
        if (!is_plain) {
            REFUSED(saccade_look(in, &image, 1, nullptr, &look), SACCADE_CHANGED, file);
        }
        REFUSED(saccade_warm_up(in, &image, 1, nullptr), SACCADE_CHANGED, file);
        CHECK(is_untouched(&made));
    }
};

using Change = void (*)(const fs::path&);

void written_after_load_is_changed(const fs::path& copy, const char* role, Change change) {
    const std::string file = std::string(role) + ".blob";
    Loaded loaded(copy);
    change(engine_folder(copy) / file);
    loaded.check_refuses(loaded.session, file.c_str());
    saccade_session* fresh = nullptr;
    REFUSED(saccade_session_create(loaded.model, &fresh), SACCADE_CHANGED, file.c_str());
    CHECK(fresh == nullptr);
}

void gone_after_load_goes_on(const fs::path& copy, const char* role, Change change) {
    Loaded loaded(copy);
    change(engine_folder(copy) / (std::string(role) + ".blob"));
    loaded.check_run_is_unchanged(loaded.session);
    saccade_session* fresh = nullptr;
    OK(saccade_session_create(loaded.model, &fresh));
    loaded.check_run_is_unchanged(fresh);
    saccade_session_free(fresh);
}

void changed_before_load_is_refused(const fs::path& copy, const char* role, Change change, saccade_status status) {
    const std::string file = std::string(role) + ".blob";
    const fs::path folder = engine_folder(copy);
    const saccade_model_options options = options_with(engine_library);
    saccade_bundle* bundle = nullptr;
    saccade_model* model = nullptr;
    OK(saccade_bundle_open(copy.c_str(), &bundle));
    change(folder / file);
    REFUSED(saccade_model_load(bundle, &options, &model), status, file.c_str());
    CHECK(model == nullptr);
    saccade_bundle_free(bundle);
}

// bundle.json and the position table are read once, by saccade_bundle_open.
void description_may_change(const fs::path& copy, Change change) {
    Loaded loaded(copy);
    const saccade_model_options options = options_with(engine_library);
    saccade_bundle* bundle = nullptr;
    saccade_model* model = nullptr;
    saccade_session* session = nullptr;
    OK(saccade_bundle_open(copy.c_str(), &bundle));
    change(copy / "bundle.json");
    change(copy / "positions.npy");
    loaded.check_run_is_unchanged(loaded.session);
    OK(saccade_model_load(bundle, &options, &model));
    OK(saccade_session_create(model, &session));
    loaded.check_run_is_unchanged(session);
    saccade_bundle* again = nullptr;
    CHECK(saccade_bundle_open(copy.c_str(), &again) != SACCADE_OK && again == nullptr);
    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
}

std::string content(const fs::path& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

saccade_status open_with_description(const fs::path& copy, const std::string& text) {
    std::ofstream(copy / "bundle.json", std::ios::binary) << text;
    saccade_bundle* bundle = nullptr;
    const saccade_status status = saccade_bundle_open(copy.c_str(), &bundle);
    CHECK((status == SACCADE_OK) == (bundle != nullptr));
    saccade_bundle_free(bundle);
    return status;
}

void description_is_read_with_care(const fs::path& copy) {
    const std::string text = content(copy / "bundle.json"), deep = std::string(1000000, '[');
    REFUSED(open_with_description(copy, deep), SACCADE_INVALID_BUNDLE, "not a JSON object");
    REFUSED(open_with_description(copy, "{\"format\":" + deep), SACCADE_INVALID_BUNDLE, "not a JSON object");
    REFUSED(open_with_description(copy, text.substr(0, text.size() / 2)), SACCADE_INVALID_BUNDLE, "not a JSON object");
    REFUSED(open_with_description(copy, "{\"model\":{}," + text.substr(1, text.rfind('}') - 1) + ",\"model\":[1,{}]}"),
            SACCADE_INVALID_BUNDLE, "model");  // the last of two counts
    OK(open_with_description(copy, "{\"model\":[[1],{\"dim\":2}]," + text.substr(1)));
    OK(open_with_description(copy, text));
}

}  // namespace

int main(int argc, char** argv) {
    CHECK(argc == 4);
    engine_library = argv[2];
    const fs::path bundle = argv[1], scratch = argv[3];
    image = made_image(75, 100);
    const auto copy = [&] { return fresh_copy(bundle, scratch); };
    is_plain = is_backbone(argv[1]);
    for (const char* role : is_plain ? std::vector{"backbone"} : std::vector{"selector", "extractor"}) {
        for (const Change change : {write_over, cut_short, make_empty, append_to}) {
            written_after_load_is_changed(copy(), role, change);
        }
        for (const Change change : {delete_file, replace_file}) {
            gone_after_load_goes_on(copy(), role, change);
        }
        for (const Change change : {write_over, cut_short, make_empty, append_to, replace_file}) {
            changed_before_load_is_refused(copy(), role, change, SACCADE_INVALID_BUNDLE);
        }
        changed_before_load_is_refused(copy(), role, delete_file, SACCADE_NOT_FOUND);
    }
    for (const Change change : {write_over, cut_short, make_empty, delete_file, replace_file}) {
        description_may_change(copy(), change);
    }
    description_is_read_with_care(copy());
    free_image(&image);
    return 0;
}
