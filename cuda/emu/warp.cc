/* Tensor-core operations of a warp, with fragments laid out as on the hardware (PTX ISA, "Warp-level matrix
 * instructions"). */
#include "cuda/device.h"

static float half_of(uint32_t pair, int half) {
  return __uint_as_float(half ? pair & 0xffff0000u : pair << 16);
}

/* Gathers all lanes' fragments into whole matrices, multiplies, and adds the result to the lanes' accumulators. */
void hv_emu_combine_mma(void *const *operands, uint32_t) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < HV_EMU_WARP; lane++) {
    const hv_emu_mma *own = (const hv_emu_mma *)operands[lane];
    int group = lane / 4, pair = lane % 4 * 2;
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < 4; i++) a[group + i % 2 * 8][pair + half + i / 2 * 8] = half_of(own->a[i], half);
      for (int i = 0; i < 2; i++) b[pair + half + i * 8][group] = half_of(own->b[i], half);
    }
  }
  float product[16][8] = {};
  for (int i = 0; i < 16; i++) {
    for (int k = 0; k < 16; k++) {
      for (int j = 0; j < 8; j++) product[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int lane = 0; lane < HV_EMU_WARP; lane++) {
    float *d = ((const hv_emu_mma *)operands[lane])->d;
    for (int i = 0; i < 4; i++) d[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

static void load_matrices(void *const *operands, bool transposed) {
  for (int lane = 0; lane < HV_EMU_WARP; lane++) {
    const hv_emu_ldmatrix *own = (const hv_emu_ldmatrix *)operands[lane];
    int row = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 4; i++) {
      uint32_t halves[2];
      for (int half = 0; half < 2; half++) {
        int from_row = transposed ? pair + half : row, from_col = transposed ? row : pair + half;
        halves[half] = ((const hv_emu_ldmatrix *)operands[i * 8 + from_row])->row[from_col];
      }
      own->r[i] = halves[0] | halves[1] << 16;
    }
  }
}

void hv_emu_combine_ldmatrix(void *const *operands, uint32_t) {
  load_matrices(operands, false);
}
void hv_emu_combine_ldmatrix_trans(void *const *operands, uint32_t) {
  load_matrices(operands, true);
}
