/* An exponential moving average of the parameters in training: after update t it moves towards them by
 * 1 − min(decay, (1 + t) / (10 + t)), so that the first updates, of which an average over many would be made of little
 * but initial values, weigh more. Held in F32 on the device for what this rank owns of each trainable group
 * (hv_group_owned); parameters count with their remainders, as their F32 master values.
 *
 * NULL stands for no average: all calls take it, and do nothing. */
#ifndef HV_TRAIN_EMA_H
#define HV_TRAIN_EMA_H

#include "train/optimizer.h"

typedef struct hv_ema hv_ema;

/* Allocates the averages, which hold nothing yet: hv_ema_reset, or a checkpoint's. Optimizer and parameters outlive it.
 */
HV_NODISCARD hv_status hv_ema_open(const hv_optimizer *optimizer, hv_params *params, double decay, hv_ema **out);
void hv_ema_close(hv_ema *ema);

/* The averages become what the parameters are. Waits for the stream. */
HV_NODISCARD hv_status hv_ema_reset(hv_ema *ema, hv_stream *stream);

/* Queues one step of the averages, behind hv_optimizer_step; one that was skipped is skipped here. */
void hv_ema_update(hv_ema *ema, hv_stream *stream);

/* Parameters and averages change places, on all ranks; the same call again puts everything back to the bit. Nothing is
 * trained in between. */
void hv_ema_exchange(hv_ema *ema, hv_stream *stream);

/* F32 [1, owned count] of a trainable group, for checkpoints; absent where it is frozen. */
hv_tensor hv_ema_group(const hv_ema *ema, hv_group_id group);

#endif
