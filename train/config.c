#include "train/config.h"

#include <stdlib.h>
#include <string.h>

#include "core/io/yaml.h"

static const char *const dtypes[] = {"fp32", "bf16", NULL};
/* In the order of hv_sharding. */
static const char *const shardings[] = {"replicate", "optimizer", "gradients", "parameters", NULL};
static const char *const schedules[] = {"constant", "cosine", NULL};

#define AT(field) .offset = offsetof(hv_train_config, field)
#define MANY 9e15

static const hv_option table[] = {
    {.key = "model",
     .type = HV_OPTION_OPAQUE,
     AT(model),
     .fallback = "null",
     .doc = "The architecture, with the keys of a model directory's config.json. With `init_from`, only those that "
            "change."},
    {.key = "init_from",
     .type = HV_OPTION_PATH,
     AT(init_from),
     .fallback = "null",
     .doc = "Model directory to start from; null starts from random values."},
    {.key = "tokenizer",
     .type = HV_OPTION_PATH,
     AT(tokenizer),
     .fallback = "null",
     .doc = "SentencePiece model (tokenizer.model); null takes that of `init_from`."},
    {.key = "output",
     .type = HV_OPTION_PATH,
     AT(output),
     .fallback = "null",
     .doc = "Run directory: config.yaml, metrics.jsonl, checkpoints and the newest model."},
    {.key = "seed",
     .type = HV_OPTION_INT,
     AT(seed),
     .fallback = "0",
     .min = 0,
     .max = MANY,
     .doc = "Keys initial values, the order of the data and every draw."},
    {.key = "dtype",
     .type = HV_OPTION_ENUM,
     AT(dtype),
     .fallback = "fp32",
     .choices = dtypes,
     .doc = "Storage of parameters and activations; arithmetic, moments and master values are fp32 either way."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     AT(device),
     .fallback = "cpu",
     .doc = "Where the model runs: cpu, or the name of a device module. `--device` wins over it."},
    {.key = "threads",
     .type = HV_OPTION_INT,
     AT(threads),
     .fallback = "0",
     .min = 0,
     .max = 4096,
     .doc = "Threads of the CPU device; 0: one a processor. Results do not depend on it."},
    {.key = "log_interval",
     .type = HV_OPTION_INT,
     AT(log_interval),
     .fallback = "10",
     .min = 1,
     .max = MANY,
     .unit = "steps",
     .doc = "How often a line goes to metrics.jsonl and to a log."},
    {.key = "data.files",
     .type = HV_OPTION_STRING_LIST,
     AT(data.files),
     .fallback = "[]",
     .doc = "HDF5 files with demonstrations. The layout of each is found out by looking."},
    {.key = "data.train_split",
     .type = HV_OPTION_STRING,
     AT(data.train_split),
     .fallback = "null",
     .doc = "Episodes to train on: a name under the file's /mask; null: all."},
    {.key = "data.valid_split",
     .type = HV_OPTION_STRING,
     AT(data.valid_split),
     .fallback = "null",
     .doc = "Episodes held out for validation; null: no validation."},
    {.key = "data.cameras",
     .type = HV_OPTION_STRING_MAP,
     AT(data.cameras),
     .fallback = "{}",
     .doc =
         "The file's data set for each of the model's cameras (`front: agentview_image`); a camera that is not named "
         "here has the same name in the file."},
    {.key = "data.state_keys",
     .type = HV_OPTION_STRING_LIST,
     AT(data.state_keys),
     .fallback = "[]",
     .doc = "The file's observations that make the robot's state, concatenated; empty: the layout's own choice."},
    {.key = "data.instruction",
     .type = HV_OPTION_STRING,
     AT(data.instruction),
     .fallback = "null",
     .doc = "The instruction where the file has none."},
    {.key = "data.override_instruction",
     .type = HV_OPTION_BOOL,
     AT(data.override_instruction),
     .fallback = "false",
     .doc = "Use `data.instruction` also where the file has one."},
    {.key = "data.statistics_key",
     .type = HV_OPTION_STRING,
     AT(data.statistics_key),
     .fallback = "null",
     .doc = "Key of this data in dataset_statistics.json (the \"unnorm key\"); null: the first file's name without its "
            "extension."},
    {.key = "data.gripper_dims",
     .type = HV_OPTION_INT_LIST,
     AT(data.gripper_dims),
     .fallback = "[]",
     .min = 0,
     .max = 4096,
     .doc = "Action dimensions that are grippers (0 closed, 1 open) and are not scaled; empty: index 6, and 13 of two "
            "arms, where the data hold just 0 and 1."},
    {.key = "data.absolute_dims",
     .type = HV_OPTION_INT_LIST,
     AT(data.absolute_dims),
     .fallback = "[]",
     .min = 0,
     .max = 4096,
     .doc = "Action dimensions that hold targets, not changes. Past an episode's end they repeat the last one."},
    {.key = "data.cache_bytes",
     .type = HV_OPTION_INT,
     AT(data.cache_bytes),
     .fallback = "1073741824",
     .min = 0,
     .max = MANY,
     .unit = "bytes",
     .doc = "Resized frames are kept in memory when all of them fit."},
    {.key = "data.threads",
     .type = HV_OPTION_INT,
     AT(data.threads),
     .fallback = "1",
     .min = 1,
     .max = 256,
     .doc = "Threads that read ahead."},
    {.key = "data.read_ahead",
     .type = HV_OPTION_INT,
     AT(data.read_ahead),
     .fallback = "2",
     .min = 1,
     .max = 256,
     .unit = "batches",
     .doc = "Batches that may wait, read."},
    {.key = "train.steps",
     .type = HV_OPTION_INT,
     AT(train.steps),
     .fallback = "0",
     .min = 0,
     .max = MANY,
     .unit = "steps",
     .doc = "Optimizer steps of the whole run; 0: as `train.epochs` says."},
    {.key = "train.epochs",
     .type = HV_OPTION_FLOAT,
     AT(train.epochs),
     .fallback = "0",
     .min = 0,
     .max = 1e9,
     .unit = "epochs",
     .doc = "Length of the run in passes over the training frames; one of this and `train.steps`."},
    {.key = "train.batch_size",
     .type = HV_OPTION_INT,
     AT(train.batch_size),
     .fallback = "256",
     .min = 1,
     .max = 1 << 20,
     .unit = "samples",
     .doc = "Samples in one optimizer step, over all ranks."},
    {.key = "train.micro_batch",
     .type = HV_OPTION_INT,
     AT(train.micro_batch),
     .fallback = "0",
     .min = 0,
     .max = 1 << 20,
     .unit = "samples",
     .doc =
         "Samples in a rank's memory at a time, a divisor of its part of the batch: gradients of the parts are added "
         "up. 0: all of its part."},
    {.key = "train.branches",
     .type = HV_OPTION_INT,
     AT(train.branches),
     .fallback = "4",
     .min = 1,
     .max = 1024,
     .doc = "Draws of noise and timestep for each sample (K); they share the sample's prefix."},
    {.key = "train.diffusion_weight",
     .type = HV_OPTION_FLOAT,
     AT(train.diffusion_weight),
     .fallback = "1",
     .min = 0,
     .max = 1e6,
     .doc = "Weight of the noise loss."},
    {.key = "train.ce_weight",
     .type = HV_OPTION_FLOAT,
     AT(train.ce_weight),
     .fallback = "1",
     .min = 0,
     .max = 1e6,
     .doc = "Weight of the cross-entropy over action tokens."},
    {.key = "train.freeze",
     .type = HV_OPTION_STRING_LIST,
     AT(train.freeze),
     .fallback = "[\"vision_backbone.*\"]",
     .doc = "Parameters that stay as they are: patterns (`*`, `?`) of their names."},
    {.key = "optimizer.learning_rate",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.learning_rate),
     .fallback = "2e-5",
     .min = 0,
     .max = 1e3,
     .doc = "Of AdamW, after the warm-up."},
    {.key = "optimizer.schedule",
     .type = HV_OPTION_ENUM,
     AT(optimizer.schedule),
     .fallback = "constant",
     .choices = schedules,
     .doc = "The learning rate after the warm-up: it stays, or falls along a cosine to the last step."},
    {.key = "optimizer.warmup_steps",
     .type = HV_OPTION_INT,
     AT(optimizer.warmup_steps),
     .fallback = "0",
     .min = 0,
     .max = MANY,
     .unit = "steps",
     .doc = "Steps over which the learning rate rises linearly."},
    {.key = "optimizer.final_ratio",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.final_ratio),
     .fallback = "0",
     .min = 0,
     .max = 1,
     .doc = "Where the cosine ends, as a part of the learning rate."},
    {.key = "optimizer.beta1",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.beta1),
     .fallback = "0.9",
     .min = 0,
     .max = 0.9999999,
     .doc = "Decay of the first moment."},
    {.key = "optimizer.beta2",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.beta2),
     .fallback = "0.999",
     .min = 0,
     .max = 0.9999999,
     .doc = "Decay of the second moment."},
    {.key = "optimizer.eps",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.eps),
     .fallback = "1e-8",
     .min = 1e-30,
     .max = 1,
     .doc = "Added to the root of the second moment."},
    {.key = "optimizer.weight_decay",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.weight_decay),
     .fallback = "0",
     .min = 0,
     .max = 1e3,
     .doc = "Decoupled weight decay; never on biases, norms and LayerScale."},
    {.key = "optimizer.max_grad_norm",
     .type = HV_OPTION_FLOAT,
     AT(optimizer.max_grad_norm),
     .fallback = "1",
     .min = 0,
     .max = 1e9,
     .doc = "The norm of all gradients together is clipped to this; 0: never."},
    {.key = "validation.interval",
     .type = HV_OPTION_INT,
     AT(validation.interval),
     .fallback = "500",
     .min = 0,
     .max = MANY,
     .unit = "steps",
     .doc = "How often the held-out split is measured, and after the last step; 0: only then."},
    {.key = "validation.samples",
     .type = HV_OPTION_INT,
     AT(validation.samples),
     .fallback = "0",
     .min = 0,
     .max = MANY,
     .unit = "frames",
     .doc = "Held-out frames to measure, evenly spread; 0: all."},
    {.key = "validation.ddim_steps",
     .type = HV_OPTION_INT,
     AT(validation.ddim_steps),
     .fallback = "4",
     .min = 1,
     .max = 1000,
     .doc = "Denoising steps of the predictions that are measured."},
    {.key = "validation.theta",
     .type = HV_OPTION_FLOAT,
     AT(validation.theta),
     .fallback = "0.96",
     .min = 0,
     .max = 1,
     .doc = "Confidence above which an ensemble averages both heads."},
    {.key = "checkpoint.interval",
     .type = HV_OPTION_INT,
     AT(checkpoint.interval),
     .fallback = "1000",
     .min = 0,
     .max = MANY,
     .unit = "steps",
     .doc = "How often a checkpoint is written, and after the last step; 0: only then."},
    {.key = "checkpoint.keep",
     .type = HV_OPTION_INT,
     AT(checkpoint.keep),
     .fallback = "2",
     .min = 1,
     .max = 1e6,
     .doc = "Checkpoints that stay: the newest ones."},
    {.key = "parallel.sharding",
     .type = HV_OPTION_ENUM,
     AT(parallel.sharding),
     .fallback = "replicate",
     .choices = shardings,
     .doc = "What each of several ranks keeps only its part of: nothing, the optimizer's state, gradients too, or "
            "parameters too. Less memory each, for more communication; the results are the same."},
    {.key = "parallel.timeout",
     .type = HV_OPTION_FLOAT,
     AT(parallel.timeout),
     .fallback = "45",
     .min = 1,
     .max = 86400,
     .unit = "seconds",
     .doc = "How long a rank waits for the others within a step before the run ends with an error that names the one "
            "that is missing."},
    {.key = "bench.prompt_tokens",
     .type = HV_OPTION_INT,
     AT(bench_prompt),
     .fallback = "26",
     .min = 1,
     .max = 4096,
     .unit = "tokens",
     .doc = "Length of a prompt in `hvla-train bench`, `<s>` not counted."},
};
enum { TABLE_COUNT = sizeof table / sizeof table[0] };

