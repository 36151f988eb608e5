/* The learning rate of each step: warm-up, then constant or cosine. */
#ifndef HV_TRAIN_LEARNING_RATE_H
#define HV_TRAIN_LEARNING_RATE_H

#include <stdint.h>

typedef enum hv_decay_kind { HV_DECAY_CONSTANT, HV_DECAY_COSINE } hv_decay_kind;

typedef struct hv_learning_rate {
  double peak;
  int64_t warmup_steps; /* the rate rises linearly and reaches `peak` at the last of them */
  hv_decay_kind decay;
  int64_t total_steps; /* cosine: the rate falls from `peak` after the warm-up to the final one at the last step */
  double final_ratio;  /* of `peak` */
} hv_learning_rate;

/* The rate of optimizer step `step`, counted from 0. */
double hv_learning_rate_at(const hv_learning_rate *schedule, int64_t step);

#endif
