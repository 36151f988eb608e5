/* Operands of a matrix product as the processor's matrix unit (AMX) reads them: tiles of 16 lines by 32 steps of the
 * summed dimension, in bf16. A line is a row of the left operand or a column of the right one.
 *
 * What is stored as bf16 is one tile. What is stored as fp32 is split without error into a sum of three, each number
 * into bf16 parts of 8 significant bits: the nearest one, the one nearest to what that leaves, and the rest, which
 * fits. A part below 2^-126 is lost, since the unit takes it for 0: numbers below 2^-109 have fewer bits. */
#ifndef HV_CPU_TILE_PACK_H
#define HV_CPU_TILE_PACK_H

#include "core/tensor/tensor.h"

enum { HV_TILE_LINES = 16, HV_TILE_STEPS = 32, HV_TILE_PARTS = 3 };

/* As the left operand reads it, row i holds line i: steps j and j + 16 side by side for each j < 16. As the right one
 * reads it, row j holds steps j and j + 16 of each line. */
typedef struct hv_tile {
  _Alignas(64) uint16_t values[16][32];
} hv_tile;

typedef struct hv_tile_operand {
  const hv_tensor *tensor; /* F32 or BF16 */
  bool lines_are_columns;  /* of the tensor; else they are its rows */
  bool left;
} hv_tile_operand;

static inline int hv_tile_parts(const hv_tensor *t) {
  return t->dtype == HV_BF16 ? 1 : HV_TILE_PARTS;
}

/* Packs steps [step, step + 32) of lines [line, line + 16), zeros beyond the operand, into as many tiles as it has
 * parts, the largest first. */
void hv_tile_pack(const hv_tile_operand *operand, int64_t line, int64_t step, hv_tile *to);

#endif
