/* Decides whether a step's loss or gradient norm is an outlier, so that its update is skipped. A pure function of the
 * losses and norms so far, which are the same on all ranks. */
#ifndef HV_TRAIN_SPIKE_RULE_H
#define HV_TRAIN_SPIKE_RULE_H

#include <stdbool.h>
#include <stdint.h>

/* Why a step changed nothing. */
typedef enum hv_skip_reason {
  HV_SKIP_NONE,
  HV_SKIP_NOT_FINITE, /* a gradient */
  HV_SKIP_LOSS,       /* a spike of the loss */
  HV_SKIP_GRAD_NORM,  /* a spike of the gradients' norm */
} hv_skip_reason;

/* "", "not_finite", "loss_spike", "grad_norm_spike". */
const char *hv_skip_reason_name(hv_skip_reason reason);

typedef struct hv_spike_settings {
  double factor;  /* a spike is more than this times the running mean; 0: nothing is a spike */
  int64_t window; /* steps that the running means go over, and before which nothing is a spike */
} hv_spike_settings;

/* Exponential means over the steps that were not skipped. */
typedef struct hv_spike_means {
  double loss, grad_norm;
  int64_t steps;
} hv_spike_means;

hv_skip_reason hv_spike_judge(const hv_spike_settings *settings, const hv_spike_means *means, double loss,
                              double grad_norm);
void hv_spike_add(const hv_spike_settings *settings, hv_spike_means *means, double loss, double grad_norm);

#endif
