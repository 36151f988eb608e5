/* A whole file at a glance, for `hvla-data inspect`. */
#ifndef HV_DATA_SUMMARY_H
#define HV_DATA_SUMMARY_H

#include "data/survey.h"

typedef struct hv_file_summary {
  hv_survey survey;
  int64_t frames, shortest, longest; /* the last two: frames of an episode */
  int32_t state_dim;                 /* of the layout's default state */
  hv_string_list splits;             /* "train (10 episodes)" */
  hv_string_list instructions;       /* different ones, in order of first use */
  hv_string_list warnings;
} hv_file_summary;

/* The first bad episode (hv_survey_episode with HV_SURVEY_STATE) is the error; what is unusual is a warning. */
HV_NODISCARD hv_status hv_file_summarize(hv_hdf5 *file, hv_file_summary *out);
void hv_file_summary_free(hv_file_summary *summary); /* leaves it empty */

#endif