static hv_status check_values(const hv_train_config *config) {
  const hv_train_settings *train = &config->train;
  if (train->steps > 0 && train->epochs > 0) {
    return hv_error(HV_ERR_INPUT, "%s: train.steps (%lld) and train.epochs (%g) both say how long the run is; give one",
                    config->source, (long long)train->steps, train->epochs);
  }
  if (train->micro_batch > 0 && train->batch_size % train->micro_batch != 0) {
    return hv_error(HV_ERR_INPUT, "%s: train.micro_batch (%lld) must divide train.batch_size (%lld)", config->source,
                    (long long)train->micro_batch, (long long)train->batch_size);
  }
  if (train->diffusion_weight == 0 && train->ce_weight == 0) {
    return hv_error(HV_ERR_INPUT, "%s: train.diffusion_weight and train.ce_weight are both 0: nothing would be trained",
                    config->source);
  }
  if (!config->model && !config->init_from) {
    return hv_error(HV_ERR_INPUT, "%s: neither model (an architecture) nor init_from (a model directory) is given",
                    config->source);
  }
  return HV_OK;
}

hv_status hv_train_config_load(const char *path, const char *const *sets, size_t num_sets, hv_train_config *out) {
  json_t *document = NULL;
  *out = (hv_train_config){0};
  hv_status status = hv_yaml_load(path, &document);
  if (status) goto done;
  HV_CHECK(hv_options_parse(table, TABLE_COUNT, document, path, sets, num_sets, out));
  out->source = strdup(path);
  if (!out->source) {
    status = hv_error_memory("the configuration");
    goto done;
  }
  status = check_values(out);
done:
  json_decref(document);
  if (status) hv_train_config_free(out);
  return status;
}

