/* Checks that all ranks were given the same run. A rank with another learning rate, or other demonstrations, would
 * silently diverge from the rest. */
#ifndef HV_TRAIN_RUN_RUN_AGREEMENT_H
#define HV_TRAIN_RUN_RUN_AGREEMENT_H

#include <stdbool.h>

#include "core/tensor/comm.h"
#include "train/run/run_data.h"

/* Called by all ranks; `directory`: the model of init_from, not open without one; `held_out`: hv_run_digest_held_out of
 * the data. HV_ERR_INPUT names the part of the configuration (or `resume`) that differs from rank 0's, or says that the
 * model to start from (hv_run_digest_model) or the demonstrations differ; pictures are not compared. Paths of files,
 * threads, caches and devices may differ from machine to machine. */
HV_NODISCARD hv_status hv_run_check_agreement(const hv_train_config *config, bool resume,
                                              const hv_model_directory *directory, const hv_run_data *data,
                                              uint64_t held_out, hv_comm *comm);

#endif
