/* Digests of what a run reads, to compare it between ranks, and when a run is resumed. */
#ifndef HV_TRAIN_RUN_RUN_DIGEST_H
#define HV_TRAIN_RUN_RUN_DIGEST_H

#include "core/io/model_directory.h"
#include "train/run/run_data.h"

/* Extends `digest` by a split: lengths, actions, state and prompts, everything except the pictures. */
uint64_t hv_run_digest_split(uint64_t digest, const hv_demonstrations *split, const hv_prompt_table *prompts);

/* The digest of all that validation.metric depends on except the model: the held-out split, and how it is measured.
 * Figures with different digests cannot be compared. 0: nothing is held out. */
HV_NODISCARD hv_status hv_run_digest_held_out(const hv_run_data *data, uint64_t *out);

/* Of a model: its architecture, and of every tensor the size and the values at both ends, which differ where two were
 * trained apart. 0: the directory is not open. */
HV_NODISCARD hv_status hv_run_digest_model(const hv_model_directory *directory, uint64_t *out);

#endif