void hv_train_config_free(hv_train_config *config) {
  free(config->source);
  config->source = NULL;
  hv_options_free(table, TABLE_COUNT, config);
}

hv_status hv_train_config_check_ranks(const hv_train_config *config, int32_t ranks) {
  const hv_train_settings *train = &config->train;
  if (train->batch_size % ranks != 0) {
    return hv_error(HV_ERR_INPUT, "%s: train.batch_size (%lld) is not divided by the %d ranks", config->source,
                    (long long)train->batch_size, ranks);
  }
  if (train->micro_batch > 0 && train->batch_size / ranks % train->micro_batch != 0) {
    return hv_error(HV_ERR_INPUT,
                    "%s: train.micro_batch (%lld) must divide each rank's part of the batch, %lld of %lld",
                    config->source, (long long)train->micro_batch, (long long)train->batch_size / ranks,
                    (long long)train->batch_size);
  }
  return HV_OK;
}

hv_status hv_train_config_check_run(const hv_train_config *config) {
  const char *missing = NULL;
  if (!config->output) missing = "output (the run directory)";
  if (config->data.files.count == 0) missing = "data.files (HDF5 files with demonstrations)";
  if (!config->tokenizer && !config->init_from) missing = "tokenizer (a SentencePiece model), or init_from";
  if (config->train.steps == 0 && config->train.epochs == 0) missing = "train.steps or train.epochs";
  if (missing) return hv_error(HV_ERR_INPUT, "%s: a run needs %s", config->source, missing);
  return HV_OK;
}

