/* An exponential moving average of the parameters in training: after update t the average moves towards the parameters
 * by a factor of 1 − min(decay, (1 + t) / (10 + t)). The factor is larger in the first updates, or the average would
 * consist of initial values for long. The averages are of the F32 master values, and held in F32 on the device for what
 * this rank owns of each trainable group (hv_group_owned).
 *
 * Every call accepts NULL, which stands for no average, and then does nothing. */
#ifndef HV_TRAIN_EMA_H
#define HV_TRAIN_EMA_H

#include "train/optimizer.h"

typedef struct hv_ema hv_ema;

/* Allocates the averages; hv_ema_reset or a checkpoint then fills them. Optimizer and parameters must outlive it.
 */
HV_NODISCARD hv_status hv_ema_open(const hv_optimizer *optimizer, hv_params *params, double decay, hv_ema **out);
void hv_ema_close(hv_ema *ema);

/* Sets the averages to the parameters. Waits for the stream. */
HV_NODISCARD hv_status hv_ema_reset(hv_ema *ema, hv_stream *stream);

/* Queues one update of the averages, between hv_optimizer_step and hv_optimizer_finish; does nothing if that step was
 * skipped. */
void hv_ema_update(hv_ema *ema, hv_stream *stream);

/* Swaps parameters and averages, on all ranks; a second call restores both to the bit. No training in between. */
void hv_ema_exchange(hv_ema *ema, hv_stream *stream);

/* F32 [1, owned count] of a trainable group, for checkpoints; absent where it is frozen. */
hv_tensor hv_ema_group(const hv_ema *ema, hv_group_id group);

#endif
