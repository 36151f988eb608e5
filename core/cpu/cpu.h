/* The reference device: the processor, through OpenMP and a single-threaded OpenBLAS. It runs every operation for F32,
 * BF16 and F64. Work runs at once, in the thread that queues it; a stream only keeps the first error. Results do not
 * depend on the number of threads. */
#ifndef HV_CPU_CPU_H
#define HV_CPU_CPU_H

#include "core/tensor/device.h"

/* options may be NULL; threads 0 means as many as OpenMP would use (the processors, or OMP_NUM_THREADS). */
HV_NODISCARD hv_status hv_cpu_device_open(const hv_device_options *options, hv_device **out);

/* The same without the kernels for wider vectors (AVX-512) that the processor may have: what runs on older ones. */
HV_NODISCARD hv_status hv_cpu_device_open_baseline(const hv_device_options *options, hv_device **out);

#endif
