/* Which of the CPU device's kernels a processor can run. */
#ifndef HV_CPU_INSTRUCTIONS_H
#define HV_CPU_INSTRUCTIONS_H

#include "core/cpu/cpu.h"

/* The most that this processor has and that this program has kernels for. Where that is HV_CPU_AMX, the operating
 * system has granted the process the use of the tiles, for all its threads. */
hv_cpu_instructions hv_cpu_instructions_detect(void);

/* *out = `most`, or the lower level that the environment variable HVLA_CPU_INSTRUCTIONS names. HV_ERR_INPUT if its
 * value is none of the names.
 */
HV_NODISCARD hv_status hv_cpu_instructions_limit(hv_cpu_instructions most, hv_cpu_instructions *out);

#endif
