/* The model of any checkpoint of a run, made from the run directory alone: without the data, the devices or the number
 * of ranks that the run had, while it goes on or long after. */
#ifndef HV_TRAIN_RUN_RUN_MODEL_H
#define HV_TRAIN_RUN_RUN_MODEL_H

#include <stdint.h>

#include "core/base/status.h"

/* Writes the model directory `path`: the parameters of checkpoint *step, and all else (architecture, tokenizer,
 * statistics, tensors that are no parameters) as RUN/model has it. A *step below 0 stands for the newest checkpoint
 * that is whole, and becomes its step. The checkpoint's files are held against their checksums. */
HV_NODISCARD hv_status hv_run_model_save(const char *run, int64_t *step, const char *path);

#endif
