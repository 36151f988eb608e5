/* The tensors of a checkpoint: of every parameter group the values, and of a trainable one also moment1, moment2, their
 * scales (8-bit moments), the remainder (BF16) and the moving average (if there is one), each as one row named
 * <group>.<what>.
 *
 * However the state is sharded in memory, the file of rank r of R holds elements [total · r / R, total · (r + 1) / R)
 * of every row.
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
  hv_tensor tensor;     /* this rank's part, one row on its device */
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
