/* Watching a device for the first result that is not finite. While a watch is open, every operation's results are read
 * back and looked at before the next one is queued: slow, and nothing can be recorded. The layers know nothing of it:
 * the parameter store and the model say where the work stands.
 */
#ifndef HV_TENSOR_NAN_WATCH_H
#define HV_TENSOR_NAN_WATCH_H

#include "core/tensor/device.h"

typedef struct hv_nan_watch hv_nan_watch;

/* One watch a device, which must outlive it. */
HV_NODISCARD hv_status hv_nan_watch_open(hv_device *device, hv_nan_watch **out);
void hv_nan_watch_close(hv_nan_watch *watch); /* NULL is allowed */

/* Where the work stands: the parameter group in use (NULL: none), and "forward" or "backward". Strings are borrowed. */
void hv_nan_watch_layer(const hv_device *device, const char *layer);
void hv_nan_watch_pass(const hv_device *device, const char *pass);

/* HV_ERR_INPUT names the first result that was not finite, each time it is asked; an error of the device that came up
 * meanwhile is returned likewise. HV_OK if nothing was found, or nothing is watched. */
HV_NODISCARD hv_status hv_nan_watch_status(const hv_device *device);

#endif
