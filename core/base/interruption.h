/* Holds back Ctrl-C, SIGTERM and SIGHUP while something is written that must not stay half-written: between hold and
 * release a signal only makes hv_interruption_status an error. The writer then removes what it wrote, and release lets
 * the signal end the process. Not nested, one holder in a process at a time. A signal that is ignored (nohup), or that
 * the calling thread blocks because another thread waits for it, as in a training run, is not held. */
#ifndef HV_BASE_INTERRUPTION_H
#define HV_BASE_INTERRUPTION_H

#include "core/base/status.h"

void hv_interruption_hold(void);

/* HV_ERR_IO once one of the signals has come. */
HV_NODISCARD hv_status hv_interruption_status(void);

/* Stops holding; a signal that has come now ends the process as it would have done. */
void hv_interruption_release(void);

#endif
