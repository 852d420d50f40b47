/* saccade.h - run a LookWhere bundle: an image in, the features of its best patches out.  C99, no dependencies.
 *
 * A bundle is the folder that `saccade export` writes.  Its selector looks at a small copy of the image and scores where
 * to look; the k best patches of the image itself are gathered, and only they go through the extractor.  A plain
 * backbone's bundle (NeCo, DINOv2, DINO, timm) runs by the same calls: its one network sees every patch, so it takes no k,
 * has no saccade_look, and gives cls, tokens, dense, attention and cls_last4.  It runs on OpenVINO alone.
 *
 * Example (error handling shortened; examples/classify.c is the whole of it):
 *
 *     saccade_bundle  * bundle  = NULL;
 *     saccade_model   * model   = NULL;
 *     saccade_session * session = NULL;
 *     saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;     // OpenVINO, fp32, the engine's own threads
 *     if (saccade_bundle_open("lookwhere", &bundle) != SACCADE_OK ||
 *         saccade_model_load(bundle, &options, &model) != SACCADE_OK ||
 *         saccade_session_create(model, &session) != SACCADE_OK) {
 *         fprintf(stderr, "%s\n", saccade_last_error());
 *     }
 *     saccade_image image = SACCADE_IMAGE_INIT;
 *     image.pixels = pixels;                                          // uint8, height x width x 3, RGB
 *     image.height = 1080;
 *     image.width  = 1920;
 *     saccade_run_options run = SACCADE_RUN_OPTIONS_INIT;
 *     run.k = 136;
 *     saccade_sizes sizes = SACCADE_SIZES_INIT;
 *     saccade_plan(model, &image, 1, &run, &sizes);                   // how large the buffers must be
 *     saccade_outputs out = SACCADE_OUTPUTS_INIT;
 *     out.cls     = malloc(sizes.cls * sizeof(float));          out.cls_capacity     = sizes.cls;
 *     out.indices = malloc(sizes.indices * sizeof(int32_t));    out.indices_capacity = sizes.indices;
 *     saccade_run(session, &image, 1, &run, &out);
 *     saccade_session_free(session);  saccade_model_free(model);  saccade_bundle_free(bundle);
 *
 * Threads.  A bundle and a model may be shared by any threads.  A session runs one call at a time: make one per thread.
 * Two threads in one session are refused with SACCADE_BUSY.  Sessions of one model share its weights; they run side by
 * side on a GPU, or where the model was loaded with as many `streams`, else one after the other.  Functions without a
 * word on threads may be called from any.  Load models after a fork, not before.
 *
 * Ownership.  The caller owns everything it passes in; nothing is kept after a call returns but what a comment says.
 * Handles are freed by their own function, in any order, and NULL may be freed.  No call on a handle may be under way.
 * What a model runs lies in files of its bundle that it keeps mapped: replace such a file by renaming another over it.
 * One that is written to or cut is SACCADE_CHANGED at the next call; during a call it may end the process.
 *
 * Errors.  Every call that can fail returns a saccade_status; besides those named at a function, any may give
 * SACCADE_INVALID_ARGUMENT, SACCADE_OUT_OF_MEMORY and SACCADE_INTERNAL.  On failure the outputs are untouched, nothing
 * leaks, and saccade_last_error() has one line: what, where, what to do.  The library never prints, exits or aborts; a
 * pthread_cancel waits until a call is over.  Nothing falls back: an engine, precision or device that is not to be had
 * is an error.
 *
 * Versions.  The major number changes when something that existed changes, and with it the SONAME.  Structs that carry
 * `struct_size` grow only at their end, by fields whose default is 0: start from their _INIT.  `reserved` fields are 0.
 *
 * On a device the bundle needs no more than bundle.json, positions.npy and engines/.  A built engine runs with the very
 * build of OpenVINO or TensorRT that made it, on the same kind of CPU or GPU; the option `compile` needs the .onnx files
 * instead.  Built engines are code: load those that you trust.  Make no run while the process is exiting.  64-bit Linux.
 *
 * On a GPU (TensorRT) the host makes the images fit, and all else runs there, on a stream of the session's own.  The
 * kernels between the networks come from the file that the environment's SACCADE_FATBIN names, else from saccade.fatbin
 * beside this library; `make cuda` compiles it.
 */
#ifndef SACCADE_H
#define SACCADE_H

#include <stddef.h>
#include <stdint.h>

