/* Demonstrations that can be opened, but of which one frame cannot be read, so that a run fails when it needs that
 * frame. */
#ifndef HV_TESTS_TRAIN_DAMAGED_DEMONSTRATIONS_H
#define HV_TESTS_TRAIN_DAMAGED_DEMONSTRATIONS_H

#include <stdint.h>

/* The frame that a run of the tiny configuration takes as sample number `sample` of its first epoch. */
int64_t frame_of_sample(int64_t sample);

/* Writes the shipped demonstrations to `path`, with one frame of the training split that cannot be read. Returns the
 * name of its episode, such as "/data/demo_3", valid until the next call. */
const char *write_damaged_demonstrations(const char *path, int64_t frame);

#endif
