#include "ppm.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_EXTENT 65536

/* The next character that is neither white space nor part of a comment, which runs from # to the end of its line. */
static int next_of_header(FILE* file) {
    int c = fgetc(file);
    while (isspace(c) || c == '#') {
        const int is_comment = c == '#';
        c = fgetc(file);
        while (is_comment && c != '\n' && c != EOF) {
            c = fgetc(file);
        }
    }
    return c;
}

/* One number of the header and the byte of white space after it; -1 where there is none. */
static int header_number(FILE* file) {
    int c = next_of_header(file);
    int number = isdigit(c) ? 0 : -1;
    for (; isdigit(c) && number <= MAX_EXTENT; c = fgetc(file)) {
        number = 10 * number + (c - '0');
    }
    return isspace(c) ? number : -1;
}

static const char* read_opened(FILE* file, saccade_image* image) {
    if (fgetc(file) != 'P' || fgetc(file) != '6') {
        return "not a binary PPM (P6)";
    }
    const int width = header_number(file), height = header_number(file), deepest = header_number(file);
    if (width < 1 || width > MAX_EXTENT || height < 1 || height > MAX_EXTENT || deepest < 1) {
        return "its header is damaged, or it is wider or higher than 65536 pixels";
    }
    if (deepest != 255) {
        return "its values do not run from 0 to 255; convert it to 8-bit RGB first";
    }
    const size_t size = (size_t)3 * (size_t)width * (size_t)height;
    uint8_t* pixels = malloc(size);
    if (pixels == NULL) {
        return "no memory for its pixels";
    }
    if (fread(pixels, 1, size, file) != size) {
        free(pixels);
        return "cut short";
    }
    image->pixels = pixels;
    image->height = height;
    image->width = width;
    return NULL;
}

const char* read_ppm(const char* path, saccade_image* image) {
    FILE* file = fopen(path, "rb");
    if (file == NULL) {
        return strerror(errno);
    }
    const char* wrong = read_opened(file, image);
    fclose(file);
    return wrong;
}
