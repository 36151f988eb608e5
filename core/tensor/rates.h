/* The best rates that a device reaches, measured: the peak against which benchmarks state their share of the speed of
 * light. Operands are random. Work of less than 5 ms is queued several times before it is waited for. */
#ifndef HV_TENSOR_RATES_H
#define HV_TENSOR_RATES_H

#include "core/tensor/device.h"

/* Floating-point operations a second (2 per multiply-add) of matrix products x weightᵀ: the best over a cube and over
 * the two products of an MLP, [rows, width] → 2 inner columns and [rows, inner] → width columns. The cube has 8192 a
 * side, or the largest smaller power of two that takes no longer than about `patience` seconds; on a slow device `rows`
 * is cut likewise. The algorithms are the fastest ones if the caller has switched hv_device_measure_choices on. Memory
 * for one product at a time is allocated and released. */
HV_NODISCARD hv_status hv_measure_products(hv_device *device, hv_dtype dtype, int64_t rows, int64_t width,
                                           int64_t inner, double patience, double *rate);

/* Bytes a second of reading memory: the better of a sum over 512 MiB and of a product of one row with a weight of that
 * size. */
HV_NODISCARD hv_status hv_measure_read(hv_device *device, hv_dtype dtype, double *rate);

#endif