#define SACCADE_VERSION_MAJOR 0
#define SACCADE_VERSION_MINOR 1
#define SACCADE_VERSION_PATCH 0
#define SACCADE_VERSION_NUMBER (SACCADE_VERSION_MAJOR * 10000 + SACCADE_VERSION_MINOR * 100 + SACCADE_VERSION_PATCH)

#if defined(__GNUC__)
#define SACCADE_API __attribute__((visibility("default")))
#else
#define SACCADE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct saccade_bundle  saccade_bundle;   /* a bundle's description, checked; immutable                       */
typedef struct saccade_model   saccade_model;    /* its networks on one engine; immutable                            */
typedef struct saccade_session saccade_session;  /* one chain of them with its buffers; one call at a time           */

typedef int32_t saccade_status; /* 0 is success; values are never renumbered */
enum {
    SACCADE_OK                 = 0,
    SACCADE_INVALID_ARGUMENT   = 1,  /* a pointer, size, option or struct_size that the call cannot take            */
    SACCADE_NOT_FOUND          = 2,  /* no such bundle, graph, engine or index                                       */
    SACCADE_IO_ERROR           = 3,  /* a file is there and cannot be read                                           */
    SACCADE_INVALID_BUNDLE     = 4,  /* damaged or changed: its content contradicts bundle.json or itself            */
    SACCADE_UNSUPPORTED        = 5,  /* a format, engine, precision or device that is not to be had here             */
    SACCADE_ENGINE_UNAVAILABLE = 6,  /* the engine's library is missing, or of a version this one was not made for   */
    SACCADE_ENGINE_FAILED      = 7,  /* the engine refused or failed; the line quotes it                             */
    SACCADE_BUFFER_TOO_SMALL   = 8,  /* an output's capacity is below what saccade_plan says                         */
    SACCADE_BUSY               = 9,  /* another thread is in this session                                            */
    SACCADE_CANCELLED          = 10, /* saccade_cancel ended this call                                               */
    SACCADE_NOT_FINITE         = 11, /* the selector gave NaN or infinity, so there is no best patch                 */
    SACCADE_OUT_OF_MEMORY      = 12,
    SACCADE_CHANGED            = 13, /* an engine file was changed on disk after it was loaded                       */
    SACCADE_INTERNAL           = 99  /* a bug of this library                                                        */
};

enum { SACCADE_ENGINE_OPENVINO = 0, SACCADE_ENGINE_TENSORRT = 1, SACCADE_ENGINE_TENSORRT_RTX = 2 };
enum { SACCADE_FP32 = 0, SACCADE_FP16 = 1, SACCADE_BF16 = 2, SACCADE_INT8 = 3, SACCADE_FP8 = 4 };
enum { SACCADE_TASK_FEATURES = 0, SACCADE_TASK_CLASSIFY = 1, SACCADE_TASK_SEGMENT = 2 };
enum { SACCADE_KIND_LOOKWHERE = 0, SACCADE_KIND_BACKBONE = 1 };
enum { SACCADE_RGB = 0, SACCADE_BGR = 1 };
/* How an image comes to the model's size.  SQUASH resizes both sides; CROP resizes so that the shorter side fits and
 * takes the centre; NATIVE keeps the image's own size and leaves out the right and bottom remainder of the patch grid. */
enum { SACCADE_FIT_SQUASH = 0, SACCADE_FIT_CROP = 1, SACCADE_FIT_NATIVE = 2 };
enum { SACCADE_LOG_INFO = 0, SACCADE_LOG_WARNING = 1 };

/* One image.  This struct is passed in arrays and never grows. */
typedef struct saccade_image {
    const uint8_t * pixels;  /* the first row: three bytes a pixel, packed                                           */
    int64_t height;          /* pixels, 1 to 65536                                                                   */
    int64_t width;           /* pixels, 1 to 65536                                                                   */
    int64_t row_stride;      /* bytes from one row to the next, may be negative; 0 means 3 * width                   */
    int32_t format;          /* SACCADE_RGB or SACCADE_BGR                                                           */
    int32_t reserved;        /* 0                                                                                    */
} saccade_image;
#define SACCADE_IMAGE_INIT { NULL, 0, 0, 0, SACCADE_RGB, 0 }

