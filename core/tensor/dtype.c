#include "core/tensor/dtype.h"

float hv_f16_to_float(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
  uint32_t exponent = (bits >> 10) & 0x1fu;
  uint32_t fraction = bits & 0x3ffu;
  uint32_t word;
  if (exponent == 0x1f) {
    word = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent != 0) {
    word = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {
    float magnitude = (float)fraction * 0x1p-24f;
    memcpy(&word, &magnitude, sizeof word);
    word |= sign;
  }
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

uint16_t hv_f16_from_float(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  uint32_t sign = (word >> 16) & 0x8000u;
  word &= 0x7fffffffu;
  if (word > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((word >> 13) & 0x3ffu));
  if (word >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
  if (word < 0x38800000u) {
    /* Subnormal or zero: adding 2^-1 in binary32 leaves the rounded multiple of 2^-24 in the low bits. */
    float magnitude;
    memcpy(&magnitude, &word, sizeof magnitude);
    magnitude += 0.5f;
    memcpy(&word, &magnitude, sizeof word);
    return (uint16_t)(sign | (word - 0x3f000000u));
  }
  word += 0xfffu + ((word >> 13) & 1u);
  return (uint16_t)(sign | ((word - 0x38000000u) >> 13));
}

static double load(hv_dtype dtype, const void *values, int64_t i) {
  switch (dtype) {
  case HV_F32: return ((const float *)values)[i];
  case HV_BF16: return hv_bf16_to_float(((const uint16_t *)values)[i]);
  case HV_F16: return hv_f16_to_float(((const uint16_t *)values)[i]);
  default: return ((const double *)values)[i];
  }
}

static void store(hv_dtype dtype, void *values, int64_t i, double value) {
  switch (dtype) {
  case HV_F32: ((float *)values)[i] = (float)value; break;
  case HV_BF16: ((uint16_t *)values)[i] = hv_bf16_from_float((float)value); break;
  case HV_F16: ((uint16_t *)values)[i] = hv_f16_from_float((float)value); break;
  default: ((double *)values)[i] = value; break;
  }
}

/* One pair of dtypes as a loop that the compiler can vectorise. */
#define CONVERT(to_type, from_type, value)                                                                             \
  do {                                                                                                                 \
    const from_type *restrict from_values = src;                                                                       \
    to_type *restrict to_values = dst;                                                                                 \
    for (int64_t i = 0; i < count; i++) {                                                                              \
      from_type x = from_values[i];                                                                                    \
      to_values[i] = value;                                                                                            \
    }                                                                                                                  \
  } while (0)

void hv_dtype_convert(hv_dtype to, void *dst, hv_dtype from, const void *src, int64_t count) {
  if (to == from) {
    memcpy(dst, src, (size_t)count * hv_dtype_size(to));
  } else if (to == HV_F32 && from == HV_BF16) {
    CONVERT(float, uint16_t, hv_bf16_to_float(x));
  } else if (to == HV_BF16 && from == HV_F32) {
    CONVERT(uint16_t, float, hv_bf16_from_float(x));
  } else if (to == HV_F32 && from == HV_F16) {
    CONVERT(float, uint16_t, hv_f16_to_float(x));
  } else if (to == HV_F16 && from == HV_F32) {
    CONVERT(uint16_t, float, hv_f16_from_float(x));
  } else {
    for (int64_t i = 0; i < count; i++) store(to, dst, i, load(from, src, i));
  }
}
