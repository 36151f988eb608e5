/* Fuzz targets: functions that take any bytes, and check what must hold when a parser accepts them. Each stands in a
 * file of its own, fuzz_<parser>.c, and is linked twice: with fuzz_driver.c, whose mutations are the same in every run,
 * as a test; and, where the compiler is clang, with libFuzzer as a program that searches without end. */
#ifndef HV_TESTS_IO_FUZZ_H
#define HV_TESTS_IO_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Valid inputs to start from, one after the other: bytes on the heap, freed by the caller. False after the last. */
bool fuzz_seed(int index, uint8_t **data, size_t *size);

/* Aborts with the message: the parser broke a promise. */
#define FUZZ_CHECK(condition) ((condition) ? (void)0 : fuzz_fail(#condition, __FILE__, __LINE__))
_Noreturn void fuzz_fail(const char *condition, const char *file, int line);

/* A seed that is a text, or a whole file. */
bool fuzz_seed_text(const char *text, uint8_t **data, size_t *size);
bool fuzz_seed_file(const char *path, uint8_t **data, size_t *size);

#endif
