/* Every key of a run configuration: type, default, range and meaning, in the order in which they are documented. */
#ifndef HV_TRAIN_CONFIG_TABLE_H
#define HV_TRAIN_CONFIG_TABLE_H

#include "core/io/options.h"

extern const hv_option hv_train_config_table[]; /* fields of hv_train_config */
extern const size_t hv_train_config_table_count;

#endif
