/* How fast a model directory is loaded, beside reading its files and nothing else. */
#ifndef HV_INFER_BENCH_LOAD_H
#define HV_INFER_BENCH_LOAD_H

#include "infer/commands.h"

/* Times a plain sequential read of options->model's tensor files, the first use of as much memory, and hvla_load, in
 * turn, options->repeat times; reads and loads with the files dropped from the system's cache first. */
HV_NODISCARD hv_status hv_bench_load(const hv_bench_options *options, hv_text *out);

#endif
