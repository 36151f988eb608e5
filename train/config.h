/* The configuration of a run: one YAML file, one table of keys. `hvla-train config --document` prints the table as
 * docs/configuration.md. */
#ifndef HV_TRAIN_CONFIG_H
#define HV_TRAIN_CONFIG_H

#include "core/io/model_directory.h"
#include "core/io/options.h"
#include "core/tensor/dtype.h"
#include "train/learning_rate.h"

typedef struct hv_data_settings {
  hv_string_list files;
  char *train_split, *valid_split;
  hv_string_map cameras; /* model's name → the file's */
  hv_string_list state_keys;
  char *instruction;
  bool override_instruction;
  char *statistics_key;
  hv_int_list action_dims;                 /* of the file */
  hv_int_list gripper_dims, absolute_dims; /* of the model */
  int64_t cache_bytes, threads, read_ahead;
} hv_data_settings;

typedef struct hv_init_settings {
  hv_int_list action_dims, state_dims; /* hv_adaptation */
} hv_init_settings;

enum { HV_BATCH_SIZE_MAX = 1 << 20 }; /* samples of a step, over all ranks */

typedef struct hv_train_settings {
  int64_t steps;
  double epochs;
  int64_t batch_size, micro_batch, branches;
  int32_t recompute; /* hv_recompute */
  int64_t recompute_layers;
  double diffusion_weight, ce_weight, ema_decay;
  hv_string_list freeze;
} hv_train_settings;

typedef struct hv_optimizer_options {
  double learning_rate;
  int32_t schedule; /* hv_decay_kind */
  int64_t warmup_steps;
  double final_ratio, beta1, beta2, eps, weight_decay, max_grad_norm;
  int32_t moments;      /* hv_moment_format */
  int32_t gradients;    /* index into fp32, bf16 */
  hv_number_map groups; /* pattern of parameter names → factor on the learning rate */
} hv_optimizer_options;

typedef struct hv_validation_settings {
  int64_t interval, samples, ddim_steps;
  int32_t metric; /* hv_held_out_metric */
  int64_t patience;
  bool at_start, keep_best;
  double theta;
} hv_validation_settings;

typedef struct hv_metrics_settings {
  bool tensorboard;
} hv_metrics_settings;

typedef struct hv_watch_settings {
  double spike_factor;
  int64_t spike_window, max_skipped;
} hv_watch_settings;

typedef struct hv_checkpoint_settings {
  int64_t interval, keep, keep_every, model_interval;
  bool async;
} hv_checkpoint_settings;

typedef struct hv_parallel_settings {
  int32_t sharding;  /* hv_sharding */
  int32_t transport; /* hv_transport */
  double timeout;
} hv_parallel_settings;

typedef struct hv_train_config {
  char *source;  /* for messages: the path of the file, and whether --set changed it; owned */
  json_t *model; /* the mapping `model` as the file has it */
  char *init_from, *tokenizer, *output, *device;
  int32_t dtype; /* index into fp32, bf16: hv_train_config_dtype */
  int64_t seed, threads, log_interval, bench_prompt;
  bool measure_algorithms;
  hv_init_settings init;
  hv_data_settings data;
  hv_train_settings train;
  hv_optimizer_options optimizer;
  hv_validation_settings validation;
  hv_metrics_settings metrics;
  hv_watch_settings watch;
  hv_checkpoint_settings checkpoint;
  hv_parallel_settings parallel;
} hv_train_config;

/* Reads the file, then overrides keys by the "key=value" of `sets`. Unknown keys, wrong types and values that
 * contradict each other are HV_ERR_INPUT; all errors of one kind are reported together. After an error *out holds
 * nothing. */
HV_NODISCARD hv_status hv_train_config_load(const char *path, const char *const *sets, size_t num_sets,
                                            hv_train_config *out);
void hv_train_config_free(hv_train_config *config); /* leaves it empty */

/* What a run needs beyond what a benchmark does: data, output, tokenizer, steps or epochs. */
HV_NODISCARD hv_status hv_train_config_check_run(const hv_train_config *config);

/* HV_ERR_INPUT if there cannot be so many ranks, or they cannot divide the batch evenly. */
HV_NODISCARD hv_status hv_train_config_check_ranks(const hv_train_config *config, int32_t ranks);

/* The architecture: the mapping `model` alone, or that of `init_from` overridden by `model`. With init_from, *directory
 * is opened for the parameter values; else it is left empty. The caller frees both. */
HV_NODISCARD hv_status hv_train_config_model(const hv_train_config *config, hv_model_config *model,
                                             hv_model_directory *directory);

/* The whole configuration with defaults filled in, as config.yaml holds it: `model` has the keys of the model's
 * config.json; with init_from, those that change. A wrong architecture is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_train_config_resolve(const hv_train_config *config, json_t **out);

/* The key in metrics.jsonl for validation.metric. */
const char *hv_train_config_metric(const hv_train_config *config);

/* The path of the tokenizer: `tokenizer:`, or that of `init_from`; on the heap, NULL: none or no memory. */
char *hv_train_config_tokenizer(const hv_train_config *config);

/* Every key with its default and the first sentence of its meaning, for `hvla-train run --help`. */
void hv_train_config_list(hv_text *out);

/* The configuration's names for these values: "replicate", …; "none", …; "fp32", "int8"; "fp32", "bf16". */
const char *hv_train_config_sharding_name(int32_t sharding);
const char *hv_train_config_recompute_name(int32_t recompute);
const char *hv_train_config_moments_name(int32_t moments);
const char *hv_train_config_gradients_name(int32_t gradients);

/* docs/configuration.md. */
void hv_train_config_document(hv_text *out);

static inline hv_dtype hv_train_config_dtype(const hv_train_config *config) {
  return config->dtype == 0 ? HV_F32 : HV_BF16;
}

/* Samples of one forward and backward pass on one of `ranks` ranks: train.micro_batch, or by default its whole part of
 * the batch. */
static inline int64_t hv_train_config_micro_batch(const hv_train_config *config, int32_t ranks) {
  return config->train.micro_batch ? config->train.micro_batch : config->train.batch_size / ranks;
}

#endif
