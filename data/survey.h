/* A file's episodes as one looks at all of them: what hvla-data's inspect and validate have in common. */
#ifndef HV_DATA_SURVEY_H
#define HV_DATA_SURVEY_H

#include "data/layout.h"

typedef struct hv_survey {
  hv_hdf5 *file; /* not owned */
  const hv_layout *layout;
  hv_string_list episodes; /* the names of all, in natural order */
  hv_episode_facts *each;  /* theirs; empty of a bad one */
  /* What sound episodes have between them: the first one's frames and dimensions, every camera and signal that any has;
   * no instruction. All is 0 without a sound one. */
  hv_episode_facts facts;
  hv_string_list state; /* names in the layout's default state of all of them */
} hv_survey;

/* A bad episode is left out, a file that cannot be read at all is an error. *out needs no freeing then. */
HV_NODISCARD hv_status hv_survey_open(hv_hdf5 *file, hv_survey *out);
void hv_survey_close(hv_survey *survey); /* leaves it empty */

/* The facts of one of the episodes, which is sound but for its pixels and may lack cameras: the actions and the default
 * state are as wide as the survey's, its numbers, of the default state alone or of all signals, are finite. Otherwise
 * HV_ERR_INPUT says what is wrong. They are the survey's. */
typedef enum hv_survey_numbers { HV_SURVEY_STATE, HV_SURVEY_ALL_SIGNALS } hv_survey_numbers;
HV_NODISCARD hv_status hv_survey_episode(hv_survey *survey, size_t episode, hv_survey_numbers numbers,
                                         const hv_episode_facts **out);

#endif
