/* The commands of hvla-data. Each prints its result on standard output; an answer of "no" is HV_ERR_NO. */
#ifndef HV_DATA_COMMANDS_H
#define HV_DATA_COMMANDS_H

#include "core/io/options.h"

typedef struct hv_stats_options {
  hv_string_list files;
  char *key, *out, *split;   /* NULL: not given */
  hv_string_list state_keys; /* each may hold several, with commas between; empty: the layout's choice */
  hv_int_list gripper;       /* empty: the rule of hybridvla.md §1 */
} hv_stats_options;

typedef struct hv_inspect_options {
  hv_string_list files; /* exactly one */
  bool json;
  char *picture; /* NULL: none */
} hv_inspect_options;

typedef struct hv_frame_options {
  hv_string_list files; /* exactly one */
  char *episode;
  int64_t frame;
  char *camera, *out;        /* both, or both NULL: no picture */
  hv_string_list state_keys; /* as in hv_stats_options */
  bool json;
} hv_frame_options;

typedef struct hv_validate_options {
  hv_string_list files;
  bool json;
} hv_validate_options;

HV_NODISCARD hv_status hv_command_stats(const hv_stats_options *options);
HV_NODISCARD hv_status hv_command_inspect(const hv_inspect_options *options);
HV_NODISCARD hv_status hv_command_frame(const hv_frame_options *options);
HV_NODISCARD hv_status hv_command_validate(const hv_validate_options *options);

/* The names in "--state-keys a,b --state-keys c", appended to *out, which the caller frees after an error too. */
HV_NODISCARD hv_status hv_split_state_keys(const hv_string_list *given, hv_string_list *out);

/* Writes to standard output; a full disk or a closed pipe is an error. */
HV_NODISCARD hv_status hv_print(const char *text, size_t size);

#endif
