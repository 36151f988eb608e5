/* A whole file at a glance, for `hvla-data inspect`. */
#ifndef HV_DATA_SUMMARY_H
#define HV_DATA_SUMMARY_H

#include "data/layout.h"

typedef struct hv_file_summary {
  const char *layout;
  int64_t episodes, frames, shortest, longest; /* the last two: frames of an episode */
  int32_t action_dim, state_dim;               /* of the layout's default state */
  hv_camera *cameras;                          /* that any episode has */
  size_t num_cameras;
  hv_signal *signals; /* likewise */
  size_t num_signals;
  hv_string_list state;        /* names in the default state */
  hv_string_list splits;       /* "train (10 episodes)" */
  hv_string_list instructions; /* different ones, in order of first use */
  hv_string_list warnings;
} hv_file_summary;

/* Checks all but the pixels; the first thing that is wrong is the error. */
HV_NODISCARD hv_status hv_file_summarize(hv_hdf5 *file, hv_file_summary *out);
void hv_file_summary_free(hv_file_summary *summary); /* leaves it empty */

#endif
