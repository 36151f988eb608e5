/* A TensorBoard event file: scalars by tag and step, for `tensorboard --logdir RUN`.
 *
 * A file is a run of records, each its length as 8 bytes (little-endian), the masked CRC-32C of those, an Event message
 * (train/watch/event.proto) and its masked CRC-32C: the framing of TFRecord. Every session of a run begins its own
 * file; the first record after the version says from which step on records of earlier files are void.
 */
#ifndef HV_TRAIN_WATCH_EVENT_FILE_H
#define HV_TRAIN_WATCH_EVENT_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

typedef struct hv_event_file hv_event_file;

/* Begins RUN/tensorboard/events.out.tfevents.<seconds>.<host>.<nanoseconds> for the steps after `step`. */
HV_NODISCARD hv_status hv_event_file_open(const char *run, int64_t step, hv_event_file **out);
void hv_event_file_close(hv_event_file *file); /* NULL is allowed */

typedef struct hv_scalar {
  const char *tag; /* "train/loss" */
  float value;
} hv_scalar;

/* One event, for readers to see when this returns. `time`: seconds since 1970. */
HV_NODISCARD hv_status hv_event_file_write(hv_event_file *file, int64_t step, double time, const hv_scalar *scalars,
                                           size_t count);

#endif
