/* One rank's file of a checkpoint: copied from the device to the host in one go, so that training can go on, and
 * written from there by any thread; or, where the host has no room for a copy, written straight from the device. */
#ifndef HV_TRAIN_CHECKPOINT_CHECKPOINT_SHARD_H
#define HV_TRAIN_CHECKPOINT_CHECKPOINT_SHARD_H

#include <stdatomic.h>

#include "core/base/file.h"
#include "train/ema.h"
#include "train/optimizer.h"

typedef struct hv_checkpoint_shard hv_checkpoint_shard;

/* Lists what this rank writes; parameters, optimizer and averages must outlive it. */
HV_NODISCARD hv_status hv_checkpoint_shard_open(const hv_params *params, const hv_optimizer *optimizer,
                                                const hv_ema *ema, hv_checkpoint_shard **out);
void hv_checkpoint_shard_close(hv_checkpoint_shard *shard); /* NULL is allowed */

/* Bytes that a copy on the host takes. */
size_t hv_checkpoint_shard_bytes(const hv_checkpoint_shard *shard);

/* Allocates page-locked memory for a copy; without it, the shard is written straight from the device. */
HV_NODISCARD hv_status hv_checkpoint_shard_reserve(hv_checkpoint_shard *shard);
void hv_checkpoint_shard_release(hv_checkpoint_shard *shard); /* gives it back */

/* Copies the state after the stream's work so far, and waits; does nothing if no memory was reserved. */
HV_NODISCARD hv_status hv_checkpoint_shard_copy(hv_checkpoint_shard *shard, hv_stream *stream);

/* Writes and syncs the file, complete or not at all. With a copy, any thread may call it, and the stream is not used.
 * Gives up with an error when `stop` turns true. */
HV_NODISCARD hv_status hv_checkpoint_shard_write(hv_checkpoint_shard *shard, const char *path, hv_stream *stream,
                                                 const atomic_bool *stop, hv_file_digest *out);

#endif
