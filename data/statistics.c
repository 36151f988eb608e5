#include "data/statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
  float left = *(const float *)a, right = *(const float *)b;
  return (left > right) - (left < right);
}

/* The q-quantile of n sorted values, linear between the two order statistics around q (n − 1). */
static double quantile(const float *sorted, int64_t n, double q) {
  double position = q * (double)(n - 1);
  int64_t below = (int64_t)floor(position);
  int64_t above = below + 1 < n ? below + 1 : below;
  double fraction = position - (double)below;
  return sorted[below] + fraction * ((double)sorted[above] - sorted[below]);
}

/* Results are rounded to f32, the type in which numpy returns them. */
static void summarize(float *column, int64_t n, hv_value_statistics *out, int32_t dim) {
  qsort(column, (size_t)n, sizeof *column, by_value);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; i++) sum += column[i];
  double mean = sum / (double)n;
  for (int64_t i = 0; i < n; i++) squares += (column[i] - mean) * (column[i] - mean);
  out->mean[dim] = (float)mean;
  out->std[dim] = (float)sqrt(squares / (double)n);
  out->min[dim] = column[0];
  out->max[dim] = column[n - 1];
  out->q01[dim] = (float)quantile(column, n, 0.01);
  out->q99[dim] = (float)quantile(column, n, 0.99);
}

/* Whether both 0 and 1 occur, and nothing else. A gripper that is always open does not count: a constant dimension is
 * normalised to 0, from which it gets its value back only if it is scaled. */
static bool is_binary(const float *sorted, int64_t n) {
  if (sorted[0] != 0.0f || sorted[n - 1] != 1.0f) return false;
  for (int64_t i = 0; i < n; i++) {
    if (sorted[i] != 0.0f && sorted[i] != 1.0f) return false;
  }
  return true;
}

/* Statistics of values [n, dims]. The mask follows the default rule, for which the index of a dimension counts: with
 * `actions` its column in the file, else its own. */
static hv_status compute(const float *values, int64_t n, int32_t dims, const hv_demonstrations *actions,
                         hv_value_statistics *out) {
  HV_TRY(hv_value_statistics_allocate(dims, out));
  float *column = malloc((size_t)n * sizeof *column);
  if (!column) return hv_error_memory("a column of statistics");
  for (int32_t dim = 0; dim < dims; dim++) {
    for (int64_t i = 0; i < n; i++) column[i] = values[i * dims + dim];
    summarize(column, n, out, dim);
    int32_t place = actions ? hv_demonstrations_action_column(actions, dim) : dim;
    bool may_be_gripper = place == 6 || place == 13;
    out->mask[dim] = !(may_be_gripper && is_binary(column, n));
  }
  free(column);
  return HV_OK;
}

static hv_status set_grippers(hv_value_statistics *action, const int32_t *gripper, int32_t num_gripper) {
  for (int32_t dim = 0; dim < action->dims; dim++) action->mask[dim] = true;
  for (int32_t i = 0; i < num_gripper; i++) {
    if (gripper[i] < 0 || gripper[i] >= action->dims) {
      return hv_error(HV_ERR_INPUT, "gripper dimension %d does not exist: actions have dimensions 0 to %d", gripper[i],
                      action->dims - 1);
    }
    action->mask[gripper[i]] = false;
  }
  return HV_OK;
}

hv_status hv_statistics_compute(const hv_demonstrations *demonstrations, const char *key, const int32_t *gripper,
                                int32_t num_gripper, hv_dataset_statistics *out) {
  *out = (hv_dataset_statistics){0};
  int64_t frames = hv_demonstrations_frames(demonstrations);
  int32_t state_dim = hv_demonstrations_state_dim(demonstrations);
  hv_status status = HV_OK;
  if (!*key) return hv_error(HV_ERR_INPUT, "the key of the statistics is empty; a name is expected");
  out->key = strdup(key);
  if (!out->key) {
    status = hv_error_memory("a key");
    goto done;
  }
  out->num_transitions = frames;
  out->num_trajectories = hv_demonstrations_episodes(demonstrations);
  HV_CHECK(compute(hv_demonstrations_actions(demonstrations), frames, hv_demonstrations_action_dim(demonstrations),
                   demonstrations, &out->action));
  if (num_gripper >= 0) HV_CHECK(set_grippers(&out->action, gripper, num_gripper));
  if (state_dim > 0) HV_CHECK(compute(hv_demonstrations_state(demonstrations), frames, state_dim, NULL, &out->proprio));
done:
  if (status) hv_dataset_statistics_free(out);
  return status;
}
