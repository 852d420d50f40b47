/* embed BUNDLE [ENGINE_LIBRARY]: say what a bundle holds and which patches its model keeps of a picture. */
#include <saccade.h>
#include <stdio.h>
#include <stdlib.h>

#define HEIGHT 240
#define WIDTH 320

static void check(saccade_status status) {
    if (status != SACCADE_OK) {
        fprintf(stderr, "embed: %s\n", saccade_last_error());
        exit(1);
    }
}

/* A bright disc on a dark ground. */
static void paint(uint8_t* pixels) {
    for (int y = 0; y < HEIGHT; ++y) {
        for (int x = 0; x < WIDTH; ++x) {
            const int is_inside = (y - 80) * (y - 80) + (x - 200) * (x - 200) < 50 * 50;
            for (int channel = 0; channel < 3; ++channel) {
                *pixels++ = is_inside ? 220 : 30;
            }
        }
    }
}

int main(int argc, char** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: embed BUNDLE [ENGINE_LIBRARY]\n");
        return 2;
    }
    if (saccade_version() / 10000 != SACCADE_VERSION_MAJOR) { /* another SONAME, so only where somebody renamed a file */
        fprintf(stderr, "embed: libsaccade is of another major version than its header\n");
        return 1;
    }
    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    saccade_session* session = NULL;
    saccade_info info = SACCADE_INFO_INIT;
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.engine_library = argc > 2 ? argv[2] : NULL;
    check(saccade_bundle_open(argv[1], &bundle));
    check(saccade_bundle_info(bundle, &info));
    check(saccade_model_load(bundle, &options, &model));
    check(saccade_session_create(model, &session));
    printf("%d channels, patches of %d px, %d x %d px by default\n", info.dim, info.patch, info.default_width,
           info.default_height);

    static uint8_t pixels[HEIGHT * WIDTH * 3];
    static int32_t indices[65536];
    paint(pixels);
    saccade_image image = SACCADE_IMAGE_INIT;
    image.pixels = pixels;
    image.height = HEIGHT;
    image.width = WIDTH;
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    check(saccade_plan(model, &image, 1, NULL, &sizes));
    saccade_outputs out = SACCADE_OUTPUTS_INIT;
    out.indices = indices;
    out.indices_capacity = sizeof indices / sizeof *indices;
    check(saccade_run(session, &image, 1, NULL, &out));
    for (int i = 0; i < sizes.k; ++i) {
        printf("row %d, column %d\n", indices[i] / sizes.columns, indices[i] % sizes.columns);
    }

    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    return 0;
}
