/* Reads parts of mapped files into memory before they are used, in the order of use and from a thread of its own:
 * reading then overlaps processing, and goes in large requests instead of page by page. */
#ifndef HV_IO_READ_AHEAD_H
#define HV_IO_READ_AHEAD_H

#include <stddef.h>

#include "core/base/status.h"

/* Inside a mapping (hv_map_file) that stays until the close. */
typedef struct hv_mapped_range {
  const void *data;
  size_t size;
} hv_mapped_range;

typedef struct hv_read_ahead hv_read_ahead;

/* Begins; `ranges` must outlive it. */
HV_NODISCARD hv_status hv_read_ahead_open(const hv_mapped_range *ranges, size_t count, hv_read_ahead **out);
/* Returns when ranges 0 … index are in memory, or could not be read: then whoever touches them meets the error. */
void hv_read_ahead_wait(hv_read_ahead *ahead, size_t index);
void hv_read_ahead_close(hv_read_ahead *ahead); /* at any time; NULL is allowed */

#endif
