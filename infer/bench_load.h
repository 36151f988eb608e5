/* How fast a model directory is loaded, compared with only reading its files. */
#ifndef HV_INFER_BENCH_LOAD_H
#define HV_INFER_BENCH_LOAD_H

#include <stdint.h>

#include "core/base/text.h"

typedef struct hv_bench_load_options {
  const char *model, *device, *dtype; /* as of hvla_load */
  int threads;
  int64_t repeat;
  bool json;
} hv_bench_load_options;

/* Times a plain sequential read of the model's tensor files, the first use of as much memory, and hvla_load, in
 * turn, options->repeat times; reads and loads with the files dropped from the system's cache first. */
HV_NODISCARD hv_status hv_bench_load(const hv_bench_load_options *options, hv_text *out);

#endif
