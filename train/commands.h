/* The commands of hvla-train, one file each: options, help and work. */
#ifndef HV_TRAIN_COMMANDS_H
#define HV_TRAIN_COMMANDS_H

#include "core/io/command.h"
#include "train/config.h"

extern const hv_command hv_command_run, hv_command_check, hv_command_config, hv_command_bench, hv_command_plan,
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
    .unit = "KEY=VALUE", .doc = "Override this key of the configuration."                                              \
  }
/* For commands with a configuration. */
#define HV_DEVICE_OPTION(type_)                                                                                        \
  {                                                                                                                    \
    .key = "device", .type = HV_OPTION_STRING, .offset = offsetof(type_, device), .fallback = "null", .unit = "NAME",  \
    .doc = "Where the model runs: cpu, or a device module (cuda); overrides the configuration's `device`."             \
  }
#define HV_TRACE_OPTION(type_)                                                                                         \
  {                                                                                                                    \
    .key = "trace", .type = HV_OPTION_PATH, .offset = offsetof(type_, trace), .fallback = "null", .unit = "FILE",      \
    .doc = "Write a timeline to FILE, for chrome://tracing or Perfetto; ranks above 0 to FILE.RANK."                   \
  }

#endif
