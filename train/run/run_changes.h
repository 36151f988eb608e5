/* Warnings about what has changed: since the run that is resumed, or since the model that training starts from. */
#ifndef HV_TRAIN_RUN_RUN_CHANGES_H
#define HV_TRAIN_RUN_RUN_CHANGES_H

#include "train/config.h"

/* Warns of every key whose value differs from `output`/config.yaml, with both values. A change is allowed if the order
 * of the data does not depend on the key; the warning also helps to understand an error that follows. */
HV_NODISCARD hv_status hv_run_report_changes(const hv_train_config *config);

/* Warns of every key of the architecture that differs from `init_from` without changing a tensor's shape: the old
 * parameters then compute something else. Keys that hv_adapt_model handles are left out. */
HV_NODISCARD hv_status hv_run_report_model_changes(const hv_model_config *before, const hv_model_config *now);

#endif
