#include <stddef.h>

#include "core/io/json.h"
#include "core/io/yaml.h"
#include "train/commands.h"

typedef struct config_options {
  char *config;
  hv_string_list sets;
  bool document, json;
} config_options;

static const hv_option options[] = {
    {.key = "config",
     .type = HV_OPTION_PATH,
     .offset = offsetof(config_options, config),
     .fallback = "null",
     .unit = "FILE",
     .doc = "The run configuration to resolve and print."},
    HV_SET_OPTION(config_options),
    {.key = "document",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(config_options, document),
     .fallback = "false",
     .doc = "Print every key with its type, default and meaning as Markdown: docs/configuration.md."},
    {.key = "json",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(config_options, json),
     .fallback = "false",
     .doc = "Print the resolved configuration as one JSON object, for other programs."},
};

static hv_status work(const void *values, hv_command_result *out) {
  const config_options *given = values;
  hv_status status = HV_OK;
  hv_train_config config = {0};
  json_t *resolved = NULL;
  if (given->document) {
    hv_train_config_document(&out->text);
  } else if (given->config) {
    HV_CHECK(hv_train_config_load(given->config, (const char *const *)given->sets.items, given->sets.count, &config));
    HV_CHECK(hv_train_config_resolve(&config, &resolved));
    if (given->json) {
      HV_CHECK(hv_json_format_line(resolved, &out->text));
      hv_text_add(&out->text, "\n");
    } else {
      HV_CHECK(hv_yaml_format(resolved, &out->text));
    }
  } else {
    status = hv_error(HV_ERR_INPUT, "give --config FILE to see a resolved configuration, or --document");
  }
done:
  json_decref(resolved);
  hv_train_config_free(&config);
  return status;
}

const hv_command hv_command_config = {
    .name = "config",
    .summary = "Print a configuration with its defaults filled in, or document every key.",
    .help = "  hvla-train config --config configs/lift-tiny.yaml\n"
            "  hvla-train config --document > docs/configuration.md\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(config_options),
    .work = work,
};
