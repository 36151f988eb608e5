/* What a checkpoint holds of a model that is trained: of every parameter group its values, and where it is trained
 * moment1, moment2, their scales (8-bit moments), (BF16) remainder and, if one is kept, the moving average, each a run
 * of elements under the name <group>.<what>.
 *
 * Whatever a rank keeps in memory, the file of each of R ranks holds the same part of every run: elements
 * [total · r / R, total · (r + 1) / R).
 */
#ifndef HV_TRAIN_CHECKPOINT_CHECKPOINT_PARTS_H
#define HV_TRAIN_CHECKPOINT_CHECKPOINT_PARTS_H

#include "train/ema.h"
#include "train/optimizer.h"

/* Elements [first, end). */
typedef struct hv_element_range {
  int64_t first, end;
} hv_element_range;

static inline hv_element_range hv_checkpoint_file_range(int64_t total, int32_t rank, int32_t ranks) {
  return (hv_element_range){.first = total * rank / ranks, .end = total * (rank + 1) / ranks};
}

enum { HV_PART_NAME = 256 };

typedef struct hv_checkpoint_part {
  char name[HV_PART_NAME];
  hv_tensor tensor;     /* what lies on this rank's device, one row */
  int64_t first, total; /* it begins at element `first` of `total` */
} hv_checkpoint_part;

typedef struct hv_checkpoint_parts {
  hv_checkpoint_part *items; /* owned */
  int count;
} hv_checkpoint_parts;

/* "<group>.values": the run of a group's values; "<group>.average": of their averages, F32. */
void hv_checkpoint_values_name(const hv_group *group, char name[HV_PART_NAME]);
void hv_checkpoint_average_name(const hv_group *group, char name[HV_PART_NAME]);

/* Everything, wider dtypes first. */
HV_NODISCARD hv_status hv_checkpoint_parts_list(const hv_params *params, const hv_optimizer *optimizer,
                                                const hv_ema *ema, hv_checkpoint_parts *out);
void hv_checkpoint_parts_free(hv_checkpoint_parts *parts); /* leaves it empty */

#endif
