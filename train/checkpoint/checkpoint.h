/* Reading checkpoints (checkpoint_files.h tells what one is): the newest that is whole, and its content into parameters
 * and optimizer. Any number of ranks reads what any other number wrote, whatever each keeps. Every random draw is a
 * function of the seed and the step, so there is no generator to keep. All ranks make these calls.
 */
#ifndef HV_TRAIN_CHECKPOINT_CHECKPOINT_H
#define HV_TRAIN_CHECKPOINT_CHECKPOINT_H

#include "core/base/text.h"
#include "train/checkpoint/checkpoint_files.h"
#include "train/ema.h"
#include "train/optimizer.h"

/* The newest checkpoint that is whole, *step = -1 where there is none: its files are read and held against their
 * checksums, each rank a part of them. Newer ones in which this rank found damage are named in `damaged`, one a line.
 * One that cannot be read, or is of a newer format, may be whole: that is an error. */
HV_NODISCARD hv_status hv_checkpoint_find(const char *run, hv_comm *comm, int64_t *step, hv_text *damaged);

/* Reads it into parameters, optimizer and averages. One that belongs to another model or dtype is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_checkpoint_load(const char *run, int64_t step, hv_params *params, hv_optimizer *optimizer,
                                          hv_ema *ema, hv_stream *stream, hv_run_position *out);

#endif
