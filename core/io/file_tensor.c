/* The values of a file's tensor, in other dtypes than it is stored in. */
#include <math.h>
#include <string.h>

#include "core/io/safetensors.h"

void hv_file_tensor_read_f32(const hv_file_tensor *tensor, int64_t first, int64_t count, float *out) {
  const uint8_t *from = (const uint8_t *)tensor->data + (size_t)first * hv_dtype_size(tensor->dtype);
  for (int64_t i = 0; i < count; i++) {
    const uint8_t *at = from + (size_t)i * hv_dtype_size(tensor->dtype);
    union {
      float f32;
      double f64;
      uint16_t bits;
      int16_t i16;
      int32_t i32;
      int64_t i64;
    } value;
    memcpy(&value, at, hv_dtype_size(tensor->dtype));
    switch (tensor->dtype) {
    case HV_F32: out[i] = value.f32; break;
    case HV_BF16: out[i] = hv_bf16_to_float(value.bits); break;
    case HV_F64: out[i] = (float)value.f64; break;
    case HV_F16: out[i] = hv_f16_to_float(value.bits); break;
    case HV_I16: out[i] = (float)value.i16; break;
    case HV_I32: out[i] = (float)value.i32; break;
    case HV_I64: out[i] = (float)value.i64; break;
    case HV_BOOL:
    case HV_U8: out[i] = (float)*at; break;
    case HV_I8: out[i] = (float)(int8_t)*at; break;
    }
  }
}

/* Index of the first finite value that became infinite; -1: none. */
static int64_t find_overflow(hv_dtype to, const void *converted, hv_dtype from, const void *values, int64_t count) {
  enum { PIECE = 256 };
  double before[PIECE];
  float after[PIECE];
  for (int64_t first = 0; first < count; first += PIECE) {
    int64_t part = count - first < PIECE ? count - first : PIECE;
    hv_dtype_convert(HV_F32, after, to, (const char *)converted + (size_t)first * hv_dtype_size(to), part);
    float largest = 0;
    for (int64_t i = 0; i < part; i++) largest = fabsf(after[i]) > largest ? fabsf(after[i]) : largest;
    if (largest != INFINITY) continue;
    hv_dtype_convert(HV_F64, before, from, (const char *)values + (size_t)first * hv_dtype_size(from), part);
    for (int64_t i = 0; i < part; i++)
      if (isinf(after[i]) && isfinite(before[i])) return first + i;
  }
  return -1;
}

hv_status hv_file_tensor_convert(const hv_file_tensor *tensor, int64_t first, int64_t count, hv_dtype to, void *out) {
  enum { PIECE = 4096 };
  double values[PIECE]; /* aligned for every dtype, which a mapped tensor need not be */
  size_t from_size = hv_dtype_size(tensor->dtype), to_size = hv_dtype_size(to);
  const char *from = (const char *)tensor->data + (size_t)first * from_size;
  if (tensor->dtype == to) {
    memcpy(out, from, (size_t)count * to_size);
    return HV_OK;
  }
  for (int64_t done = 0; done < count; done += PIECE) {
    int64_t part = count - done < PIECE ? count - done : PIECE;
    char *at = (char *)out + (size_t)done * to_size;
    memcpy(values, from + (size_t)done * from_size, (size_t)part * from_size);
    hv_dtype_convert(to, at, tensor->dtype, values, part);
    int64_t wrong = find_overflow(to, at, tensor->dtype, values, part);
    if (wrong < 0) continue;
    int64_t at_fault = first + done + wrong;
    double value;
    hv_dtype_convert(HV_F64, &value, tensor->dtype, (const char *)values + (size_t)wrong * from_size, 1);
    return hv_error(HV_ERR_INPUT, "%s: tensor %s: element %lld is %g, too large for %s", tensor->file, tensor->name,
                    (long long)at_fault, value, hv_dtype_name(to));
  }
  return HV_OK;
}
