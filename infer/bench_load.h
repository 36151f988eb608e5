/* How fast a model directory is loaded, beside reading its files and nothing else. */
#ifndef HV_INFER_BENCH_LOAD_H
#define HV_INFER_BENCH_LOAD_H

#include "infer/commands.h"

/* Times hvla_load of options->model and a plain sequential read of its tensor files in turn, each time with the files
 * dropped from the system's cache first, options->repeat times. */
HV_NODISCARD hv_status hv_bench_load(const hv_bench_options *options, hv_text *out);

#endif
