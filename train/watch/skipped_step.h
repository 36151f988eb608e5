/* Where a skipped step went wrong: on which rank and in which samples, as far as the losses tell. */
#ifndef HV_TRAIN_WATCH_SKIPPED_STEP_H
#define HV_TRAIN_WATCH_SKIPPED_STEP_H

#include "train/run/run_data.h"

/* One micro-batch of the step. */
typedef struct hv_suspect {
  int32_t rank;
  bool finite;          /* its loss */
  double loss;          /* mean over its samples; 0 where it is not finite */
  int64_t first_sample; /* global number in the order of the run; the others follow */
  int32_t samples;
} hv_suspect;

enum { HV_MAX_SUSPECTS = 8 };

/* After a skipped step; called by all ranks. If losses are not finite: the first such micro-batch of each rank that has
 * one, up to HV_MAX_SUSPECTS. Else the one micro-batch with the largest loss, as the best guess. */
HV_NODISCARD hv_status hv_suspects_find(const hv_trainer *trainer, hv_suspect out[HV_MAX_SUSPECTS], int *count);

/* [{"rank", "loss" (null: not finite), "first_sample", "samples", "frames": ["lift.hdf5/demo_3:17", …]}, …], at most 64
 * frames each; NULL without memory. */
json_t *hv_suspects_describe(const hv_suspect *suspects, int count, const hv_run_data *data);

/* "step 37 changed nothing: a gradient is not finite; rank 1, samples 592 to 595 (lift.hdf5/demo_3:17, …), loss not
 * finite" */
void hv_suspects_tell(int64_t step, hv_skip_reason reason, const json_t *description, hv_text *out);

#endif
