/* `hvla-train --device cuda` with a driver that is missing, too old, or shows no card (old_driver.c takes its place):
 * one line says what is wrong and what to do. */
#include <dlfcn.h>

#include "tests/check.h"
#include "tests/train/program.h"

#define FIXTURE HVLA_SOURCE_DIR "/tests/fixtures/parity/linear"

static const char way_out[] = "--device cpu runs everything without";

/* Fails unless hvla-train with these environment variables ends with code 2 and prints the words. */
static void assert_refused(const char *folder, const char *environment, const char *words) {
  char arguments[1024], *output;
  snprintf(arguments, sizeof arguments,
           "check --device cuda --model '" FIXTURE "' --batch '" FIXTURE "/batch.safetensors' --out '%s/out'", folder);
  int code = run_train(environment, arguments, &output);
  if (code != 2 || !strstr(output, words) || !strstr(output, way_out))
    fail_msg("exit code %d; expected 2, \"%s\" and advice:\n%s", code, words, output);
  free(output);
}

static void a_missing_driver_is_told(void **state) {
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver) { /* this machine has a driver */
    dlclose(driver);
    skip();
  }
  assert_refused(*state, "", "no CUDA driver is installed");
}

static void an_old_driver_is_told(void **state) {
  assert_refused(*state, "LD_LIBRARY_PATH='" OLD_DRIVER "' DRIVER_VERSION=11080",
                 "the CUDA driver is for CUDA 11.8, this build needs ");
}

static void no_card_is_told(void **state) {
  assert_refused(*state, "LD_LIBRARY_PATH='" OLD_DRIVER "' DRIVER_ERROR=100", "no CUDA card is visible (");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_missing_driver_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(an_old_driver_is_told, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(no_card_is_told, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
