/* The inside of an hvla_model, shared by hvla.c (loading, queries) and hvla_predict.c. */
#ifndef HV_INFER_HVLA_INTERNAL_H
#define HV_INFER_HVLA_INTERNAL_H

#include "core/hybridvla/policy.h"
#include "core/image/resize.h"
#include "core/io/dataset_statistics.h"
#include "core/io/model_config.h"
#include "core/text/prompt.h"
#include "infer/hvla.h"

/* A camera's resizer is kept until its pictures change their size. */
typedef struct hvla_camera_input {
  int32_t width, height;
  hv_resizer *resizer; /* owned */
} hvla_camera_input;

struct hvla_model {
  char *directory; /* owned */
  hv_device *device;
  hv_model *model;
  hv_config config;
  int32_t max_prompt;
  bool measure_algorithms;

  hv_tokenizer *tokenizer; /* NULL: the directory has none */
  char *instruction;       /* the instruction of `prompt`; owned; NULL: none yet */
  hv_token_list prompt;

  json_t *statistics;          /* dataset_statistics.json */
  hv_dataset_statistics scale; /* the entry in use; key NULL: none yet */
  bool *gripper;               /* [action_dim]: of the entry in use */

  hv_policy *policy; /* NULL: none yet; opened for policy_options */
  hv_policy_options policy_options;

  hvla_camera_input cameras[HV_MAX_CAMERAS];
  uint8_t *images;                             /* [V, S, S, 3] */
  float *state;                                /* [state_dim] */
  double *action, *diffusion, *autoregressive; /* [H A]; one block that begins at `action` */
};

/* Moves an error into *error (which may be NULL) and frees it; HVLA_OK for HV_OK. */
hvla_code hv_infer_report(hv_status status, hvla_error *error);

#endif
