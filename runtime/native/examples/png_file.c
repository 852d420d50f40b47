#include "png_file.h"

#include <errno.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_EXTENT 65536
#define MAX_PIXELS 178956970 /* a larger one is taken for a decompression bomb, as in Python */

/* What is under way, and must be freed where libpng jumps out of it. */
typedef struct Reading {
    FILE* file;
    png_structp png;
    png_infop info;
    uint8_t* pixels;
} Reading;

static void quiet(png_structp png, png_const_charp message) {
    (void)png;
    (void)message;
}

static void leave(png_structp png, png_const_charp message) {
    (void)message;
    png_longjmp(png, 1);
}

/* What cannot become 8-bit RGB without a choice that is the caller's; NULL where all is well. */
static const char* refusal(const Reading* reading) {
    const png_uint_32 width = png_get_image_width(reading->png, reading->info);
    const png_uint_32 height = png_get_image_height(reading->png, reading->info);
    png_unknown_chunkp animation = NULL;
    if ((uint64_t)width * height > MAX_PIXELS) {
        return "more than 178 megapixels; make it smaller first";
    }
    if (png_get_bit_depth(reading->png, reading->info) == 16) {
        return "16-bit images are not accepted; convert it to 8-bit RGB first";
    }
    if (png_get_unknown_chunks(reading->png, reading->info, &animation) > 0) {
        return "animated; extract the frame you mean";
    }
    return NULL;
}

/* Drop an alpha channel that says nothing: RGBA to RGB in place.  Returns 0 where it does say something. */
static int drop_alpha(uint8_t* pixels, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        if (pixels[4 * i + 3] != 255) {
            return 0;
        }
        memmove(pixels + 3 * i, pixels + 4 * i, 3);
    }
    return 1;
}

/* Everything that may jump.  Whatever it leaves behind is in `reading`. */
static const char* decode(Reading* reading, saccade_image* image) {
    png_structp png = reading->png;
    png_infop info = reading->info;
    if (setjmp(png_jmpbuf(png))) {
        return "not a PNG, damaged or cut short";
    }
    png_init_io(png, reading->file);
    png_set_user_limits(png, MAX_EXTENT, MAX_EXTENT);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_ALWAYS, (png_const_bytep) "acTL", 1);
    png_read_info(png, info);
    const char* wrong = refusal(reading);
    if (wrong != NULL) {
        return wrong;
    }
    png_set_expand(png); /* palettes, 1 to 4 bits, a transparent colour */
    png_set_gray_to_rgb(png);
    const int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    const size_t height = png_get_image_height(png, info), width = png_get_image_width(png, info);
    const size_t row = png_get_rowbytes(png, info);
    reading->pixels = malloc(height * row);
    if (reading->pixels == NULL) {
        return "no memory for its pixels";
    }
    for (int pass = 0; pass < passes; ++pass) {
        for (size_t y = 0; y < height; ++y) {
            png_read_row(png, reading->pixels + y * row, NULL);
        }
    }
    png_read_end(png, info); /* the last chunks and their checksums */
    if (png_get_valid(png, info, PNG_INFO_eXIf)) {
        return "it has EXIF data, which may rotate it; save it upright and without";
    }
    if (png_get_channels(png, info) == 4 && !drop_alpha(reading->pixels, height * width)) {
        return "translucent; put it on a background first";
    }
    image->pixels = reading->pixels;
    image->height = (int64_t)height;
    image->width = (int64_t)width;
    return NULL;
}

const char* read_png(const char* path, saccade_image* image) {
    Reading reading = {fopen(path, "rb"), NULL, NULL, NULL};
    if (reading.file == NULL) {
        return strerror(errno);
    }
    const char* wrong = "no memory to read it";
    reading.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, leave, quiet);
    reading.info = reading.png == NULL ? NULL : png_create_info_struct(reading.png);
    if (reading.info != NULL) {
        wrong = decode(&reading, image);
    }
    if (wrong != NULL) {
        free(reading.pixels);
    }
    png_destroy_read_struct(&reading.png, &reading.info, NULL);
    fclose(reading.file);
    return wrong;
}
