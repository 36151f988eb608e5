/* Fuzzes config.json and dataset_statistics.json (fuzz.h): what is accepted can be written and read back the same. */
#include <string.h>

#include "core/io/dataset_statistics.h"
#include "core/io/json.h"
#include "core/io/model_config.h"
#include "tests/io/fuzz.h"

/* An accepted configuration, written to a document and read back, is the same. */
static void check_config(const json_t *document) {
  hv_model_config model, back;
  hv_status status = hv_model_config_from_json(document, "input", HV_UNKNOWN_KEEP, &model);
  if (status) {
    FUZZ_CHECK(strstr(hv_status_message(status), "input"));
    hv_status_free(status);
    return;
  }
  FUZZ_CHECK(model.config.action_base <= model.config.llm.vocab_size && model.config.num_towers >= 1);
  json_t *written, *again;
  FUZZ_CHECK(!hv_model_config_to_json(&model, &written));
  FUZZ_CHECK(!hv_model_config_from_json(written, "written", HV_UNKNOWN_KEEP, &back));
  FUZZ_CHECK(!hv_model_config_to_json(&back, &again));
  FUZZ_CHECK(json_equal(written, again));
  json_decref(again);
  hv_model_config_free(&back);
  hv_status_free(hv_model_config_from_json(document, "input", HV_UNKNOWN_REFUSE, &back));
  json_decref(written);
  hv_model_config_free(&model);
  hv_model_config_free(&back);
}

static void check_statistics(const json_t *document) {
  hv_dataset_statistics statistics, back;
  hv_status status = hv_dataset_statistics_from_json(document, "input", "demo", &statistics);
  if (status) {
    FUZZ_CHECK(strstr(hv_status_message(status), "input"));
    hv_status_free(status);
    return;
  }
  json_t *written;
  FUZZ_CHECK(!hv_dataset_statistics_to_json(&statistics, &written));
  FUZZ_CHECK(!hv_dataset_statistics_from_json(written, "written", NULL, &back));
  FUZZ_CHECK(back.action.dims == statistics.action.dims && back.proprio.dims == statistics.proprio.dims);
  json_decref(written);
  hv_dataset_statistics_free(&statistics);
  hv_dataset_statistics_free(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  json_t *document;
  hv_status status = hv_json_parse((const char *)data, size, "input", &document);
  if (status) {
    FUZZ_CHECK(strstr(hv_status_message(status), "input") && !document);
    hv_status_free(status);
    return 0;
  }
  check_config(document);
  check_statistics(document);
  json_decref(document);
  return 0;
}

bool fuzz_seed(int index, uint8_t **data, size_t *size) {
  static const char *const seeds[] = {
      HVLA_SOURCE_DIR "/tests/fixtures/parity/one_arm/config.json",
      HVLA_SOURCE_DIR "/tests/fixtures/parity/clip/config.json",
      HVLA_SOURCE_DIR "/tests/fixtures/parity/one_arm/dataset_statistics.json",
  };
  if ((size_t)index >= sizeof seeds / sizeof *seeds) return false;
  return fuzz_seed_file(seeds[index], data, size);
}
