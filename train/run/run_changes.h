/* What of a run's configuration is not what it was: of the run that is resumed, of the model that is started from. */
#ifndef HV_TRAIN_RUN_RUN_CHANGES_H
#define HV_TRAIN_RUN_RUN_CHANGES_H

#include "train/config.h"

/* Warns of every key whose value differs from `output`/config.yaml, with both values. It may differ where the data's
 * order does not depend on it; a person should know where it does, and what it may have to do with an error that
 * follows. */
HV_NODISCARD hv_status hv_run_report_changes(const hv_train_config *config);

/* Warns of every key of the architecture that `init_from` gives another value and that no tensor's shape shows: the old
 * parameters then compute something else. What hv_adapt_model can do is no such key. */
HV_NODISCARD hv_status hv_run_report_model_changes(const hv_model_config *before, const hv_model_config *now);

#endif
