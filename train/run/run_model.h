/* The model of any checkpoint of a run, made from the run directory alone, without its data or devices and with any
 * number of ranks; during the run or long after. */
#ifndef HV_TRAIN_RUN_RUN_MODEL_H
#define HV_TRAIN_RUN_RUN_MODEL_H

#include <stdint.h>

#include "core/base/status.h"

/* Writes the model directory `path`: the parameters of checkpoint *step, and everything else (architecture, tokenizer,
 * statistics, tensors that are no parameters) from RUN/model. A *step below 0 stands for the newest checkpoint that is
 * whole, and becomes its step. The checkpoint's checksums are verified. */
HV_NODISCARD hv_status hv_run_model_save(const char *run, int64_t *step, const char *path);

#endif
