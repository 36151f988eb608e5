/* Where a run stands, for `hvla-train status`: as JSON, and for people. */
#ifndef HV_TRAIN_WATCH_RUN_STATUS_H
#define HV_TRAIN_WATCH_RUN_STATUS_H

#include "train/watch/run_history.h"

/* run, state, step, steps, seconds_left, seconds_since (the newest figures), skipped, checkpoint (null: none), and
 * held_out: step, loss, and for every predictor {"last", "best", "best_step"}; null where it is not known. As far as
 * the newest line has them: epoch, samples_per_s, model_tflops, speed_of_light, loss, loss_diffusion, loss_ce,
 * learning_rate, grad_norm, memory_bytes, slowest_rank; as far as run.json does: host, pid, ranks, device, start,
 * message (why it ended, or why its state is unknown). *out is owned by the caller. */
HV_NODISCARD hv_status hv_run_status_make(const hv_run_history *history, json_t **out);

/* The same in a few lines, with a curve of the losses. */
void hv_run_status_format(const hv_run_history *history, const json_t *status, hv_text *out);

/* "2 h 05 min", "3 min 12 s", "0 s" for what is negative, "?" for what is no number, or beyond 1e15. `size` of at
 * least 32. */
void hv_format_duration(double seconds, char *out, size_t size);

#endif