hv_status hv_train_config_model(const hv_train_config *config, hv_model_config *model, hv_model_directory *directory) {
  hv_status status = HV_OK;
  hv_text where = {0};
  json_t *changes = NULL;
  *model = (hv_model_config){0};
  *directory = (hv_model_directory){0};
  hv_text_add(&where, "%s: model", config->source);
  if (where.failed) {
    status = hv_error_memory("the configuration");
    goto done;
  }
  if (!config->init_from) {
    status = hv_model_config_from_json(config->model, hv_text_string(&where), HV_UNKNOWN_REFUSE, model);
    goto done;
  }
  changes = config->model ? json_incref(config->model) : json_object();
  HV_CHECK(hv_model_directory_open(config->init_from, directory));
  status = hv_model_config_override(&directory->model, changes, hv_text_string(&where), model);
done:
  json_decref(changes);
  if (status) hv_model_directory_close(directory);
  hv_text_free(&where);
  return status;
}

hv_status hv_train_config_resolve(const hv_train_config *config, json_t **out) {
  return hv_options_to_json(table, TABLE_COUNT, config, out);
}

char *hv_train_config_tokenizer(const hv_train_config *config) {
  if (config->tokenizer) return strdup(config->tokenizer);
  return config->init_from ? hv_model_directory_tokenizer(config->init_from) : NULL;
}

/* Length of the first clause: up to a colon, a semicolon or a full stop before a space or the end. */
static int first_clause(const char *doc) {
  const char *at = doc;
  while ((at = strpbrk(at, ".;:")) != NULL && at[1] != ' ' && at[1] != '\0') at++;
  return at ? (int)(at - doc) : (int)strlen(doc);
}

void hv_train_config_list(hv_text *out) {
  hv_text_add(out, "\nKeys of the configuration and their defaults (docs/configuration.md says more):\n");
  for (int i = 0; i < TABLE_COUNT; i++) {
    hv_text_add(out, "  %-26s %.*s [%s]\n", table[i].key, first_clause(table[i].doc), table[i].doc, table[i].fallback);
  }
}

void hv_train_config_document(hv_text *out) {
  hv_text_add(out, "# Configuration of a training run\n\n"
                   "A run is one YAML file, given to `hvla-train run --config FILE`; `--set key=value` overrides a key "
                   "(`--set optimizer.learning_rate=1e-4`,\n`--set model.llm.num_hidden_layers=8`). Unknown keys are "
                   "errors that name the nearest known one. Paths are relative to the working directory.\n"
                   "This page is made by `hvla-train config --document`.\n\n");
  hv_options_document(table, TABLE_COUNT, out);
}
