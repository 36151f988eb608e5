#include "train/run_files.h"

#include <stdlib.h>

#include "core/base/file.h"
#include "train/checkpoint.h"
#include "train/run_choices.h"

/* How long ranks wait for one another while files are written. */
static const double file_timeout = 1800;

hv_run_files hv_run_files_make(const hv_train_config *config, const hv_model_config *model, const hv_safetensors *carry,
                               const hv_run_data *data, const hv_trainer *trainer) {
  return (hv_run_files){.config = config,
                        .model = model,
                        .carry = carry,
                        .data = data,
                        .trainer = trainer,
                        .comm = trainer->comm,
                        .saved_step = -1};
}

static hv_status save_model(const hv_run_files *files) {
  const hv_trainer *trainer = files->trainer;
  char *path = hv_path_join(files->config->output, "model");
  if (!path) return hv_error_memory("a path");
  hv_model_save what = {.model = files->model,
                        .params = trainer->params,
                        .dtype = hv_train_config_dtype(files->config),
                        .carry = files->carry,
                        .tokenizer_path = files->data->tokenizer_path,
                        .statistics = files->data->statistics_document};
  hv_status status = hv_model_directory_save(path, &what, trainer->stream);
  free(path);
  return status;
}

/* Where values are sharded, the others give theirs while one rank reads parameter after parameter. */
static hv_status hand_over_values(const hv_run_files *files) {
  const hv_params *params = files->trainer->params;
  hv_status status = HV_OK;
  int64_t largest = 1;
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    if (param->rows * param->cols > largest) largest = param->rows * param->cols;
  }
  float *values = malloc((size_t)largest * sizeof *values);
  if (!values) return hv_error_memory("a parameter");
  for (hv_param_id id = 0; id < hv_params_count(params) && !status; id++) {
    status = hv_param_read(params, id, hv_params_dtype(params), values, files->trainer->stream);
  }
  free(values);
  return status;
}

/* A checkpoint, then the model as others read it. */
static hv_status save_files(hv_run_files *files) {
  const hv_trainer *trainer = files->trainer;
  const char *output = files->config->output;
  bool sharded = hv_params_sharding(trainer->params) == HV_SHARD_PARAMETERS;
  hv_run_position position = {.step = trainer->step,
                              .updates = hv_optimizer_updates(trainer->optimizer),
                              .samples = trainer->step * files->config->train.batch_size,
                              .seed = files->config->seed};
  HV_TRY(hv_checkpoint_save(output, &position, trainer->params, trainer->optimizer, trainer->stream));
  hv_status status = HV_OK;
  if (files->comm->rank == 0) {
    status = hv_run_choices_save(output, trainer->device);
    if (!status) status = hv_checkpoint_prune(output, files->config->checkpoint.keep);
    if (!status) status = save_model(files);
    /* The others may be handing over values still: they are not at the agreement below. */
    if (status && sharded) return status;
  } else if (sharded) {
    HV_TRY(hand_over_values(files));
  }
  return hv_comm_agree(files->comm, "saving the model", status);
}

hv_status hv_run_files_save(hv_run_files *files) {
  hv_comm_set_timeout(files->comm, file_timeout);
  hv_status status = save_files(files);
  hv_comm_set_timeout(files->comm, files->config->parallel.timeout);
  if (!status) files->saved_step = files->trainer->step;
  return status;
}
