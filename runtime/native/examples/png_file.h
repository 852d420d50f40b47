/* Reading a PNG as the Python runtime does. */
#ifndef PNG_FILE_H
#define PNG_FILE_H

#include "saccade.h"

/* Read a file of 8 bits a channel as an image; free its pixels.  Greyscale and palettes become RGB; what would lose
 * something, 16 bits, translucency, further frames, a rotation, is refused.  Returns NULL, or what is wrong with the file. */
const char* read_png(const char* path, saccade_image* image);

#endif
