/* draw_normal and draw_below: the functions of core/base/random.h, whose bits depend on nothing but their arguments;
 * that header requires that this file is compiled without contraction into fused multiply-adds (-fmad=false). A thread
 * computes its numbers from (seed, step, sample, branch, element); none depends on grid or block. */
#include "core/base/random.h"
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

/* A thread draws four neighbouring elements: the normals of one block of the cipher. */
static __global__ void draw_normal_kernel(const int64_t *seed_step, const int64_t *samples, int branches, int domain,
                                          hv_rows<float> y, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<4>(pieces);
  if (at.col >= cols) return;
  uint64_t key = hv_random_key((uint64_t)seed_step[0], domain, (uint64_t)seed_step[1]);
  float normals[4];
  hv_random_normals(key, (uint64_t)samples[at.row / branches], (uint32_t)(at.row % branches), (uint32_t)(at.col / 4),
                    normals);
  HV_UNROLL
  for (int j = 0; j < 4; j++) {
    if (at.col + j < cols) *y.at(at.row, at.col + j) = normals[j];
  }
}

void hv_cuda_draw_normal(hv_stream *stream, const hv_draw_normal_args *args) {
  if (args->y.dtype != HV_F32) {
    hv_stream_fail(stream, hv_error(HV_ERR_DEVICE, "draw_normal into %s: this device draws fp32 only",
                                    hv_dtype_name(args->y.dtype)));
    return;
  }
  hv_cover c = hv_cover_of(args->y.rows, args->y.cols, 4);
  HV_LAUNCH(draw_normal_kernel, c.grid, c.block, 0, stream, (const int64_t *)args->seed_step.data,
            (const int64_t *)args->samples.data, args->branches, args->domain, hv_rows_of<float>(args->y), c.cols,
            c.pieces);
}

static __global__ void draw_below_kernel(const int64_t *seed_step, const int64_t *samples, int branches, int domain,
                                         uint32_t limit, int32_t *y, int64_t count) {
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  y[i] = (int32_t)hv_random_below((uint64_t)seed_step[0], domain, (uint64_t)seed_step[1],
                                  (uint64_t)samples[i / branches], (uint32_t)(i % branches), 0, limit);
}

void hv_cuda_draw_below(hv_stream *stream, const hv_draw_below_args *args) {
  HV_LAUNCH(draw_below_kernel, dim3(hv_blocks(args->y.cols, 64)), dim3(64), 0, stream,
            (const int64_t *)args->seed_step.data, (const int64_t *)args->samples.data, args->branches, args->domain,
            (uint32_t)args->limit, (int32_t *)args->y.data, args->y.cols);
}