/* What a bundle holds.  Filled by saccade_bundle_info.  What a plain backbone does not have is 0. */
typedef struct saccade_info {
    uint32_t struct_size;
    int32_t  task;                          /* SACCADE_TASK_FEATURES, _CLASSIFY or _SEGMENT                          */
    int32_t  patch;                         /* pixels; sizes are multiples of it                                     */
    int32_t  dim;                           /* D, channels of a token                                                */
    int32_t  prefix;                        /* P, cls and register tokens                                            */
    int32_t  classes;                       /* C, 0 for features                                                     */
    int32_t  selector_size;                 /* pixels, S: the selector sees the image resized to S x S               */
    int32_t  map_size;                      /* M: its map has M x M scores                                           */
    int32_t  base_rows, base_columns;       /* grid of the position table                                            */
    int32_t  default_height, default_width; /* pixels                                                                */
    int32_t  default_k;                     /* on the grid of the default size                                       */
    int32_t  reserved;
    float    mean[3], std[3];               /* RGB; pixels become (x/255 - mean)/std                                 */
    uint32_t precisions;                    /* bit 1 << SACCADE_FP32 ...: all graphs are there.  OpenVINO makes bf16 and
                                               fp16 out of fp32's                                                    */
    int32_t  kind;                          /* SACCADE_KIND_LOOKWHERE or _BACKBONE                                   */
    int32_t  heads;                         /* of attention in each block                                            */
    int32_t  cls_blocks;                    /* of cls_last4: 4, or 0 where the backbone has fewer blocks             */
} saccade_info;
#define SACCADE_INFO_INIT { (uint32_t)sizeof(saccade_info), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}, 0, 0, 0, 0 }

/* One built engine in a bundle.  Filled by saccade_bundle_engine. */
typedef struct saccade_built_engine {
    uint32_t struct_size;
    int32_t  engine;                        /* SACCADE_ENGINE_...                                                    */
    int32_t  precision;                     /* SACCADE_FP32 ...                                                      */
    int32_t  runs;                          /* 1: this library can load it on the machine it was built for; 0: one fixed
                                               to a single shape or without tokens, which only Python's saccade runs  */
    char     version[64];                   /* of the engine that built it, cut to fit                               */
    char     folder[128];                   /* its name below engines/, cut to fit                                   */
} saccade_built_engine;
#define SACCADE_BUILT_ENGINE_INIT { (uint32_t)sizeof(saccade_built_engine), 0, 0, 0, {0}, {0} }

/* Called by saccade_model_load, in its thread, with one line on each file that is loaded (INFO) or compiled (WARNING);
 * `message` is valid during the call.  Must not throw, longjmp or call this library. */
typedef void (*saccade_log_callback)(void * user, int32_t level, const char * message);

typedef struct saccade_model_options {
    uint32_t struct_size;
    int32_t  engine;                        /* SACCADE_ENGINE_OPENVINO                                               */
    int32_t  precision;                     /* SACCADE_FP32                                                          */
    int32_t  device;                        /* index of the GPU; 0 on a CPU                                          */
    int32_t  threads;                       /* 0: the engine's own choice.  Not on a GPU                             */
    int32_t  streams;                       /* sessions that run side by side, sharing the threads; 0: one.  Not on a GPU */
    int32_t  compile;                       /* 1: where the bundle has no engine built for this machine, compile its
                                               graphs now, in memory (seconds; which kernels run is not audited as
                                               `saccade build` does); 0: that is SACCADE_NOT_FOUND.  Not on a GPU    */
    int32_t  reserved;
    const char * engine_library;            /* path of the engine's library file, UTF-8; NULL: by the loader's rules
                                               (LD_LIBRARY_PATH), libopenvino_c.so.N of the release whose headers this
                                               library was built with, then libopenvino_c.so; for TensorRT
                                               libnvinfer.so.10 or .11 and libtensorrt_rtx.so.1                      */
    saccade_log_callback log;               /* or NULL                                                               */
    void *   log_user;
} saccade_model_options;
#define SACCADE_MODEL_OPTIONS_INIT \
    { (uint32_t)sizeof(saccade_model_options), SACCADE_ENGINE_OPENVINO, SACCADE_FP32, 0, 0, 0, 0, 0, NULL, NULL, NULL }

typedef struct saccade_run_options {
    uint32_t struct_size;
    int32_t  fit;                           /* SACCADE_FIT_SQUASH                                                    */
    int64_t  height, width;                 /* pixels, multiples of the patch; 0, 0: the bundle's default (NATIVE: 0, 0) */
    int64_t  k;                             /* patches to keep; 0: by k_ratio, or the bundle's default, which is
                                               usually a share of the grid's cells, whatever the grid.  A plain
                                               backbone keeps all: leave k and k_ratio at 0                          */
    double   k_ratio;                       /* or the share of the grid to keep, above 0 up to 1; 0: by k            */
} saccade_run_options;
#define SACCADE_RUN_OPTIONS_INIT { (uint32_t)sizeof(saccade_run_options), SACCADE_FIT_SQUASH, 0, 0, 0, 0.0 }

