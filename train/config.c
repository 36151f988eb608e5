#include "train/config.h"

#include <stdlib.h>
#include <string.h>

#include "core/io/command.h"
#include "core/io/yaml.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/config_table.h"

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
  if (config->optimizer.gradients != 0 && config->dtype == 0) {
    return hv_error(HV_ERR_INPUT, "%s: optimizer.gradients can be bf16 only if dtype is bf16", config->source);
  }
  if (config->watch.spike_factor > 0 && config->watch.spike_factor <= 1) {
    return hv_error(
        HV_ERR_INPUT,
        "%s: watch.spike_factor (%g) must be more than 1, or 0 to turn it off: up to 1, ordinary steps would be spikes",
        config->source, config->watch.spike_factor);
  }
  bool held_out = config->data.valid_split != NULL;
  if (!held_out && (config->validation.patience > 0 || config->validation.at_start)) {
    return hv_error(HV_ERR_INPUT, "%s: validation.%s needs a held-out split, data.valid_split", config->source,
                    config->validation.at_start ? "at_start" : "patience");
  }
  if (!config->init_from && (config->init.action_dims.count > 0 || config->init.state_dims.count > 0)) {
    return hv_error(HV_ERR_INPUT, "%s: init.action_dims and init.state_dims need init_from", config->source);
  }
  return HV_OK;
}

hv_status hv_train_config_load(const char *path, const char *const *sets, size_t num_sets, hv_train_config *out) {
  json_t *document = NULL;
  *out = (hv_train_config){0};
  hv_status status = hv_yaml_load(path, &document);
  if (status) goto done;
  HV_CHECK(hv_options_parse(hv_train_config_table, hv_train_config_table_count, document, path, sets, num_sets, out));
  if (asprintf(&out->source, num_sets > 0 ? "%s with --set" : "%s", path) < 0) {
    out->source = NULL;
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
  hv_options_free(hv_train_config_table, hv_train_config_table_count, config);
}

hv_status hv_train_config_check_ranks(const hv_train_config *config, int32_t ranks) {
  const hv_train_settings *train = &config->train;
  if (ranks > HV_CHECKPOINT_RANKS) {
    return hv_error(HV_ERR_INPUT,
                    "a run can have %d ranks at most, the most that can write a checkpoint; this one has %d",
                    HV_CHECKPOINT_RANKS, ranks);
  }
  if (train->batch_size % ranks != 0) {
    return hv_error(HV_ERR_INPUT, "%s: train.batch_size (%lld) must be a multiple of the number of ranks, %d",
                    config->source, (long long)train->batch_size, ranks);
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

/* `model:` with all keys of a model's config.json; with init_from, only those that change. */
static hv_status resolve_model(const hv_train_config *config, json_t **out) {
  *out = NULL;
  if (config->init_from) {
    *out = config->model ? json_deep_copy(config->model) : json_object();
    return *out ? HV_OK : hv_error_memory("the configuration");
  }
  hv_model_config model;
  hv_model_directory none;
  HV_TRY(hv_train_config_model(config, &model, &none));
  hv_status status = hv_model_config_to_json(&model, out);
  hv_model_config_free(&model);
  return status;
}

hv_status hv_train_config_resolve(const hv_train_config *config, json_t **out) {
  json_t *model = NULL, *options = NULL;
  *out = json_object();
  hv_status status = *out ? HV_OK : hv_error_memory("the configuration");
  if (status) goto done;
  HV_CHECK(resolve_model(config, &model));
  HV_CHECK(hv_options_to_json(hv_train_config_table, hv_train_config_table_count, config, &options));
  /* `model` comes first, where people look for it. */
  if (json_object_set(*out, "model", model) != 0 || json_object_update_missing(*out, options) != 0) {
    status = hv_error_memory("the configuration");
  }
done:
  json_decref(model);
  json_decref(options);
  if (status) {
    json_decref(*out);
    *out = NULL;
  }
  return status;
}

char *hv_train_config_tokenizer(const hv_train_config *config) {
  if (config->tokenizer) return strdup(config->tokenizer);
  return config->init_from ? hv_model_directory_tokenizer(config->init_from) : NULL;
}

/* Length of the first clause: it ends before a colon, semicolon or full stop that is outside parentheses and followed
 * by a space or the end.
 */
static int first_clause(const char *doc) {
  int depth = 0;
  for (const char *at = doc; *at; at++) {
    depth += (*at == '(') - (*at == ')');
    if (depth == 0 && strchr(".;:", *at) && (at[1] == ' ' || at[1] == '\0')) return (int)(at - doc);
  }
  return (int)strlen(doc);
}

enum { LIST_INDENT = 30 };

void hv_train_config_list(hv_text *out) {
  hv_text_add(out, "\nKeys of the configuration and their defaults (docs/configuration.md says more):\n");
  for (size_t i = 0; i < hv_train_config_table_count; i++) {
    const hv_option *option = &hv_train_config_table[i];
    hv_text meaning = {0};
    hv_text_add(&meaning, "%.*s [%s]", first_clause(option->doc), option->doc, option->fallback);
    hv_help_entry(option->key, LIST_INDENT, hv_text_string(&meaning), out);
    hv_text_free(&meaning);
  }
}

void hv_train_config_document(hv_text *out) {
  hv_text_add(out, "# Configuration of a training run\n\n"
                   "A run is one YAML file, given to `hvla-train run --config FILE`; `--set key=value` overrides a key "
                   "(`--set optimizer.learning_rate=1e-4`,\n`--set model.llm.num_hidden_layers=8`). Unknown keys are "
                   "errors that name the nearest known one. Paths are relative to the working directory.\n"
                   "This page is made by `hvla-train config --document`.\n\n");
  hv_options_document(hv_train_config_table, hv_train_config_table_count, out);
}
