/* The model directory of a checkpoint, made from the checkpoint's files alone: while a run goes on, or long after it.
 * Where the checkpoint holds moving averages, they are the model. */
#ifndef HV_TRAIN_CHECKPOINT_CHECKPOINT_MODEL_H
#define HV_TRAIN_CHECKPOINT_CHECKPOINT_MODEL_H

#include <stdatomic.h>

#include "core/io/model_directory.h"

typedef struct hv_checkpoint_model {
  const char *run;
  int64_t step;
  const hv_params *params; /* of that model, allocated; only their layout is used */
  const hv_model_config *model;
  const hv_safetensors *carry; /* source of the tensors that are no parameters; NULL: none */
  const char *tokenizer_path;
  const json_t *statistics;
  hv_leftover leftover;    /* what is done about a `path`.partial that is there */
  const atomic_bool *stop; /* gives up with an error when it turns true; NULL: never */
} hv_checkpoint_model;

/* Writes the model directory `path`, as hv_model_directory_save does. Uses no device; any thread may call it. */
HV_NODISCARD hv_status hv_checkpoint_model_save(const hv_checkpoint_model *what, const char *path);

#endif
