/* Whether all ranks were given the same run. One with another learning rate, or other demonstrations, would drift away
 * from the rest without a word. */
#ifndef HV_TRAIN_RUN_RUN_AGREEMENT_H
#define HV_TRAIN_RUN_RUN_AGREEMENT_H

#include <stdbool.h>

#include "core/tensor/comm.h"
#include "train/run/run_data.h"

/* Called by all ranks; `directory`: what init_from names, else not open; `held_out`: hv_run_digest_held_out of the
 * data. HV_ERR_INPUT names the part of the configuration that is not rank 0's, `resume` among them, or says that the
 * model to start from is not (hv_run_digest_model), or the demonstrations, in anything but their pictures. Where files
 * lie, threads, caches and devices may differ from machine to machine. */
HV_NODISCARD hv_status hv_run_check_agreement(const hv_train_config *config, bool resume,
                                              const hv_model_directory *directory, const hv_run_data *data,
                                              uint64_t held_out, hv_comm *comm);

#endif
