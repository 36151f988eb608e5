/* Ctrl-C, SIGTERM and SIGHUP while something is written that must not stay in part: held back, they are an error for
 * who writes, and end the process where who made the parts has removed them. One place in a process holds them at a
 * time. A signal that is ignored (nohup), or that the calling thread blocks because another waits for it, as in a
 * training run, stays what it is. */
#ifndef HV_BASE_INTERRUPTION_H
#define HV_BASE_INTERRUPTION_H

#include "core/base/status.h"

void hv_interruption_hold(void);

/* An error once one of them has come. */
HV_NODISCARD hv_status hv_interruption_status(void);

/* Ends the process as the signal would have done, if one has come. */
void hv_interruption_release(void);

#endif
