/* Reading a PPM, which is all that the examples need to know of image files. */
#ifndef PPM_H
#define PPM_H

#include "saccade.h"

/* Read a binary 8-bit RGB file (P6) as an image; free its pixels.  Returns NULL, or what is wrong with the file. */
const char* read_ppm(const char* path, saccade_image* image);

#endif
