/* The peak rate to which a training step is compared: how fast this device multiplies matrices at best. */
#ifndef HV_TRAIN_PLAN_BEST_RATE_H
#define HV_TRAIN_PLAN_BEST_RATE_H

#include "train/trainer.h"

/* Operations a second of matrix products in the type of the parameters (hv_measure_products): a cube, and the two
 * largest products of the steps that a trainer with these options runs. `patience`: seconds for one product at most.
 * Called before the trainer is opened: it needs memory, and leaves no trace in the device's account of it. */
HV_NODISCARD hv_status hv_best_rate_measure(hv_device *device, const hv_trainer_options *options, double patience,
                                            double *rate);

#endif
