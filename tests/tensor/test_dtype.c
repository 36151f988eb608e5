/* Conversions between dtypes, against their definitions for every fp16 and bf16 value and for ties; and views of
 * tensors. */
#include <math.h>

#include "core/tensor/tensor.h"
#include "tests/check.h"

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* The value of a half-precision number by its definition. */
static double half_value(uint16_t bits) {
  int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  double magnitude = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

static void every_fp16_value_is_read(void **state) {
  (void)state;
  for (uint32_t i = 0; i < 65536; i++) {
    uint16_t bits = (uint16_t)i;
    float value = hv_f16_to_float(bits);
    bool special = (bits & 0x7c00) == 0x7c00;
    if (special && (bits & 0x3ff)) {
      assert_true(isnan(value));
    } else if (special) {
      assert_true(isinf(value) && (value < 0) == (bits >> 15));
    } else {
      assert_true((double)value == half_value(bits));
      assert_true((bool)signbit(value) == (bits >> 15));
    }
    if (!isnan(value)) assert_int_equal(hv_f16_from_float(value), bits);
  }
  assert_int_equal(hv_f16_from_float(NAN) & 0x7c00, 0x7c00);
  assert_true(hv_f16_from_float(NAN) & 0x3ff);
}

/* A value between two neighbours becomes the nearer one; one exactly in the middle becomes the even one. */
static void fp16_rounds_to_nearest_even(void **state) {
  (void)state;
  for (uint16_t low = 0; low < 0x7bff; low++) {
    uint16_t high = (uint16_t)(low + 1);
    float middle = (float)((half_value(low) + half_value(high)) / 2);
    assert_int_equal(hv_f16_from_float(middle), low & 1 ? high : low);
    assert_int_equal(hv_f16_from_float(nextafterf(middle, 0)), low);
    assert_int_equal(hv_f16_from_float(nextafterf(middle, INFINITY)), high);
    assert_int_equal(hv_f16_from_float(-middle), (low & 1 ? high : low) | 0x8000);
  }
  assert_int_equal(hv_f16_from_float(65519.996F), 0x7bff);
  assert_int_equal(hv_f16_from_float(65520), 0x7c00);
  assert_int_equal(hv_f16_from_float(INFINITY), 0x7c00);
  assert_int_equal(hv_f16_from_float(-1e30F), 0xfc00);
}

static void every_bf16_value_is_read(void **state) {
  (void)state;
  for (uint32_t i = 0; i < 65536; i++) {
    float value = hv_bf16_to_float((uint16_t)i);
    assert_int_equal(bits_of(value), i << 16);
    if (isnan(value)) {
      assert_true(isnan(hv_bf16_to_float(hv_bf16_from_float(value))));
    } else {
      assert_int_equal(hv_bf16_from_float(value), i);
    }
  }
  assert_true(isnan(hv_bf16_to_float(hv_bf16_from_float(float_of(0x7f800001)))));
}

static void bf16_rounds_to_nearest_even(void **state) {
  (void)state;
  for (uint32_t low = 0; low < 0x7f80; low++) {
    uint32_t middle = low << 16 | 0x8000;
    assert_int_equal(hv_bf16_from_float(float_of(middle)), low & 1 ? low + 1 : low);
    assert_int_equal(hv_bf16_from_float(float_of(middle - 1)), low);
    assert_int_equal(hv_bf16_from_float(float_of(middle + 1)), low + 1);
    assert_int_equal(hv_bf16_from_float(float_of(middle | 0x80000000)), (low & 1 ? low + 1 : low) | 0x8000);
  }
}

static void arrays_convert(void **state) {
  (void)state;
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16, HV_F16, HV_F64};
  double values[5] = {0, -1.5, 0.1, 300, -0.007}, stored[5], back[5];
  for (size_t i = 0; i < 4; i++) {
    hv_dtype_convert(dtypes[i], stored, HV_F64, values, 5);
    hv_dtype_convert(HV_F64, back, dtypes[i], stored, 5);
    double precision = dtypes[i] == HV_BF16 ? 0x1p-8 : dtypes[i] == HV_F16 ? 0x1p-11 : 0x1p-24;
    for (int j = 0; j < 5; j++) assert_true(fabs(back[j] - values[j]) <= precision * fabs(values[j]));
  }
}

/* Converting an array from any dtype to any other gives the same as converting each value through double. */
static void every_pair_of_dtypes_converts(void **state) {
  (void)state;
  enum { COUNT = 100 };
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16, HV_F16, HV_F64};
  double values[COUNT], from[COUNT], to[COUNT], expected[COUNT];
  for (int i = 0; i < COUNT; i++) values[i] = (i % 2 ? -1 : 1) * exp2(0.37 * i - 18) * (1 + 0.013 * i);
  for (size_t i = 0; i < 4; i++) {
    for (size_t j = 0; j < 4; j++) {
      double wide[COUNT];
      hv_dtype_convert(dtypes[i], from, HV_F64, values, COUNT);
      hv_dtype_convert(HV_F64, wide, dtypes[i], from, COUNT);
      hv_dtype_convert(dtypes[j], expected, HV_F64, wide, COUNT);
      hv_dtype_convert(dtypes[j], to, dtypes[i], from, COUNT);
      assert_memory_equal(to, expected, COUNT * hv_dtype_size(dtypes[j]));
    }
  }
}

static void views(void **state) {
  (void)state;
  float data[24];
  hv_tensor t = hv_tensor_make(data, HV_F32, 4, 6);
  hv_tensor part = hv_tensor_cols(hv_tensor_rows(t, 1, 2), 3, 2);
  assert_ptr_equal(part.data, data + 9);
  assert_int_equal(part.rows, 2);
  assert_int_equal(part.cols, 2);
  assert_int_equal(part.row_stride, 6);
  assert_int_equal(hv_tensor_count(part), 4);
  hv_tensor flat = hv_tensor_reshape(t, 1, 24);
  assert_int_equal(flat.row_stride, 24);
  assert_true(hv_present(flat));
  assert_false(hv_present((hv_tensor){.rows = 1}));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_fp16_value_is_read),
      cmocka_unit_test(fp16_rounds_to_nearest_even),
      cmocka_unit_test(every_bf16_value_is_read),
      cmocka_unit_test(bf16_rounds_to_nearest_even),
      cmocka_unit_test(arrays_convert),
      cmocka_unit_test(every_pair_of_dtypes_converts),
      cmocka_unit_test(views),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
