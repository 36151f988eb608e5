/* Demonstrations for training: the episodes of one split of one or more files, with actions and state in memory, and
 * frames read on demand.
 *
 * Opening checks everything except the pixels; the first problem is returned as HV_ERR_INPUT with file, object, what
 * was found and what was expected. Read-only afterwards, from any thread.
 */
#ifndef HV_DATA_DEMONSTRATIONS_H
#define HV_DATA_DEMONSTRATIONS_H

#include "data/layout.h"

/* What is wanted. Strings and arrays are the caller's and only read while opening. */
typedef struct hv_demonstrations_options {
  const char *const *files;
  size_t num_files;
  const char *split;          /* a filter of the file (robomimic: a name under /mask); NULL: every episode */
  const char *const *cameras; /* as the file calls them, in the model's order */
  size_t num_cameras;
  const char *const *state_keys; /* concatenated in this order; */
  size_t num_state_keys;         /* 0 with default_state false: no state */
  bool default_state;            /* take the layout's own choice instead of state_keys */
  const char *instruction;       /* NULL: the file's own */
  bool override_instruction;     /* `instruction` also where the file has one */
  bool need_instruction;         /* an episode without any, or with a blank one, is an error */
  const int32_t *action_columns; /* which of the file's action dimensions, in this order; */
  int32_t num_action_columns;    /* 0: all of them */
  int32_t action_dim, state_dim; /* the model's widths, with which the data must agree; −1: whatever the file has */
} hv_demonstrations_options;

typedef struct hv_episode {
  const char *file;      /* its path as given */
  char *name;            /* "demo_3"; owned */
  int64_t first, frames; /* global index of its first frame; T */
  int32_t instruction;   /* index of hv_demonstrations_instruction; −1: none */
  hv_frames **cameras;   /* [num_cameras] */
} hv_episode;

typedef struct hv_demonstrations hv_demonstrations;

HV_NODISCARD hv_status hv_demonstrations_open(const hv_demonstrations_options *options, hv_demonstrations **out);
void hv_demonstrations_close(hv_demonstrations *demonstrations); /* NULL is allowed; close its loaders first */

int64_t hv_demonstrations_frames(const hv_demonstrations *demonstrations); /* over all episodes, >= 1 */
int64_t hv_demonstrations_episodes(const hv_demonstrations *demonstrations);
const hv_episode *hv_demonstrations_episode(const hv_demonstrations *demonstrations, int64_t index);
/* The episode that holds a global frame. */
const hv_episode *hv_demonstrations_episode_of(const hv_demonstrations *demonstrations, int64_t frame);

int32_t hv_demonstrations_cameras(const hv_demonstrations *demonstrations);
int32_t hv_demonstrations_action_dim(const hv_demonstrations *demonstrations);
int32_t hv_demonstrations_state_dim(const hv_demonstrations *demonstrations); /* 0: no state */
/* The column of the file's actions that is dimension `dim`. */
int32_t hv_demonstrations_action_column(const hv_demonstrations *demonstrations, int32_t dim);
const float *
hv_demonstrations_actions(const hv_demonstrations *demonstrations);            /* [frames, action_dim], file's units */
const float *hv_demonstrations_state(const hv_demonstrations *demonstrations); /* [frames, state_dim]; NULL at 0 */

/* The different instructions, in order of first use: what a caller tokenizes once. */
int32_t hv_demonstrations_instructions(const hv_demonstrations *demonstrations);
const char *hv_demonstrations_instruction(const hv_demonstrations *demonstrations, int32_t index);

#endif
