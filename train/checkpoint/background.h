/* Runs one piece of work at a time in the background of the training loop. Used by one thread. */
#ifndef HV_TRAIN_CHECKPOINT_BACKGROUND_H
#define HV_TRAIN_CHECKPOINT_BACKGROUND_H

#include <stdatomic.h>

#include "core/base/status.h"

/* `stop` turns true when nobody wants the outcome any more; long work looks at it now and then. */
typedef hv_status hv_background_work(void *context, const atomic_bool *stop);

typedef struct hv_background hv_background;

/* `thread`: work runs in a thread of its own; else hv_background_start does the work itself. */
HV_NODISCARD hv_status hv_background_open(bool thread, hv_background **out);

/* Stops what is under way, and drops its outcome. NULL is allowed. */
void hv_background_close(hv_background *background);

/* Starts work; the work before must have been waited for. */
void hv_background_start(hv_background *background, hv_background_work *work, void *context);

/* Whether hv_background_wait would return at once. */
bool hv_background_done(hv_background *background);

/* Waits for the work and returns its outcome once; HV_OK if nothing was started since. */
HV_NODISCARD hv_status hv_background_wait(hv_background *background);

#endif
