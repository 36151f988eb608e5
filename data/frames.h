/* The frames of one camera in one episode, however a file stores them: a layout returns this to the loader. A layout's
 * own struct for it begins with this one. */
#ifndef HV_DATA_FRAMES_H
#define HV_DATA_FRAMES_H

#include <stdint.h>

#include "core/base/status.h"

typedef struct hv_frames {
  int64_t count;
  int32_t width, height;
  /* Frame `index` as RGB, [height, width, 3]. Safe from several threads at once. The error names file, object and
   * frame. */
  hv_status (*read)(struct hv_frames *frames, int64_t index, uint8_t *rgb);
  void (*close)(struct hv_frames *frames);
} hv_frames;

static inline void hv_frames_close(hv_frames *frames) {
  if (frames) frames->close(frames);
}

#endif
