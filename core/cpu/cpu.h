/* The reference device: the processor, through OpenMP and a single-threaded OpenBLAS. It runs every operation for F32,
 * BF16 and F64. Work runs at once, in the thread that queues it; a stream only keeps the first error. Results do not
 * depend on the number of threads. */
#ifndef HV_CPU_CPU_H
#define HV_CPU_CPU_H

#include "core/tensor/device.h"

/* Instruction sets for which there are kernels of their own, each including those before it: what the program was
 * compiled for, wider vectors, and the matrix unit of tile_product.h. */
typedef enum hv_cpu_instructions { HV_CPU_BASELINE, HV_CPU_AVX512, HV_CPU_AMX } hv_cpu_instructions;

/* options may be NULL; threads 0 means as many as OpenMP would use (the processors, or OMP_NUM_THREADS). Uses the
 * highest level that the processor has, or the lower one that the environment variable HVLA_CPU_INSTRUCTIONS names
 * (baseline, avx512, amx). */
HV_NODISCARD hv_status hv_cpu_device_open(const hv_device_options *options, hv_device **out);

/* The same with the kernels for these instructions, whatever the environment says. HV_ERR_DEVICE where the processor
 * lacks them. */
HV_NODISCARD hv_status hv_cpu_device_open_with(const hv_device_options *options, hv_cpu_instructions instructions,
                                               hv_device **out);

#endif