/* What a run with given images and options makes, and how many elements each output has (0: this task has none). */
typedef struct saccade_sizes {
    uint32_t struct_size;
    int32_t  batch;                         /* B                                                                     */
    int32_t  rows, columns;                 /* G = rows x columns cells                                              */
    int32_t  k;                             /* a backbone's: G                                                       */
    int32_t  reserved;
    size_t   indices;                       /* (B, k)                                                                */
    size_t   score_map;                     /* (B, rows, columns)                                                    */
    size_t   raw_score_map;                 /* (B, M, M)                                                             */
    size_t   prefix;                        /* (B, P, D)                                                             */
    size_t   cls;                           /* (B, D), features                                                      */
    size_t   logits;                        /* (B, C), classify                                                      */
    size_t   tokens;                        /* (B, k, D), segment: (B, k, C)                                         */
    size_t   dense;                         /* (B, D, rows, columns), segment: (B, C, rows, columns)                 */
    size_t   attention;                     /* (B, heads, G), a backbone                                             */
    size_t   cls_last4;                     /* (B, 4, D), a backbone of four blocks or more                          */
} saccade_sizes;
#define SACCADE_SIZES_INIT { (uint32_t)sizeof(saccade_sizes), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* Where a run writes: the caller's dense row-major buffers with their capacities in elements.  NULL: not wanted. */
typedef struct saccade_outputs {
    uint32_t  struct_size;
    int32_t   reserved;
    int32_t * indices;        size_t indices_capacity;        /* kept cells, row by row of the grid, best score first */
    float *   score_map;      size_t score_map_capacity;      /* scores on the grid                                   */
    float *   raw_score_map;  size_t raw_score_map_capacity;  /* as the selector gives them                           */
    float *   prefix;         size_t prefix_capacity;         /* the selector's cls and register rows                 */
    float *   cls;            size_t cls_capacity;            /* task features                                        */
    float *   logits;         size_t logits_capacity;         /* task classify                                        */
    float *   tokens;         size_t tokens_capacity;         /* row i belongs to cell indices[i]; a backbone's to cell i */
    float *   dense;          size_t dense_capacity;          /* every cell, from its 5 nearest kept ones; k >= 5.  A
                                                                 backbone's are its tokens in another order           */
    float *   attention;      size_t attention_capacity;      /* what each head of cls attends to in the last block   */
    float *   cls_last4;      size_t cls_last4_capacity;      /* cls after each of the last four blocks, normalised   */
} saccade_outputs;
#define SACCADE_OUTPUTS_INIT                                                                                         \
    { (uint32_t)sizeof(saccade_outputs), 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, NULL, 0, \
      NULL, 0, NULL, 0 }

/* Milliseconds of each stage of a session's last successful run or look; 0 where a stage did not run.  On a GPU all from
 * the upload to the download is one piece of work, of which total_ms alone has the time: its stages are 0. */
typedef struct saccade_timings {
    uint32_t struct_size;
    int32_t  reserved;
    double   fit_ms;                        /* images to the model's size                                            */
    double   resize_ms;                     /* to the selector's input                                               */
    double   selector_ms;
    double   select_ms;                     /* map to the grid, top-k                                                */
    double   gather_ms;
    double   extractor_ms;
    double   fill_ms;                       /* dense output, and copying the others out                              */
    double   total_ms;
    double   normalize_ms;                  /* a backbone's: to its network's inputs                                 */
    double   backbone_ms;
} saccade_timings;
#define SACCADE_TIMINGS_INIT { (uint32_t)sizeof(saccade_timings), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* ---- the library -------------------------------------------------------------------------------------------------- */

/* SACCADE_VERSION_NUMBER of the library, to compare with the header's. */
SACCADE_API uint32_t saccade_version(void);

/* The name of a status, an engine ("openvino") or a precision ("fp32"), as in bundle.json and on the command line; a
 * static string, never NULL ("unknown" for other numbers). */
SACCADE_API const char * saccade_status_name(saccade_status status);
SACCADE_API const char * saccade_engine_name(int32_t engine);
SACCADE_API const char * saccade_precision_name(int32_t precision);

/* The number of a name, or -1.  NULL is no name. */
SACCADE_API int32_t saccade_engine_from_name(const char * name);
SACCADE_API int32_t saccade_precision_from_name(const char * name);

/* The line of the calling thread's last failed call, UTF-8, never NULL; valid until its next failing call.  Do not free. */
SACCADE_API const char * saccade_last_error(void);

