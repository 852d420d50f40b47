/* arguments BUNDLE ENGINE_LIBRARY: every function, given each thing that it cannot take, says so and touches nothing. */
#include <math.h>

#include "check.h"

#define ENORMOUS 1000000000000000000 /* 10^18: products with it do not fit 64 bits */

static const char* bundle_path;
static const char* engine_library;
static saccade_bundle* bundle;
static saccade_model* model;
static saccade_session* session;
static saccade_info info;
static results outputs; /* of one image with default options */

/* ---- structs of other sizes ---- */

/* Of the header that first had it: what a program built then says, and this library still takes. */
#define FIRST_SIZE_saccade_info 84
#define FIRST_SIZE_saccade_built_engine 208
#define FIRST_SIZE_saccade_model_options 56
#define FIRST_SIZE_saccade_run_options 40
#define FIRST_SIZE_saccade_sizes 88
#define FIRST_SIZE_saccade_outputs 136
#define FIRST_SIZE_saccade_timings 72

static const uint32_t WRONG_SIZES[] = {0, 1, 4, 4097, UINT32_MAX};
#define EACH_WRONG_SIZE(type, size) \
    for (uint32_t nth = 0, size = 0; nth < 6 && (size = nth < 5 ? WRONG_SIZES[nth] : FIRST_SIZE_##type - 1, 1); ++nth)

/* `call` fills `*given`, a struct of a caller whose header may be older or newer. */
#define CHECK_FILLED_STRUCT(type, init, call)                                \
    do {                                                                     \
        struct {                                                             \
            type known;                                                      \
            unsigned char tail[32];                                          \
        } grown;                                                             \
        const type initial = init;                                           \
        type* const given = &grown.known;                                    \
        EACH_WRONG_SIZE(type, size) {                                        \
            memset(&grown, PATTERN, sizeof grown);                           \
            given->struct_size = size;                                       \
            REFUSED(call, SACCADE_INVALID_ARGUMENT, "struct_size");          \
            CHECK(given->struct_size == size);                               \
            CHECK(all_bytes_are((char*)&grown + 4, sizeof grown - 4, PATTERN)); \
        }                                                                    \
        memset(&grown, PATTERN, sizeof grown);                               \
        *given = initial;                                                    \
        given->struct_size = (uint32_t)(sizeof(type) + 32);                  \
        OK(call);                                                            \
        CHECK(given->struct_size == sizeof(type) + 32);                      \
        CHECK(all_bytes_are(grown.tail, 32, PATTERN));                       \
        const size_t first = FIRST_SIZE_##type;                              \
        const type newest = *given;                                          \
        memset(&grown, PATTERN, sizeof grown);                               \
        given->struct_size = FIRST_SIZE_##type;                              \
        OK(call);                                                            \
        CHECK(given->struct_size == first);                                  \
        CHECK(memcmp((char*)&grown + 4, (const char*)&newest + 4, first - 4) == 0); \
        CHECK(all_bytes_are((char*)&grown + first, sizeof grown - first, PATTERN)); \
    } while (0)

/* `call` reads `*given`; `after` follows each refusal. */
#define CHECK_READ_STRUCT(type, initial, call, after)               \
    do {                                                            \
        struct {                                                    \
            type known;                                             \
            unsigned char tail[32];                                 \
        } grown;                                                    \
        memset(&grown, 0, sizeof grown);                            \
        type* const given = &grown.known;                           \
        *given = initial;                                           \
        EACH_WRONG_SIZE(type, size) {                               \
            given->struct_size = size;                              \
            REFUSED(call, SACCADE_INVALID_ARGUMENT, "struct_size"); \
            after;                                                  \
        }                                                           \
        given->struct_size = (uint32_t)(sizeof(type) + 32);         \
        grown.tail[31] = 1;                                         \
        REFUSED(call, SACCADE_UNSUPPORTED, "does not know");        \
        after;                                                      \
        grown.tail[31] = 0;                                         \
        OK(call);                                                   \
        const size_t first = FIRST_SIZE_##type;                     \
        given->struct_size = FIRST_SIZE_##type;                     \
        memset((char*)&grown + first, PATTERN, sizeof grown - first); \
        OK(call);                                                   \
    } while (0)

/* ---- the library ---- */

static void check_names(void) {
    CHECK(saccade_version() == SACCADE_VERSION_NUMBER);
    const int32_t strange[] = {-1, 14, 98, 100, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof strange / sizeof *strange; ++i) {
        CHECK(strcmp(saccade_status_name(strange[i]), "unknown") == 0);
        CHECK(strcmp(saccade_engine_name(strange[i]), "unknown") == 0);
        CHECK(strcmp(saccade_precision_name(strange[i]), "unknown") == 0);
    }
    for (int32_t i = SACCADE_FP32; i <= SACCADE_FP8; ++i) {
        CHECK(saccade_precision_from_name(saccade_precision_name(i)) == i);
    }
    for (int32_t i = SACCADE_ENGINE_OPENVINO; i <= SACCADE_ENGINE_TENSORRT_RTX; ++i) {
        CHECK(saccade_engine_from_name(saccade_engine_name(i)) == i);
    }
    const char* const no_names[] = {NULL, "", "unknown", "FP32", "openvino ", "\xff\xfe"};
    for (size_t i = 0; i < sizeof no_names / sizeof *no_names; ++i) {
        CHECK(saccade_engine_from_name(no_names[i]) == -1);
        CHECK(saccade_precision_from_name(no_names[i]) == -1);
    }
    CHECK(strcmp(saccade_last_error(), "no call has failed in this thread") == 0);
    saccade_bundle_free(NULL);
    saccade_model_free(NULL);
    saccade_session_free(NULL);
}

/* ---- bundles ---- */

static void check_bundle_open(void) {
    saccade_bundle* const sentinel = (saccade_bundle*)(uintptr_t)64;
    saccade_bundle* opened = sentinel;
    REFUSED(saccade_bundle_open(NULL, &opened), SACCADE_INVALID_ARGUMENT, "path");
    REFUSED(saccade_bundle_open("", &opened), SACCADE_INVALID_ARGUMENT, "path");
    REFUSED(saccade_bundle_open(bundle_path, NULL), SACCADE_INVALID_ARGUMENT, "out_bundle");
    REFUSED(saccade_bundle_open("/no/such/folder", &opened), SACCADE_NOT_FOUND, "/no/such/folder");
    REFUSED(saccade_bundle_open("/dev/null", &opened), SACCADE_NOT_FOUND, "not a bundle folder");
    REFUSED(saccade_bundle_open("/proc", &opened), SACCADE_NOT_FOUND, "bundle.json");
    REFUSED(saccade_bundle_open("a\nb\x01", &opened), SACCADE_NOT_FOUND, "a\\x0ab\\x01");
    static char endless[100000]; /* longer than a path, and than the line that quotes it */
    memset(endless, 'x', sizeof endless - 1);
    REFUSED(saccade_bundle_open(endless, &opened), SACCADE_NOT_FOUND, "xxx");
    CHECK(opened == sentinel);
}

static void check_bundle(void) {
    REFUSED(saccade_bundle_info(NULL, &info), SACCADE_INVALID_ARGUMENT, "bundle");
    REFUSED(saccade_bundle_info(bundle, NULL), SACCADE_INVALID_ARGUMENT, "out_info");
    CHECK_FILLED_STRUCT(saccade_info, SACCADE_INFO_INIT, saccade_bundle_info(bundle, given));

    saccade_built_engine engine = SACCADE_BUILT_ENGINE_INIT;
    const saccade_built_engine before = engine;
    REFUSED(saccade_bundle_engine(NULL, 0, &engine), SACCADE_INVALID_ARGUMENT, "bundle");
    REFUSED(saccade_bundle_engine(bundle, 0, NULL), SACCADE_INVALID_ARGUMENT, "out_engine");
    REFUSED(saccade_bundle_engine(bundle, 1, &engine), SACCADE_NOT_FOUND, "engines");
    REFUSED(saccade_bundle_engine(bundle, SIZE_MAX, &engine), SACCADE_NOT_FOUND, "engines");
    CHECK(memcmp(&engine, &before, sizeof engine) == 0);
    CHECK_FILLED_STRUCT(saccade_built_engine, SACCADE_BUILT_ENGINE_INIT, saccade_bundle_engine(bundle, 0, given));
}

/* ---- models ---- */

static void refuse_load(saccade_model_options options, saccade_status status, const char* part) {
    saccade_model* const sentinel = (saccade_model*)(uintptr_t)64;
    saccade_model* loaded = sentinel;
    REFUSED(saccade_model_load(bundle, &options, &loaded), status, part);
    CHECK(loaded == sentinel);
}

#define REFUSE_OPTION(field, value, status, part)                        \
    do {                                                                 \
        saccade_model_options options = options_with(engine_library);    \
        options.field = (value);                                         \
        refuse_load(options, (status), (part));                          \
    } while (0)

static saccade_status loaded_and_freed(const saccade_model_options* options) {
    saccade_model* loaded = NULL;
    const saccade_status status = saccade_model_load(bundle, options, &loaded);
    CHECK((status == SACCADE_OK) == (loaded != NULL));
    saccade_model_free(loaded);
    return status;
}

static void check_model_load(void) {
    saccade_model* loaded = NULL;
    REFUSED(saccade_model_load(NULL, NULL, &loaded), SACCADE_INVALID_ARGUMENT, "bundle");
    REFUSED(saccade_model_load(bundle, NULL, NULL), SACCADE_INVALID_ARGUMENT, "out_model");
    CHECK(loaded == NULL);
    REFUSE_OPTION(engine, -1, SACCADE_INVALID_ARGUMENT, "engine -1");
    REFUSE_OPTION(engine, INT32_MAX, SACCADE_INVALID_ARGUMENT, "engine 2147483647");
    REFUSE_OPTION(precision, -1, SACCADE_INVALID_ARGUMENT, "precision -1");
    REFUSE_OPTION(precision, 5, SACCADE_INVALID_ARGUMENT, "precision 5");
    REFUSE_OPTION(precision, SACCADE_FP8, SACCADE_UNSUPPORTED, "fp8");
    REFUSE_OPTION(device, -1, SACCADE_INVALID_ARGUMENT, "device");
    REFUSE_OPTION(device, 1, SACCADE_UNSUPPORTED, "device");
    REFUSE_OPTION(threads, -1, SACCADE_INVALID_ARGUMENT, "threads");
    REFUSE_OPTION(threads, INT32_MAX, SACCADE_INVALID_ARGUMENT, "threads");
    REFUSE_OPTION(streams, INT32_MIN, SACCADE_INVALID_ARGUMENT, "streams");
    REFUSE_OPTION(streams, 65, SACCADE_INVALID_ARGUMENT, "streams");
    REFUSE_OPTION(compile, 2, SACCADE_INVALID_ARGUMENT, "compile");
    REFUSE_OPTION(compile, -1, SACCADE_INVALID_ARGUMENT, "compile");
    REFUSE_OPTION(reserved, 1, SACCADE_INVALID_ARGUMENT, "reserved");
    REFUSE_OPTION(engine_library, "/no/such/library.so", SACCADE_ENGINE_UNAVAILABLE, "/no/such/library.so");
    REFUSE_OPTION(engine_library, "libc.so.6", SACCADE_ENGINE_UNAVAILABLE, "libc.so.6");
    CHECK_READ_STRUCT(saccade_model_options, options_with(engine_library), loaded_and_freed(given), (void)0);
    CHECK(strcmp(saccade_model_description(NULL), "no model") == 0);
}

/* ---- plans: images and options ---- */

/* What a function is refused for, all functions that take it refuse alike. saccade_look ignores k. */
static void refuse_everywhere(const saccade_image* images, size_t count, const saccade_run_options* options, int with_look,
                              const char* part) {
    saccade_sizes sizes;
    memset(&sizes, PATTERN, sizeof sizes);
    sizes.struct_size = (uint32_t)sizeof sizes;
    REFUSED(saccade_plan(model, images, count, options, &sizes), SACCADE_INVALID_ARGUMENT, part);
    CHECK(all_bytes_are((char*)&sizes + 4, sizeof sizes - 4, PATTERN));
    REFUSED(saccade_run(session, images, count, options, &outputs.out), SACCADE_INVALID_ARGUMENT, part);
    REFUSED(saccade_warm_up(session, images, count, options), SACCADE_INVALID_ARGUMENT, part);
    if (with_look) {
        const saccade_outputs look = of_look(outputs.out);
        REFUSED(saccade_look(session, images, count, options, &look), SACCADE_INVALID_ARGUMENT, part);
    }
    CHECK(is_untouched(&outputs));
}

#define REFUSE_IMAGE(field, value, part)                       \
    do {                                                       \
        saccade_image pair[2] = {image, image};                \
        pair[1].field = (value); /* not the first alone */     \
        refuse_everywhere(pair, 2, NULL, 1, (part));           \
    } while (0)

static void check_images(saccade_image image) {
    const int64_t extents[] = {0, -1, 65537, ENORMOUS, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof extents / sizeof *extents; ++i) {
        REFUSE_IMAGE(height, extents[i], "out of range");
        REFUSE_IMAGE(width, extents[i], "out of range");
    }
    const int64_t packed = 3 * image.width;
    const int64_t strides[] = {1, -1, packed - 1, 1 - packed, ENORMOUS, -ENORMOUS, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof strides / sizeof *strides; ++i) {
        REFUSE_IMAGE(row_stride, strides[i], "row_stride");
    }
    REFUSE_IMAGE(format, -1, "format");
    REFUSE_IMAGE(format, 2, "format");
    REFUSE_IMAGE(reserved, 1, "reserved");
    refuse_everywhere(NULL, 1, NULL, 1, "images is NULL");
    const size_t counts[] = {0, 1025, ENORMOUS, SIZE_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; ++i) {
        refuse_everywhere(&image, counts[i], NULL, 1, "images are not to be had");
    }
    image.pixels = NULL;
    const saccade_outputs look = of_look(outputs.out);
    REFUSED(saccade_run(session, &image, 1, NULL, &outputs.out), SACCADE_INVALID_ARGUMENT, "pixels is NULL");
    REFUSED(saccade_look(session, &image, 1, NULL, &look), SACCADE_INVALID_ARGUMENT, "pixels is NULL");
    CHECK(is_untouched(&outputs));
    OK(saccade_warm_up(session, &image, 1, NULL));
}

#define REFUSE_RUN_OPTION(field, value, with_look, part)          \
    do {                                                          \
        saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;   \
        options.field = (value);                                  \
        refuse_everywhere(&image, 1, &options, (with_look), (part)); \
    } while (0)

static void check_run_options(saccade_image image, int64_t cells) {
    const int64_t ks[] = {-1, cells + 1, ENORMOUS, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof ks / sizeof *ks; ++i) {
        REFUSE_RUN_OPTION(k, ks[i], 0, "is not to be had");
    }
    const double ratios[] = {NAN, INFINITY, -INFINITY, -0.5, 1.0001, 1e300};
    for (size_t i = 0; i < sizeof ratios / sizeof *ratios; ++i) {
        REFUSE_RUN_OPTION(k_ratio, ratios[i], 0, "is no share");
    }
    REFUSE_RUN_OPTION(k_ratio, 1e-300, 0, "k 0 is not to be had");
    const int64_t extents[] = {-info.patch, info.patch, info.patch + 1, ENORMOUS, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof extents / sizeof *extents; ++i) { /* the other one is 0 */
        REFUSE_RUN_OPTION(height, extents[i], 1, "is not to be had");
        REFUSE_RUN_OPTION(width, extents[i], 1, "is not to be had");
    }
    REFUSE_RUN_OPTION(fit, -1, 1, "fit is unknown");
    REFUSE_RUN_OPTION(fit, 3, 1, "fit is unknown");

    saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    options.height = options.width = 65536 / info.patch * info.patch;
    refuse_everywhere(&image, 1, &options, 1, "patches; at most");
    options.fit = SACCADE_FIT_NATIVE;
    refuse_everywhere(&image, 1, &options, 1, "exclude each other");
    options.height = options.width = 0;
    saccade_image pair[2] = {image, image};
    pair[1].height += info.patch;
    refuse_everywhere(pair, 2, &options, 1, "share a grid");
    image.width = 1;
    refuse_everywhere(&image, 1, &options, 1, "smaller than one");
    saccade_run_options both = SACCADE_RUN_OPTIONS_INIT;
    both.k = 1;
    both.k_ratio = 0.5;
    refuse_everywhere(&image, 1, &both, 0, "both given");
}

static void check_plan(saccade_image image) {
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    REFUSED(saccade_plan(NULL, &image, 1, NULL, &sizes), SACCADE_INVALID_ARGUMENT, "model");
    REFUSED(saccade_plan(model, &image, 1, NULL, NULL), SACCADE_INVALID_ARGUMENT, "out_sizes");
    CHECK_FILLED_STRUCT(saccade_sizes, SACCADE_SIZES_INIT, saccade_plan(model, &image, 1, NULL, given));
    const saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    CHECK_READ_STRUCT(saccade_run_options, options, saccade_plan(model, &image, 1, given, &sizes), (void)0);
}

/* ---- sessions ---- */

static void check_session(saccade_image image) {
    saccade_session* made = NULL;
    REFUSED(saccade_session_create(NULL, &made), SACCADE_INVALID_ARGUMENT, "model");
    REFUSED(saccade_session_create(model, NULL), SACCADE_INVALID_ARGUMENT, "out_session");
    CHECK(made == NULL);
    const saccade_outputs look = of_look(outputs.out);
    REFUSED(saccade_run(NULL, &image, 1, NULL, &outputs.out), SACCADE_INVALID_ARGUMENT, "session");
    REFUSED(saccade_look(NULL, &image, 1, NULL, &look), SACCADE_INVALID_ARGUMENT, "session");
    REFUSED(saccade_warm_up(NULL, &image, 1, NULL), SACCADE_INVALID_ARGUMENT, "session");
    REFUSED(saccade_cancel(NULL), SACCADE_INVALID_ARGUMENT, "session");
    saccade_timings timings = SACCADE_TIMINGS_INIT;
    REFUSED(saccade_session_timings(NULL, &timings), SACCADE_INVALID_ARGUMENT, "session");
    REFUSED(saccade_session_timings(session, NULL), SACCADE_INVALID_ARGUMENT, "out_timings");
    CHECK_FILLED_STRUCT(saccade_timings, SACCADE_TIMINGS_INIT, saccade_session_timings(session, given));
    CHECK(is_untouched(&outputs));
}

#define REFUSE_CAPACITY(field)                                                                                        \
    do {                                                                                                              \
        if (outputs.out.field != NULL) {                                                                              \
            saccade_outputs short_by_one = outputs.out;                                                               \
            short_by_one.field##_capacity -= 1;                                                                       \
            REFUSED(saccade_run(session, &image, 1, options, &short_by_one), SACCADE_BUFFER_TOO_SMALL, #field " needs"); \
            short_by_one.field##_capacity = 0;                                                                        \
            REFUSED(saccade_run(session, &image, 1, options, &short_by_one), SACCADE_BUFFER_TOO_SMALL, #field " needs"); \
        }                                                                                                             \
    } while (0)

#define REFUSE_OTHERS_OUTPUT(function, field)                                                                 \
    do {                                                                                                      \
        saccade_outputs strange = of_look(outputs.out);                                                       \
        strange.field = (void*)outputs.bytes;                                                                 \
        strange.field##_capacity = outputs.size / 4;                                                          \
        REFUSED(function(session, &image, 1, options, &strange), SACCADE_INVALID_ARGUMENT, #field " is no output"); \
    } while (0)

static void check_outputs(saccade_image image, const saccade_run_options* options) {
    REFUSED(saccade_run(session, &image, 1, options, NULL), SACCADE_INVALID_ARGUMENT, "outputs is NULL");
    REFUSED(saccade_look(session, &image, 1, options, NULL), SACCADE_INVALID_ARGUMENT, "outputs is NULL");
    REFUSE_CAPACITY(indices);
    REFUSE_CAPACITY(score_map);
    REFUSE_CAPACITY(raw_score_map);
    REFUSE_CAPACITY(prefix);
    REFUSE_CAPACITY(cls);
    REFUSE_CAPACITY(logits);
    REFUSE_CAPACITY(tokens);
    REFUSE_CAPACITY(dense);
    REFUSE_OTHERS_OUTPUT(saccade_run, attention);
    REFUSE_OTHERS_OUTPUT(saccade_run, cls_last4);
    REFUSE_OTHERS_OUTPUT(saccade_look, attention);
    REFUSE_OTHERS_OUTPUT(saccade_look, indices);
    REFUSE_OTHERS_OUTPUT(saccade_look, cls);
    REFUSE_OTHERS_OUTPUT(saccade_look, logits);
    REFUSE_OTHERS_OUTPUT(saccade_look, tokens);
    REFUSE_OTHERS_OUTPUT(saccade_look, dense);
    if (info.task != SACCADE_TASK_FEATURES) {
        REFUSE_OTHERS_OUTPUT(saccade_run, cls);
    }
    if (info.task != SACCADE_TASK_CLASSIFY) {
        REFUSE_OTHERS_OUTPUT(saccade_run, logits);
    }
    saccade_run_options few = *options;
    few.k = 4;
    REFUSED(saccade_run(session, &image, 1, &few, &outputs.out), SACCADE_INVALID_ARGUMENT, "too small for dense");
    saccade_outputs reserved = outputs.out;
    reserved.reserved = 1;
    REFUSED(saccade_run(session, &image, 1, options, &reserved), SACCADE_INVALID_ARGUMENT, "reserved");
    CHECK(is_untouched(&outputs));
    CHECK_READ_STRUCT(saccade_outputs, outputs.out, saccade_run(session, &image, 1, options, given), CHECK(is_untouched(&outputs)));
    CHECK(!is_untouched(&outputs));
    spoil(&outputs);
}

/* What looks wrong and is not. */
static void check_what_is_allowed(saccade_image image, const saccade_run_options* options) {
    const saccade_outputs nothing = SACCADE_OUTPUTS_INIT;
    OK(saccade_run(session, &image, 1, options, &nothing));
    OK(saccade_look(session, &image, 1, NULL, &nothing));
    OK(saccade_cancel(session)); /* nothing is under way */
    OK(saccade_run(session, &image, 1, options, &outputs.out));
    results other = outputs;
    other.bytes = malloc(outputs.size);
    CHECK(other.bytes != NULL);
    memcpy(other.bytes, outputs.bytes, outputs.size);

    saccade_image upside_down = image; /* the rows from the last to the first, and back by a negative stride */
    const size_t row = (size_t)(3 * image.width);
    uint8_t* turned = malloc(row * (size_t)image.height);
    CHECK(turned != NULL);
    for (int64_t y = 0; y < image.height; ++y) {
        memcpy(turned + (size_t)(image.height - 1 - y) * row, image.pixels + (size_t)y * row, row);
    }
    upside_down.pixels = turned + (size_t)(image.height - 1) * row;
    upside_down.row_stride = -(int64_t)row;
    spoil(&outputs);
    OK(saccade_run(session, &upside_down, 1, options, &outputs.out));
    CHECK(is_same(&outputs, &other));
    free(turned);
    free(other.bytes);

    const int64_t narrow[][2] = {{65536, 1}, {1, 65536}, {1, 1}};
    for (size_t i = 0; i < 3; ++i) {
        saccade_image strip = made_image(narrow[i][0], narrow[i][1]);
        OK(saccade_run(session, &strip, 1, options, &outputs.out));
        saccade_run_options crop = *options;
        crop.fit = SACCADE_FIT_CROP;
        if (i < 2) {
            spoil(&outputs);
            refuse_everywhere(&strip, 1, &crop, 1, "too narrow for fit crop");
        } else {
            OK(saccade_run(session, &strip, 1, &crop, &outputs.out));
        }
        free_image(&strip);
    }
}

int main(int argc, char** argv) {
    CHECK(argc == 3);
    bundle_path = argv[1];
    engine_library = argv[2];
    const saccade_info no_info = SACCADE_INFO_INIT;
    info = no_info;
    check_names();
    check_bundle_open();
    OK(saccade_bundle_open(bundle_path, &bundle));
    OK(saccade_bundle_info(bundle, &info));
    check_bundle();
    check_model_load();
    const saccade_model_options options = options_with(engine_library);
    OK(saccade_model_load(bundle, &options, &model));
    OK(saccade_session_create(model, &session));

    saccade_image image = made_image(75, 100);
    saccade_run_options run = SACCADE_RUN_OPTIONS_INIT;
    run.k = 6;
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    OK(saccade_plan(model, &image, 1, &run, &sizes));
    outputs = results_for(&sizes);
    check_plan(image);
    check_images(image);
    check_run_options(image, (int64_t)sizes.rows * sizes.columns);
    check_session(image);
    check_outputs(image, &run);
    check_what_is_allowed(image, &run);

    free(outputs.bytes);
    free_image(&image);
    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    return 0;
}
