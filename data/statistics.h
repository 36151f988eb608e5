/* Statistics of actions and state over all frames, as numpy computes them on f32: mean, std over n, min, max, and the
 * 1 % and 99 % quantiles, linear between order statistics (numpy's default method). */
#ifndef HV_DATA_STATISTICS_H
#define HV_DATA_STATISTICS_H

#include "core/io/dataset_statistics.h"
#include "data/demonstrations.h"

/* `gripper` [num_gripper] lists the action dimensions that are passed through unscaled (mask false); with num_gripper <
 * 0 the default rule: index 6 of the file's actions, and 13 for two arms, where the data hold 0 and 1 and nothing else.
 * The state's mask always follows that rule. `key` is copied into the result. */
HV_NODISCARD hv_status hv_statistics_compute(const hv_demonstrations *demonstrations, const char *key,
                                             const int32_t *gripper, int32_t num_gripper, hv_dataset_statistics *out);

#endif
