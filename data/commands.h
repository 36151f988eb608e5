/* The commands of hvla-data, one file each: options, help and work. */
#ifndef HV_DATA_COMMANDS_H
#define HV_DATA_COMMANDS_H

#include "core/io/command.h"

extern const hv_command hv_command_stats, hv_command_inspect, hv_command_frame, hv_command_validate;

/* The names in "--state-keys a,b --state-keys c", appended to *out, which the caller frees after an error too. */
HV_NODISCARD hv_status hv_split_state_keys(const hv_string_list *given, hv_string_list *out);

#endif
