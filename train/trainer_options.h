/* The trainer options that a configuration stands for. */
#ifndef HV_TRAIN_TRAINER_OPTIONS_H
#define HV_TRAIN_TRAINER_OPTIONS_H

#include "train/config.h"
#include "train/trainer.h"

/* The options of one of `ranks` ranks, whose communicator the caller adds; `prompt` tokens, <s> included, at most. The
 * configuration and the model must outlive their use. */
hv_trainer_options hv_trainer_options_make(const hv_train_config *config, const hv_config *model, int32_t ranks,
                                           int32_t prompt);

#endif
