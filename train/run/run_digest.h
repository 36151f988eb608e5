/* What a run reads, in short: to find out whether it is the same on another rank, or when the run is resumed. */
#ifndef HV_TRAIN_RUN_RUN_DIGEST_H
#define HV_TRAIN_RUN_RUN_DIGEST_H

#include "core/io/model_directory.h"
#include "train/run/run_data.h"

/* `digest` with all of a split that is in memory: lengths, actions, state and prompts, everything but the pictures. */
uint64_t hv_run_digest_split(uint64_t digest, const hv_demonstrations *split, const hv_prompt_table *prompts);

/* Of all that validation.metric depends on but the model: the held-out split, and how it is measured. Figures of two
 * digests do not compare. 0: nothing is held out. */
HV_NODISCARD hv_status hv_run_digest_held_out(const hv_run_data *data, uint64_t *out);

/* Of a model: its architecture, and of every tensor the size and the values at both ends, which differ where two were
 * trained apart. 0: the directory is not open. */
HV_NODISCARD hv_status hv_run_digest_model(const hv_model_directory *directory, uint64_t *out);

#endif
