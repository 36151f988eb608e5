/* dataset_statistics.json: what scales a data set's actions and robot states.
 *
 * A file holds one entry a data set, under its key (the "unnorm key").
 */
#ifndef HV_IO_DATASET_STATISTICS_H
#define HV_IO_DATASET_STATISTICS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"

/* Statistics of one vector-valued quantity, each array [dims]; dims == 0: there is none. `mask` false marks a gripper
 * dimension (0 closed, 1 open), which is not scaled. */
typedef struct hv_value_statistics {
  int32_t dims;
  double *mean, *std, *min, *max, *q01, *q99; /* owned; one block that begins at `mean` */
  bool *mask;                                 /* owned */
} hv_value_statistics;

/* For data whose gripper values were converted to 1 (open) and 0 (closed): the robot's own values. */
typedef struct hv_robot_gripper {
  bool *dims; /* [action.dims]: which dimensions were converted; owned; NULL: none */
  double open, closed;
} hv_robot_gripper;

typedef struct hv_dataset_statistics {
  char *key; /* owned */
  hv_value_statistics action, proprio;
  hv_robot_gripper gripper;
  int64_t num_transitions, num_trajectories;
  json_t *document; /* owned: the entry as it was read, whose other members are kept; NULL: none */
} hv_dataset_statistics;

/* Room for `dims` dimensions: zeros, mask true. */
HV_NODISCARD hv_status hv_value_statistics_allocate(int32_t dims, hv_value_statistics *out);
void hv_value_statistics_free(hv_value_statistics *values); /* leaves it empty */

/* Reads one key's entry. A NULL key takes the only entry; if there are several, or none with that key, the error lists
 * the keys. An absent mask means all true, absent counts mean 0. */
HV_NODISCARD hv_status hv_dataset_statistics_load(const char *path, const char *key, hv_dataset_statistics *out);
HV_NODISCARD hv_status hv_dataset_statistics_from_json(const json_t *document, const char *where, const char *key,
                                                       hv_dataset_statistics *out);
void hv_dataset_statistics_free(hv_dataset_statistics *statistics); /* leaves it empty */

/* {key: entry}. *out is owned by the caller. */
HV_NODISCARD hv_status hv_dataset_statistics_to_json(const hv_dataset_statistics *statistics, json_t **out);

/* Whether two data sets have the same numbers, whatever their keys. */
bool hv_dataset_statistics_equal(const hv_dataset_statistics *a, const hv_dataset_statistics *b);

/* Writes the entry into the file, atomically; other keys of an existing file stay. */
HV_NODISCARD hv_status hv_dataset_statistics_save(const char *path, const hv_dataset_statistics *statistics);

/* The scaled value of dimension `dim`: 2 (x − q01) / (q99 − q01 + 1e-8) − 1; x itself where the mask is false; 0 where
 * min == max whatever the mask says. Not clipped: for x = 0 it is the neutral action, with which data/loader.c fills a
 * chunk past the end of an episode. */
double hv_normalize_value(const hv_value_statistics *statistics, int32_t dim, double x);

/* One vector [dims] of the robot's units scaled and clipped to [-1, 1] (a masked-out dimension is passed through). */
void hv_normalize(const hv_value_statistics *statistics, const double *values, float *out);

/* Back to the robot's units: clipped to [-1, 1], 0.5 (x + 1)(q99 − q01) + q01; a gripper dimension snaps to 1 where it
 * is >= 0.5, else 0. */
void hv_unnormalize(const hv_value_statistics *statistics, const float *values, double *out);

/* Converts the grippers of one un-normalised action [action.dims] back to the robot's own values, in place: 1 becomes
 * `open`, 0 `closed`. */
void hv_restore_gripper(const hv_dataset_statistics *statistics, double *action);

#endif
