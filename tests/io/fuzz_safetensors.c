/* Fuzzes the reader of safetensors headers (fuzz.h). */
#include <string.h>

#include "core/io/safetensors.h"
#include "tests/io/fuzz.h"

/* Every accepted tensor lies inside the input and is as large as its shape says. */
static void check(const hv_file_tensor *tensor, const uint8_t *data, size_t size) {
  const uint8_t *begin = tensor->data;
  FUZZ_CHECK(begin >= data && begin <= data + size && tensor->size <= (size_t)(data + size - begin));
  FUZZ_CHECK(!tensor->known || (size_t)tensor->count * hv_dtype_size(tensor->dtype) == tensor->size);
  float value;
  if (tensor->known && tensor->count > 0) hv_file_tensor_read_f32(tensor, tensor->count - 1, 1, &value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  hv_safetensors *file;
  hv_status status = hv_safetensors_open_memory(data, size, "input", &file);
  if (status) {
    FUZZ_CHECK(strstr(hv_status_message(status), "input") && !file);
    hv_status_free(status);
    return 0;
  }
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(file, i);
    check(tensor, data, size);
    FUZZ_CHECK(hv_safetensors_find(file, tensor->name) == tensor);
  }
  hv_safetensors_close(file);
  return 0;
}

bool fuzz_seed(int index, uint8_t **data, size_t *size) {
  static const char header[] =
      "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
      "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[8,14]},"
      "\"c\":{\"dtype\":\"F8_E5M2\",\"shape\":[2],\"data_offsets\":[14,16]},"
      "\"d\":{\"dtype\":\"BOOL\",\"shape\":[0],\"data_offsets\":[16,16]}}";
  if (index == 1) return fuzz_seed_file(HVLA_SOURCE_DIR "/tests/fixtures/resize/resize.safetensors", data, size);
  if (index > 1) return false;
  char text[sizeof header + 24];
  memset(text, 1, sizeof text);
  memcpy(text + 8, header, sizeof header - 1);
  text[sizeof text - 1] = '\0';
  fuzz_seed_text(text, data, size);
  for (int i = 0; i < 8; i++) (*data)[i] = (uint8_t)((sizeof header - 1) >> (8 * i));
  *size = 8 + sizeof header - 1 + 16;
  return true;
}
