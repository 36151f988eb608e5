/* The folder of the public HybridVLA code: OUT/config.json and the same in config.yaml, OUT/dataset_statistics.json,
 * OUT/checkpoints/NAME.pt, and the card. Only tensors, shapes and those files are that code's own format; no part of it
 * is run or needed. */
#ifndef HV_INFER_PUBLIC_CHECKPOINT_H
#define HV_INFER_PUBLIC_CHECKPOINT_H

#include "infer/export.h"
#include "infer/torch_file.h"

typedef struct hv_public_checkpoint hv_public_checkpoint;

/* Arranges the source's tensors (dtype `to` as in export.h) by the public code's modules. The source must outlive it. A
 * tensor that belongs to no module is an error. */
HV_NODISCARD hv_status hv_public_checkpoint_open(const hv_export_source *source, const hv_dtype *to,
                                                 hv_public_checkpoint **out);
void hv_public_checkpoint_close(hv_public_checkpoint *checkpoint); /* NULL is allowed */

/* What keeps the public code from loading this model or from predicting the same, as a Markdown list with one sentence
 * a line; "" if nothing does.
 */
const char *hv_public_checkpoint_obstacles(const hv_public_checkpoint *checkpoint);

/* The folder appears complete or not at all. */
HV_NODISCARD hv_status hv_public_checkpoint_write(const hv_public_checkpoint *checkpoint, const char *out,
                                                  hv_torch_progress *progress, void *context);

/* Reads the .pt file of a written folder back and compares it with the source to the bit; see hv_torch_file_compare. */
HV_NODISCARD hv_status hv_public_checkpoint_verify(const hv_public_checkpoint *checkpoint, const char *out,
                                                   hv_torch_progress *progress, void *context);

#endif
