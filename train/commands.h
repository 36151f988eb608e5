/* The commands of hvla-train, one file each: options, help and work. */
#ifndef HV_TRAIN_COMMANDS_H
#define HV_TRAIN_COMMANDS_H

#include "core/io/options.h"
#include "train/config.h"

typedef struct hv_command_result {
  hv_text text;       /* printed on standard output when the command succeeds */
  int exit_code;      /* 0 at the start; an error's own code wins over it */
  double again_after; /* seconds after which the command is to be done again; 0: it is done */
} hv_command_result;

typedef struct hv_train_command {
  hv_command command;
  size_t values_size; /* of the struct that the command's table describes */
  hv_status (*work)(const void *values, hv_command_result *out);
  void (*more_help)(hv_text *out); /* goes below the help; NULL: nothing */
} hv_train_command;

extern const hv_train_command hv_command_run, hv_command_check, hv_command_config, hv_command_bench, hv_command_plan,
    hv_command_status, hv_command_report, hv_command_model;

/* Options that several commands have, in a struct of type `type_` with fields of these names. */
#define HV_CONFIG_OPTION(type_)                                                                                        \
  {                                                                                                                    \
    .key = "config", .type = HV_OPTION_PATH, .offset = offsetof(type_, config), .unit = "FILE",                        \
    .doc = "The run configuration, a YAML file."                                                                       \
  }
#define HV_SET_OPTION(type_)                                                                                           \
  {                                                                                                                    \
    .key = "set", .type = HV_OPTION_STRING_LIST, .offset = offsetof(type_, sets), .fallback = "[]",                    \
    .unit = "KEY=VALUE", .doc = "Put this over the configuration's key; may be repeated."                              \
  }
/* For commands with a configuration. */
#define HV_DEVICE_OPTION(type_)                                                                                        \
  {                                                                                                                    \
    .key = "device", .type = HV_OPTION_STRING, .offset = offsetof(type_, device), .fallback = "null", .unit = "NAME",  \
    .doc = "Where the model runs; wins over the configuration's `device`."                                             \
  }
#define HV_TRACE_OPTION(type_)                                                                                         \
  {                                                                                                                    \
    .key = "trace", .type = HV_OPTION_STRING, .offset = offsetof(type_, trace), .fallback = "null", .unit = "FILE",    \
    .doc = "Write a timeline of the run to FILE, for chrome://tracing or Perfetto; ranks above 0 to FILE.RANK."        \
  }
#define HV_JSON_OPTION(type_)                                                                                          \
  {                                                                                                                    \
    .key = "json", .type = HV_OPTION_BOOL, .offset = offsetof(type_, json), .fallback = "false",                       \
    .doc = "Print one JSON object and nothing else."                                                                   \
  }

#endif
