/* Fuzz targets: functions that pass any bytes to a parser and, if it accepts them, check what must hold then. Each is
 * in a file of its own, fuzz_<parser>.c, and is linked twice: as a test with fuzz_driver.c, whose mutations are the
 * same in every run; and, if the compiler is clang, with libFuzzer as a program that searches until it is stopped. */
#ifndef HV_TESTS_IO_FUZZ_H
#define HV_TESTS_IO_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Gives the valid input number `index` to start from, on the heap, freed by the caller. False after the last one. */
bool fuzz_seed(int index, uint8_t **data, size_t *size);

/* Aborts with a message unless the condition holds, which the parser promises. */
#define FUZZ_CHECK(condition) ((condition) ? (void)0 : fuzz_fail(#condition, __FILE__, __LINE__))
_Noreturn void fuzz_fail(const char *condition, const char *file, int line);

/* For fuzz_seed: a seed made of a text, or of a whole file. */
bool fuzz_seed_text(const char *text, uint8_t **data, size_t *size);
bool fuzz_seed_file(const char *path, uint8_t **data, size_t *size);

#endif
