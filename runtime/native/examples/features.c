/* features BUNDLE FOLDER OUT.npy [ENGINE_LIBRARY]: the features of a folder of images as one .npy, float32, in the order of
 * the files' names: cls, (N, D), or of a plain backbone the dense ones, (N, D, rows, columns), at the bundle's size.  PPM,
 * and PNG where this was built with libpng. */
#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ppm.h"
#include "saccade.h"
#ifdef HAVE_PNG
#include "png_file.h"
#endif

/* End the program with one line. */
static void stop(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "features: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static void check(saccade_status status) {
    if (status != SACCADE_OK) {
        stop("%s", saccade_last_error());
    }
}

static void* allocated(void* memory) {
    if (memory == NULL) {
        stop("out of memory");
    }
    return memory;
}

static int ends_with(const char* name, const char* end) {
    const size_t size = strlen(name), end_size = strlen(end);
    return size > end_size && strcmp(name + size - end_size, end) == 0;
}

/* ---- the folder ---- */

typedef struct Names {
    char** names;
    size_t count;
} Names;

static int in_order(const void* one, const void* other) { return strcmp(*(char* const*)one, *(char* const*)other); }

/* The names of the images in a folder, sorted; says how many other files there are. */
static Names images_in(const char* folder) {
    Names found = {NULL, 0};
    size_t others = 0;
    DIR* opened = opendir(folder);
    if (opened == NULL) {
        stop("%s: %s", folder, strerror(errno));
    }
    for (struct dirent* each = readdir(opened); each != NULL; each = readdir(opened)) {
        if (ends_with(each->d_name, ".ppm") || ends_with(each->d_name, ".png")) {
            found.names = allocated(realloc(found.names, (found.count + 1) * sizeof *found.names));
            found.names[found.count++] = allocated(strdup(each->d_name));
        } else if (each->d_name[0] != '.') {
            ++others;
        }
    }
    closedir(opened);
    if (found.count == 0) {
        stop("%s has no .ppm or .png files", folder);
    }
    if (others > 0) {
        fprintf(stderr, "features: left out what is neither .ppm nor .png: %zu files\n", others);
    }
    qsort(found.names, found.count, sizeof *found.names, in_order);
    return found;
}

static const char* read_image(const char* path, saccade_image* image) {
    if (ends_with(path, ".ppm")) {
        return read_ppm(path, image);
    }
#ifdef HAVE_PNG
    return read_png(path, image);
#else
    return "built without libpng; install libpng-dev and build again, or convert it to PPM";
#endif
}

/* ---- the features ---- */

/* The features of one image, written to where `out` says. */
static void run_file(saccade_session* session, const char* folder, const char* name, const saccade_outputs* out) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) {
        stop("%s/%s is too long a path", folder, name);
    }
    saccade_image image = SACCADE_IMAGE_INIT;
    const char* wrong = read_image(path, &image);
    if (wrong != NULL) {
        stop("%s: %s", path, wrong);
    }
    if (saccade_run(session, &image, 1, NULL, out) != SACCADE_OK) {
        stop("%s: %s", path, saccade_last_error());
    }
    free((void*)image.pixels);
}

/* NumPy's format, version 1: the header ends with a line break and makes up 128 bytes.  The floats are this machine's,
 * which runs little-endian as the header says; `size` of them are a row, whose shape is `columns`. */
static void write_npy(const char* path, const float* values, size_t rows, size_t size, const char* columns) {
    char shape[118], header[128];
    snprintf(shape, sizeof shape, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %s), }", rows, columns);
    snprintf(header, sizeof header, "%-117s", shape);
    FILE* file = fopen(path, "wb");
    const int is_written = file != NULL && fwrite("\x93NUMPY\x01\x00\x76\x00", 1, 10, file) == 10 &&
                           fwrite(header, 1, 117, file) == 117 && fputc('\n', file) == '\n' &&
                           fwrite(values, size * sizeof *values, rows, file) == rows;
    if ((file != NULL && fclose(file) != 0) || !is_written) {
        stop("cannot write %s: %s", path, strerror(errno));
    }
}

int main(int argc, char** argv) {
    if (argc < 4 || argc > 5) {
        fprintf(stderr, "usage: features BUNDLE FOLDER OUT.npy [ENGINE_LIBRARY]\n");
        return 2;
    }
    const Names images = images_in(argv[2]);
    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    saccade_session* session = NULL;
    saccade_info info = SACCADE_INFO_INIT;
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.engine_library = argc > 4 ? argv[4] : NULL;
    check(saccade_bundle_open(argv[1], &bundle));
    check(saccade_bundle_info(bundle, &info));
    if (info.task != SACCADE_TASK_FEATURES) {
        stop("%s has a head and gives no cls features; export it without --task", argv[1]);
    }
    check(saccade_model_load(bundle, &options, &model));
    check(saccade_session_create(model, &session));
    fprintf(stderr, "features: %s\n", saccade_model_description(model));

    const int is_dense = info.kind == SACCADE_KIND_BACKBONE;
    saccade_image any = SACCADE_IMAGE_INIT; /* all come to the bundle's size */
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    any.height = any.width = 1;
    check(saccade_plan(model, &any, 1, NULL, &sizes));
    const size_t size = is_dense ? sizes.dense : sizes.cls;
    float* features = allocated(malloc(images.count * size * sizeof *features));
    for (size_t i = 0; i < images.count; ++i) {
        saccade_outputs out = SACCADE_OUTPUTS_INIT;
        out.cls = is_dense ? NULL : features + i * size;
        out.cls_capacity = sizes.cls;
        out.dense = is_dense ? features + i * size : NULL;
        out.dense_capacity = sizes.dense;
        run_file(session, argv[2], images.names[i], &out);
        fprintf(stderr, "features: %zu of %zu: %s\n", i + 1, images.count, images.names[i]);
        free(images.names[i]);
    }
    char columns[40];
    if (is_dense) {
        snprintf(columns, sizeof columns, "%d, %d, %d", info.dim, sizes.rows, sizes.columns);
    } else {
        snprintf(columns, sizeof columns, "%d", info.dim);
    }
    write_npy(argv[3], features, images.count, size, columns);

    free(features);
    free(images.names);
    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    return 0;
}
