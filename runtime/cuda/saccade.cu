// All kernels in one unit, since nvcc makes one fatbin of one unit.
#include "fill.cu"
#include "gather.cu"
#include "preprocess.cu"
#include "select.cu"
