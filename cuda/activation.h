/* The activations of linear layers and their derivatives, in float. */
#ifndef HV_CUDA_ACTIVATION_H
#define HV_CUDA_ACTIVATION_H

#include "core/tensor/ops.h"
#include "cuda/device.h"

static __device__ __forceinline__ float hv_sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

/* 2u, with u = sqrt(2 / π) (x + 0.044715 x³), the argument of tanh in the approximate GELU. Since 1 + tanh u = 2 σ(2u),
 * that GELU is x σ(2u). */
static __device__ __forceinline__ float hv_gelu_tanh_argument(float x) {
  return x * (1.59576912160573071f + 0.07135481627159961f * x * x);
}

static __device__ __forceinline__ float hv_normal_cdf(float x) {
  return 0.5f * erfcf(x * -0.70710678118654752440f);
}

static __device__ __forceinline__ float hv_activate(hv_activation activation, float x) {
  switch (activation) {
  case HV_ACT_GELU: return x * hv_normal_cdf(x);
  case HV_ACT_GELU_TANH: return x * hv_sigmoid(hv_gelu_tanh_argument(x));
  case HV_ACT_QUICK_GELU: return x * hv_sigmoid(1.702f * x);
  case HV_ACT_SILU: return x * hv_sigmoid(x);
  default: return x;
  }
}

static __device__ __forceinline__ float hv_activation_slope(hv_activation activation, float x) {
  switch (activation) {
  case HV_ACT_GELU: return hv_normal_cdf(x) + x * 0.39894228040143267794f * expf(-0.5f * x * x);
  case HV_ACT_GELU_TANH: {
    float s = hv_sigmoid(hv_gelu_tanh_argument(x));
    return s + x * s * (1.0f - s) * (1.59576912160573071f + 0.21406444881479883f * x * x);
  }
  case HV_ACT_QUICK_GELU: {
    float s = hv_sigmoid(1.702f * x);
    return s + 1.702f * x * s * (1.0f - s);
  }
  case HV_ACT_SILU: {
    float s = hv_sigmoid(x);
    return s + x * s * (1.0f - s);
  }
  default: return 1.0f;
  }
}

#endif
