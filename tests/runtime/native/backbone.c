/* backbone BUNDLE ENGINE_LIBRARY: what a plain backbone does not take or have is refused in one line and touches nothing,
 * and a program that was built before there were backbones runs one. */
#include "check.h"

static saccade_bundle* bundle;
static saccade_model* model;
static saccade_session* session;
static saccade_image image;
static saccade_info info;
static results outputs;

static void check_info(void) {
    OK(saccade_bundle_info(bundle, &info));
    CHECK(info.kind == SACCADE_KIND_BACKBONE && info.task == SACCADE_TASK_FEATURES);
    CHECK(info.heads * 64 == info.dim && info.cls_blocks == 4);
    CHECK(info.selector_size == 0 && info.map_size == 0 && info.classes == 0 && info.default_k == 0);
}

/* The GPU chain has LookWhere's kernels alone. */
static void check_engines(const char* engine_library) {
    saccade_model_options options = options_with(engine_library);
    saccade_model* none = NULL;
    options.engine = SACCADE_ENGINE_TENSORRT;
    REFUSED(saccade_model_load(bundle, &options, &none), SACCADE_UNSUPPORTED, "on openvino alone, not on tensorrt; use openvino");
    options.engine = SACCADE_ENGINE_TENSORRT_RTX;
    REFUSED(saccade_model_load(bundle, &options, &none), SACCADE_UNSUPPORTED, "not on tensorrt-rtx; use openvino");
    CHECK(none == NULL);
}

static void refuse_options(const saccade_run_options* options) {
    const char* const line = "a plain backbone keeps every patch, so it takes no k and no k_ratio; leave both at 0";
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    REFUSED(saccade_plan(model, &image, 1, options, &sizes), SACCADE_INVALID_ARGUMENT, line);
    REFUSED(saccade_run(session, &image, 1, options, &outputs.out), SACCADE_INVALID_ARGUMENT, line);
    REFUSED(saccade_warm_up(session, &image, 1, options), SACCADE_INVALID_ARGUMENT, line);
    CHECK(sizes.tokens == 0 && is_untouched(&outputs));
}

static void check_options(void) {
    saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    options.k = 20;
    refuse_options(&options);
    options.k = -1;
    refuse_options(&options);
    options.k = 0;
    options.k_ratio = 0.5;
    refuse_options(&options);
}

static void check_look(void) {
    const saccade_outputs nothing = SACCADE_OUTPUTS_INIT;
    const char* const line = "a plain backbone has no selector to look with; use saccade_run";
    REFUSED(saccade_look(session, &image, 1, NULL, &nothing), SACCADE_INVALID_ARGUMENT, line);
    REFUSED(saccade_look(session, &image, 1, NULL, &outputs.out), SACCADE_INVALID_ARGUMENT, line);
    CHECK(is_untouched(&outputs));
}

#define REFUSE_OUTPUT(field)                                                                                           \
    do {                                                                                                               \
        saccade_outputs strange = SACCADE_OUTPUTS_INIT;                                                                \
        strange.field = (void*)outputs.bytes;                                                                          \
        strange.field##_capacity = outputs.size / 4;                                                                   \
        REFUSED(saccade_run(session, &image, 1, NULL, &strange), SACCADE_INVALID_ARGUMENT, #field " is no output of this call"); \
    } while (0)

#define REFUSE_CAPACITY(field)                                                                                     \
    do {                                                                                                           \
        saccade_outputs short_by_one = outputs.out;                                                                \
        short_by_one.field##_capacity -= 1;                                                                        \
        REFUSED(saccade_run(session, &image, 1, NULL, &short_by_one), SACCADE_BUFFER_TOO_SMALL, #field " needs");   \
    } while (0)

static void check_outputs(void) {
    REFUSE_OUTPUT(indices);
    REFUSE_OUTPUT(score_map);
    REFUSE_OUTPUT(raw_score_map);
    REFUSE_OUTPUT(prefix);
    REFUSE_OUTPUT(logits);
    REFUSE_CAPACITY(cls);
    REFUSE_CAPACITY(tokens);
    REFUSE_CAPACITY(dense);
    REFUSE_CAPACITY(attention);
    REFUSE_CAPACITY(cls_last4);
    CHECK(is_untouched(&outputs));
}

/* Up to `dense`, the last output of the first header: what lies behind that is not the library's to read. */
static void check_older_program(void) {
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    OK(saccade_run(session, &image, 1, NULL, &outputs.out));
    OK(saccade_plan(model, &image, 1, NULL, &sizes));
    results found = results_for(&sizes);
    found.out.struct_size = 136;
    memset((char*)&found.out + 136, PATTERN, sizeof found.out - 136);
    OK(saccade_run(session, &image, 1, NULL, &found.out));
    const size_t known = (sizes.cls + sizes.tokens + sizes.dense) * sizeof(float);
    CHECK(memcmp(found.bytes, outputs.bytes, known) == 0);
    CHECK(all_bytes_are(found.bytes + known, found.size - known, PATTERN));
    free(found.bytes);
    spoil(&outputs);
}

/* One cell is enough for dense output, which blends nothing here. */
static void check_one_cell(void) {
    saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
    options.height = options.width = info.patch;
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    OK(saccade_plan(model, &image, 1, &options, &sizes));
    CHECK(sizes.k == 1 && sizes.dense == (size_t)info.dim);
    results made = results_for(&sizes);
    OK(saccade_warm_up(session, &image, 1, &options));
    OK(saccade_run(session, &image, 1, &options, &made.out));
    CHECK(memcmp(made.out.dense, made.out.tokens, sizes.dense * sizeof(float)) == 0);
    free(made.bytes);
}

int main(int argc, char** argv) {
    CHECK(argc == 3);
    const saccade_info none = SACCADE_INFO_INIT;
    const saccade_model_options options = options_with(argv[2]);
    info = none;
    image = made_image(75, 100);
    OK(saccade_bundle_open(argv[1], &bundle));
    check_info();
    check_engines(argv[2]);
    OK(saccade_model_load(bundle, &options, &model));
    OK(saccade_session_create(model, &session));
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    OK(saccade_plan(model, &image, 1, NULL, &sizes));
    CHECK(sizes.k == sizes.rows * sizes.columns && sizes.tokens == (size_t)sizes.k * (size_t)info.dim);
    outputs = results_for(&sizes);
    check_options();
    check_look();
    check_outputs();
    check_older_program();
    check_one_cell();
    free(outputs.bytes);
    free_image(&image);
    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    return 0;
}
