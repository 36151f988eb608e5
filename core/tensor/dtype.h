/* Element types. F32, BF16 and F64 carry parameters and activations; F16 and BOOL occur in files only. */
#ifndef HV_TENSOR_DTYPE_H
#define HV_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum hv_dtype {
  HV_F32,
  HV_BF16,
  HV_F64,
  HV_F16,
  HV_I16,
  HV_I32,
  HV_I64,
  HV_U8,
  HV_I8,
  HV_BOOL, /* a byte */
} hv_dtype;

static inline size_t hv_dtype_size(hv_dtype dtype) {
  static const unsigned char sizes[] = {4, 2, 8, 2, 2, 4, 8, 1, 1, 1};
  return sizes[dtype];
}

static inline bool hv_dtype_is_floating(hv_dtype dtype) {
  return dtype <= HV_F16;
}

/* "fp32", "bf16", "fp64", "fp16", "i16", "i32", "i64", "u8", "i8", "bool": the spelling of options and messages. */
static inline const char *hv_dtype_name(hv_dtype dtype) {
  static const char *const names[] = {"fp32", "bf16", "fp64", "fp16", "i16", "i32", "i64", "u8", "i8", "bool"};
  return names[dtype];
}

/* What an error says beside the dtypes that a model can be trained or run in. */
#define HV_FP16_IS "fp16 is a dtype of exported files alone (hvla-infer export --dtype fp16)"

static inline float hv_bf16_to_float(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

/* Round to nearest, ties to even, as PyTorch and the hardware do; NaN stays NaN. */
static inline uint16_t hv_bf16_from_float(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  if ((word & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((word >> 16) | 0x40u);
  return (uint16_t)((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

#ifdef __cplusplus
extern "C" {
#endif

float hv_f16_to_float(uint16_t bits);
uint16_t hv_f16_from_float(float value); /* round to nearest even, overflow to infinity */

/* Host arrays: converts `count` elements between F32, BF16, F16 and F64, rounding to nearest even; other dtypes only to
 * themselves. */
void hv_dtype_convert(hv_dtype to, void *dst, hv_dtype from, const void *src, int64_t count);

#ifdef __cplusplus
}
#endif

#endif
