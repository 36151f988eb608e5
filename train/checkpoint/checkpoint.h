/* Reading checkpoints (checkpoint_files.h says what one is): finds the newest complete one, and loads it into
 * parameters and optimizer. Any number of ranks can read what any other number wrote, with any sharding. Random draws
 * are functions of the seed and the step, so there is no generator state. All ranks make these calls.
 */
#ifndef HV_TRAIN_CHECKPOINT_CHECKPOINT_H
#define HV_TRAIN_CHECKPOINT_CHECKPOINT_H

#include "core/base/text.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/ema.h"
#include "train/optimizer.h"

/* Finds the newest checkpoint whose files match their checksums, of which each rank verifies a part; *step = -1 if
 * there is none. Newer ones in which this rank found damage are named in `damaged`, one a line. One that cannot be
 * read, or has a newer format, may be undamaged and is an error. */
HV_NODISCARD hv_status hv_checkpoint_find(const char *run, hv_comm *comm, int64_t *step, hv_text *damaged);

/* Reads it into parameters, optimizer and averages. One that belongs to another model or dtype is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_checkpoint_load(const char *run, int64_t step, hv_params *params, hv_optimizer *optimizer,
                                          hv_ema *ema, hv_stream *stream, hv_run_position *out);

#endif
