/* What a run leaves on disk to go on from and to use: checkpoints, and the newest model. On several ranks all make the
 * same calls. */
#ifndef HV_TRAIN_RUN_FILES_H
#define HV_TRAIN_RUN_FILES_H

#include "train/run_data.h"

typedef struct hv_run_files {
  const hv_train_config *config;
  const hv_model_config *model;
  const hv_safetensors *carry; /* tensors of init_from, those that are no parameters go into the model; NULL: none */
  const hv_run_data *data;
  const hv_trainer *trainer;
  hv_comm *comm;
  int64_t saved_step; /* the newest step whose files are on disk, -1: none by this process */
} hv_run_files;

/* The rest is not owned and outlives it. */
hv_run_files hv_run_files_make(const hv_train_config *config, const hv_model_config *model, const hv_safetensors *carry,
                               const hv_run_data *data, const hv_trainer *trainer);

/* A checkpoint of the trainer's step, then the model as others read it. */
HV_NODISCARD hv_status hv_run_files_save(hv_run_files *files);

#endif
