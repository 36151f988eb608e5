/* The best rates that a device reaches, measured: the peak against which benchmarks state their share of the speed of
 * light. Operands are random. Work of less than 5 ms is queued several times before it is waited for. */
#ifndef HV_TENSOR_RATES_H
#define HV_TENSOR_RATES_H

#include "core/tensor/device.h"

/* Operations a second (2 per multiply-add) of matrix products x weightᵀ: the best of some runs of a cube, 8192 a side
 * or the largest power of two below that which the device multiplies in `patience` seconds, and of the two products of
 * a layer whose `rows` rows (on a slow device, as many as `patience` allows) go from `width` to 2 `inner` columns, and
 * from `inner` to `width`; by the fastest algorithms where the device measures them (hv_device_measure_choices), else
 * by those it takes to be so. Takes memory for one product at a time, which is given back. */
HV_NODISCARD hv_status hv_measure_products(hv_device *device, hv_dtype dtype, int64_t rows, int64_t width,
                                           int64_t inner, double patience, double *rate);

/* Bytes a second of reading memory, the best of a sum over a block and of a product with one row, both far larger than
 * any cache. */
HV_NODISCARD hv_status hv_measure_read(hv_device *device, hv_dtype dtype, double *rate);

#endif
