/* An overview of all episodes of a file, shared by `hvla-data inspect` and `hvla-data validate`. */
#ifndef HV_DATA_SURVEY_H
#define HV_DATA_SURVEY_H

#include "data/layout.h"

typedef struct hv_survey {
  hv_hdf5 *file; /* not owned */
  const hv_layout *layout;
  hv_string_list episodes; /* the names of all, in natural order */
  hv_episode_facts *each;  /* their facts; empty for a bad episode */
  /* The sound episodes together: frames and dimensions of the first one, every camera and signal that any of them has;
   * no instruction. All 0 if there is no sound episode. */
  hv_episode_facts facts;
  hv_string_list state; /* names in the layout's default state of all of them */
} hv_survey;

/* Bad episodes are left out; a file that cannot be read at all is an error, after which *out needs no closing. */
HV_NODISCARD hv_status hv_survey_open(hv_hdf5 *file, hv_survey *out);
void hv_survey_close(hv_survey *survey); /* leaves it empty */

/* Checks one episode, except its pixels, and returns its facts, which belong to the survey. Actions and default state
 * must be as wide as the survey's, and the values of the actions, and of the default state or of all signals, must be
 * finite; else HV_ERR_INPUT says what is wrong. It may lack cameras. */
typedef enum hv_survey_numbers { HV_SURVEY_STATE, HV_SURVEY_ALL_SIGNALS } hv_survey_numbers;
HV_NODISCARD hv_status hv_survey_episode(hv_survey *survey, size_t episode, hv_survey_numbers numbers,
                                         const hv_episode_facts **out);

#endif
