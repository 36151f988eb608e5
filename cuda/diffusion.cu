/* The diffusion process: sinusoid, q_sample, sampler_step, diffusion_loss. The arrays are small: one thread per
 * element. */
#include "cuda/elementwise.h"
#include "cuda/kernels.h"

template <typename T>
static __global__ void sinusoid_kernel(const int32_t *timesteps, hv_rows<T> y, int64_t half, unsigned pieces) {
  hv_place at = hv_place_here<1>(pieces);
  if (at.col >= half) return;
  /* In double, as on the CPU device, so that a timestep has the same embedding on both. */
  double angle = timesteps[at.row] * exp(-9.21034037197618273607 * (double)at.col / (double)half);
  *y.at(at.row, at.col) = hv_from_float<T>((float)cos(angle));
  *y.at(at.row, half + at.col) = hv_from_float<T>((float)sin(angle));
}

void hv_cuda_sinusoid(hv_stream *stream, const hv_sinusoid_args *args) {
  hv_with_type(stream, args->y.dtype, [&](auto type) {
    using T = decltype(type);
    hv_cover c = hv_cover_of(args->y.rows, args->y.cols / 2, 1);
    HV_LAUNCH((sinusoid_kernel<T>), c.grid, c.block, 0, stream, hv_list_of(args->timesteps), hv_rows_of<T>(args->y),
              c.cols, c.pieces);
  });
}

template <typename T>
static __global__ void q_sample_kernel(hv_rows<const float> actions, hv_rows<const float> noise,
                                       const int32_t *timesteps, const float *alpha_bar, int branches, hv_rows<T> y,
                                       int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<1>(pieces);
  if (at.col >= cols) return;
  float kept = alpha_bar[timesteps[at.row]];
  float x = sqrtf(kept) * *actions.at(at.row / branches, at.col) + sqrtf(1.0f - kept) * *noise.at(at.row, at.col);
  *y.at(at.row, at.col) = hv_from_float<T>(x);
}

void hv_cuda_q_sample(hv_stream *stream, const hv_q_sample_args *args) {
  hv_with_type(stream, args->y.dtype, [&](auto type) {
    using T = decltype(type);
    hv_cover c = hv_cover_of(args->y.rows, args->y.cols, 1);
    HV_LAUNCH((q_sample_kernel<T>), c.grid, c.block, 0, stream, hv_rows_of<const float>(args->actions),
              hv_rows_of<const float>(args->noise), hv_list_of(args->timesteps), (const float *)args->alpha_bar.data,
              args->branches, hv_rows_of<T>(args->y), c.cols, c.pieces);
  });
}

template <typename E, typename T>
static __global__ void sampler_step_kernel(hv_rows<const E> eps, hv_rows<const float> noise, const float *coefficients,
                                           hv_rows<float> x, hv_rows<T> x_cast, int64_t cols, unsigned pieces) {
  hv_place at = hv_place_here<1>(pieces);
  if (at.col >= cols) return;
  float next = coefficients[0] * *x.at(at.row, at.col) + coefficients[1] * hv_to_float(*eps.at(at.row, at.col));
  if (noise.data) next += coefficients[2] * *noise.at(at.row, at.col);
  *x.at(at.row, at.col) = next;
  if (x_cast.data) *x_cast.at(at.row, at.col) = hv_from_float<T>(next);
}

void hv_cuda_sampler_step(hv_stream *stream, const hv_sampler_step_args *args) {
  hv_dtype cast = hv_present(args->x_cast) ? args->x_cast.dtype : HV_F32;
  hv_with_type(stream, args->eps.dtype, [&](auto eps_type) {
    hv_with_type(stream, cast, [&](auto type) {
      using E = decltype(eps_type);
      using T = decltype(type);
      hv_cover c = hv_cover_of(args->x.rows, args->x.cols, 1);
      HV_LAUNCH((sampler_step_kernel<E, T>), c.grid, c.block, 0, stream, hv_rows_of<const E>(args->eps),
                hv_rows_of<const float>(args->noise), (const float *)args->coefficients.data,
                hv_rows_of<float>(args->x), hv_rows_of<T>(args->x_cast), c.cols, c.pieces);
    });
  });
}

enum { LOSS_THREADS = 256 };

/* One block for the whole loss: there are a few thousand values at most. A thread adds every 256th element, then the
 * block adds up its threads, so the order is fixed. */
template <typename P, typename T>
static __global__ void diffusion_loss_kernel(hv_rows<const P> pred, hv_rows<const float> noise, const float *mask,
                                             const float *divisor, float weight, float *loss, hv_rows<T> dpred,
                                             int64_t rows, int64_t cols) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < rows * cols; i += blockDim.x) {
    int64_t row = i / cols, col = i % cols;
    float kept = mask ? mask[row] : 1.0f;
    /* Masked values may be anything, even NaN. */
    float difference = kept == 0.0f ? 0.0f : hv_to_float(*pred.at(row, col)) - *noise.at(row, col);
    sum += kept * difference * difference;
    if (dpred.data) *dpred.at(row, col) = hv_from_float<T>(weight * 2.0f * kept / *divisor * difference);
  }
  sum = hv_block_sum(sum, hv_shared_at<float>(0));
  if (threadIdx.x == 0) *loss += sum / *divisor;
}

void hv_cuda_diffusion_loss(hv_stream *stream, const hv_diffusion_loss_args *args) {
  if (hv_tensor_count(args->pred) == 0) return;
  hv_dtype gradient = hv_present(args->dpred) ? args->dpred.dtype : args->pred.dtype;
  hv_with_type(stream, args->pred.dtype, [&](auto pred_type) {
    hv_with_type(stream, gradient, [&](auto type) {
      using P = decltype(pred_type);
      using T = decltype(type);
      HV_LAUNCH((diffusion_loss_kernel<P, T>), dim3(1), dim3(LOSS_THREADS), HV_WARP * sizeof(float), stream,
                hv_rows_of<const P>(args->pred), hv_rows_of<const float>(args->noise), (const float *)args->mask.data,
                (const float *)args->divisor.data, (float)args->weight, (float *)args->loss.data,
                hv_rows_of<T>(args->dpred), args->pred.rows, args->pred.cols);
    });
  });
}