/* ---- bundles ------------------------------------------------------------------------------------------------------ */

/* Read and check a bundle's description and its position table (UTF-8 path; no file is kept open).  Release with
 * saccade_bundle_free.  NOT_FOUND, IO_ERROR, INVALID_BUNDLE, UNSUPPORTED (a newer format, or another family of models). */
SACCADE_API saccade_status saccade_bundle_open(const char * path, saccade_bundle ** out_bundle);
SACCADE_API void saccade_bundle_free(saccade_bundle * bundle);

/* What the bundle holds. */
SACCADE_API saccade_status saccade_bundle_info(const saccade_bundle * bundle, saccade_info * out_info);

/* Built engine number `index` of those that can be read, in order of their folders.  Looks at the disk each time, so a
 * build meanwhile changes the numbers.  NOT_FOUND (past the last), IO_ERROR. */
SACCADE_API saccade_status saccade_bundle_engine(
    const saccade_bundle * bundle, size_t index, saccade_built_engine * out_engine);

/* ---- models ------------------------------------------------------------------------------------------------------- */

/* Load the networks on an engine; what is loaded is checked against its hash.  `options` NULL: all defaults.  The bundle
 * may be freed afterwards.  Release with saccade_model_free; its sessions may outlive the handle.
 * NOT_FOUND (no such graphs, no engine built for this machine, no kernels for a GPU), IO_ERROR, INVALID_BUNDLE,
 * UNSUPPORTED (the precision, device or option is not to be had), ENGINE_UNAVAILABLE, ENGINE_FAILED. */
SACCADE_API saccade_status saccade_model_load(
    const saccade_bundle * bundle, const saccade_model_options * options, saccade_model ** out_model);
SACCADE_API void saccade_model_free(saccade_model * model);

/* One line on what runs: engine, version, device, precision, and how it came about.  Valid as long as the model; for NULL
 * "no model". */
SACCADE_API const char * saccade_model_description(const saccade_model * model);

/* What a run would make: check images (their `pixels` may be NULL here) and options, and size its outputs.  Where the
 * bundle's default k does not fit the grid, k is 0: enough for a look, and refused by a run. */
SACCADE_API saccade_status saccade_plan(const saccade_model * model, const saccade_image * images, size_t count,
                                        const saccade_run_options * options, saccade_sizes * out_sizes);

/* ---- sessions ----------------------------------------------------------------------------------------------------- */

/* A chain with buffers of its own, which grow with what it is given and stay.  Release with saccade_session_free.
 * CHANGED, ENGINE_FAILED. */
SACCADE_API saccade_status saccade_session_create(const saccade_model * model, saccade_session ** out_session);
SACCADE_API void saccade_session_free(saccade_session * session);

/* Run the chain on `count` images of any sizes, 1 to 1024, which end up on one grid.  `options` NULL: all defaults.  Only
 * what `outputs` asks for is written, if anything, and only on success.  Images and outputs must not overlap.
 * One thread at a time.  BUSY, CANCELLED, CHANGED, BUFFER_TOO_SMALL, NOT_FINITE, ENGINE_FAILED. */
SACCADE_API saccade_status saccade_run(saccade_session * session, const saccade_image * images, size_t count,
                                       const saccade_run_options * options, const saccade_outputs * outputs);

/* Run the selector alone, of LookWhere: only score_map, raw_score_map and prefix may be asked for; k is ignored.
 * One thread at a time.  As saccade_run. */
SACCADE_API saccade_status saccade_look(saccade_session * session, const saccade_image * images, size_t count,
                                        const saccade_run_options * options, const saccade_outputs * outputs);

/* Run the whole chain once on grey images of the sizes of `images` (`pixels` may be NULL), dense output included, so that
 * runs of the same images, options and format allocate nothing and meet warm kernels.
 * One thread at a time.  As saccade_run. */
SACCADE_API saccade_status saccade_warm_up(saccade_session * session, const saccade_image * images, size_t count,
                                           const saccade_run_options * options);

/* End the call that is under way in a session as soon as its engine lets go: it returns SACCADE_CANCELLED, and the session
 * can be used again.  Where no call is under way nothing happens, now or later.  From any thread, as long as the session
 * is not being freed. */
SACCADE_API saccade_status saccade_cancel(saccade_session * session);

/* The stages of the session's last successful run, look or warm-up; zeros before the first.  One thread at a time.  BUSY. */
SACCADE_API saccade_status saccade_session_timings(saccade_session * session, saccade_timings * out_timings);

#ifdef __cplusplus
}
#endif
#endif
