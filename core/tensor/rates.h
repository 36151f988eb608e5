/* What a device can do at best, measured: the yardsticks of "speed of light" in the benchmarks (interchange.md §4). */
#ifndef HV_TENSOR_RATES_H
#define HV_TENSOR_RATES_H

#include "core/tensor/device.h"

/* Operations a second (2 per multiply-add) of y [rows, out] = x [rows, in] weightᵀ, the best of some. *rate is raised
 * to it where it is lower. */
HV_NODISCARD hv_status hv_measure_product(hv_device *device, hv_dtype dtype, int64_t rows, int64_t in, int64_t out,
                                          double *rate);

/* The same for a cube: 8192 a side, or the largest power of two below that which this device multiplies in half a
 * second. */
HV_NODISCARD hv_status hv_measure_cube(hv_device *device, hv_dtype dtype, double *rate);

/* Bytes a second of reading memory, the best of a sum over a block and of a product with one row, both far larger than
 * any cache. */
HV_NODISCARD hv_status hv_measure_read(hv_device *device, hv_dtype dtype, double *rate);

#endif
