/* What of a resumed run's configuration is not what it was. */
#ifndef HV_TRAIN_RUN_RUN_CHANGES_H
#define HV_TRAIN_RUN_RUN_CHANGES_H

#include "train/config.h"

/* Warns of every key whose value differs from `output`/config.yaml, with both values. It may differ where the data's
 * order does not depend on it; a person should know where it does, and what it may have to do with an error that
 * follows. */
HV_NODISCARD hv_status hv_run_report_changes(const hv_train_config *config);

#endif
