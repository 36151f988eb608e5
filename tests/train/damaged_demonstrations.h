/* Demonstrations that open, and end a run when it comes to a certain frame. */
#ifndef HV_TESTS_TRAIN_DAMAGED_DEMONSTRATIONS_H
#define HV_TESTS_TRAIN_DAMAGED_DEMONSTRATIONS_H

#include <stdint.h>

/* The frame that a run of the tiny configuration takes as sample number `sample`, of the first epoch. */
int64_t frame_of_sample(int64_t sample);

/* Writes `path`: the shipped demonstrations, but for the picture of one frame of the training split, which cannot be
 * read. Returns its episode, "/data/demo_3"; valid until the next call. */
const char *write_damaged_demonstrations(const char *path, int64_t frame);

#endif
