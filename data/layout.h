/* The interface between file formats and everything else: a layout reads the episodes of one kind of HDF5 file. A new
 * format is one file in data/layouts/ that defines a `const hv_layout`, and a line in layout.c that lists it.
 *
 * Functions of a layout validate what they hand out and name file, object, found and expected in their errors. For one
 * file they are called by one thread at a time; only frames are read by several threads.
 */
#ifndef HV_DATA_LAYOUT_H
#define HV_DATA_LAYOUT_H

#include "core/hybridvla/config.h"
#include "data/hdf5_file.h"

typedef enum hv_encoding { HV_ENCODING_RAW, HV_ENCODING_JPEG, HV_ENCODING_PNG } hv_encoding;
const char *hv_encoding_name(hv_encoding encoding); /* "raw", "jpeg", "png" */

typedef struct hv_camera {
  char name[HV_NAME_SIZE]; /* as the file's data set is called */
  int32_t width, height;
  hv_encoding encoding;
  int64_t chunk_frames; /* frames in one chunk, which are read together; 0: contiguous, each can be read alone */
} hv_camera;

/* A numeric observation of T rows: a candidate for the state. */
typedef struct hv_signal {
  char name[HV_NAME_SIZE];
  int32_t width;
} hv_signal;

/* The facts of one episode. */
typedef struct hv_episode_facts {
  int64_t frames; /* T >= 1 */
  int32_t action_dim;
  hv_camera *cameras; /* by name */
  size_t num_cameras;
  hv_signal *signals; /* by name */
  size_t num_signals;
  char *instruction;       /* from the file; NULL: it has none */
  hv_string_list warnings; /* oddities that are no reason to refuse the episode */
} hv_episode_facts;
void hv_episode_facts_free(hv_episode_facts *facts);                                 /* leaves it empty */
const hv_camera *hv_episode_camera(const hv_episode_facts *facts, const char *name); /* NULL: there is none */
const hv_signal *hv_episode_signal(const hv_episode_facts *facts, const char *name); /* likewise */

typedef struct hv_layout {
  const char *name;
  const char *looks_like; /* for the error that lists the known layouts: "/data/demo_<i>/actions and obs/<key>" */

  /* Whether the file has this layout. Errors inside such a file are reported by the other functions. */
  hv_status (*probe)(hv_hdf5 *file, bool *mine);
  /* The file's episodes in natural order (demo_2 before demo_10), or those of one split in the same order. A file
   * without episodes, or a split that is missing, is empty or names an absent episode, is an error that lists what
   * there is. */
  hv_status (*list_episodes)(hv_hdf5 *file, const char *split, hv_string_list *out);
  hv_status (*list_splits)(hv_hdf5 *file, hv_string_list *out); /* appended; a file may have none */
  /* Checks every array of the episode against its length, too. */
  hv_status (*describe)(hv_hdf5 *file, const char *episode, hv_episode_facts *out);
  /* f32 [T, action_dim], in the file's own units; may hold NaN. */
  hv_status (*read_actions)(hv_hdf5 *file, const char *episode, const hv_episode_facts *facts, float *out);
  /* f32 [T, width] of one signal. A name that the episode lacks: an error that lists those present. */
  hv_status (*read_signal)(hv_hdf5 *file, const char *episode, const hv_episode_facts *facts, const char *name,
                           float *out);
  /* A camera that the episode lacks: an error that lists those present. */
  hv_status (*open_frames)(hv_hdf5 *file, const char *episode, const hv_episode_facts *facts, const char *camera,
                           hv_frames **out);
  /* Appends the signals that make up the state by default; there may be none. */
  hv_status (*default_state)(const hv_episode_facts *facts, hv_string_list *out);
  /* Appends warnings that belong to no episode (a wrong total, broken JSON). */
  hv_status (*check_file)(hv_hdf5 *file, int64_t frames, hv_string_list *warnings);
} hv_layout;

/* read_actions and read_signal with every value checked: one that is not finite is HV_ERR_INPUT with episode, step and
 * dimension. */
HV_NODISCARD hv_status hv_layout_read_actions(const hv_layout *layout, hv_hdf5 *file, const char *episode,
                                              const hv_episode_facts *facts, float *out);
HV_NODISCARD hv_status hv_layout_read_signal(const hv_layout *layout, hv_hdf5 *file, const char *episode,
                                             const hv_episode_facts *facts, const char *name, float *out);

/* Checks the values of actions and of `signals` (NULL: all signals) as above. */
HV_NODISCARD hv_status hv_layout_check_numbers(const hv_layout *layout, hv_hdf5 *file, const char *episode,
                                               const hv_episode_facts *facts, const hv_string_list *signals);

/* The layout that takes the file; none: HV_ERR_INPUT lists the known ones and what the file has. */
HV_NODISCARD hv_status hv_layout_find(hv_hdf5 *file, const hv_layout **out);

extern const hv_layout hv_layout_robomimic;

#endif
