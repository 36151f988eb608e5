/* Demonstrations that open and end a run when it comes to a certain sample. */
#ifndef HV_TESTS_TRAIN_DAMAGED_DEMONSTRATIONS_H
#define HV_TESTS_TRAIN_DAMAGED_DEMONSTRATIONS_H

#include <stdint.h>

/* Writes `path`: the shipped demonstrations, but for the picture of the tiny configuration's run that is its sample
 * number `sample` of the first epoch, which cannot be read. Returns its episode, "/data/demo_3"; valid until the next
 * call. */
const char *write_damaged_demonstrations(const char *path, int64_t sample);

#endif
