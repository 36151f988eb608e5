/* Takes the place of libcuda.so.1, with the functions that the CUDA runtime calls before it uses a card. The
 * environment gives the version of the driver, DRIVER_VERSION, and the error of its cuInit, DRIVER_ERROR. */
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags);
int cuDriverGetVersion(int *version);
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found);

enum { SUCCESS = 0, NOT_FOUND = 500 };

static int setting(const char *name, int otherwise) {
  const char *value = getenv(name);
  return value ? (int)strtol(value, NULL, 10) : otherwise;
}

int cuInit(unsigned flags) {
  (void)flags;
  return setting("DRIVER_ERROR", SUCCESS);
}

int cuDriverGetVersion(int *version) {
  *version = setting("DRIVER_VERSION", 99000);
  return SUCCESS;
}

/* Stands for any function of the driver. */
typedef void (*driver_call)(void);

static int nothing(void) {
  return NOT_FOUND;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found) {
  (void)version, (void)flags;
  driver_call answer = (driver_call)nothing;
  if (strcmp(name, "cuInit") == 0) answer = (driver_call)cuInit;
  if (strcmp(name, "cuDriverGetVersion") == 0) answer = (driver_call)cuDriverGetVersion;
  if (strcmp(name, "cuGetProcAddress") == 0) answer = (driver_call)cuGetProcAddress_v2;
  *(driver_call *)function = answer;
  if (found) *found = SUCCESS;
  return SUCCESS;
}
