/* Takes the place of libcuda.so.1, with the functions that cuDNN calls while it makes plans: a driver without a card
 * that accepts every kernel. */
int cuLibraryLoadData(void **library, const void *code);
int cuLibraryGetKernel(void **kernel, void *library, const char *name);
int cuGetErrorString(int error, const char **text);

enum { SUCCESS = 0, NO_DEVICE = 100 };

int cuLibraryLoadData(void **library, const void *code) {
  *library = (void *)code;
  return SUCCESS;
}

int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
  (void)library;
  *kernel = (void *)name;
  return SUCCESS;
}

int cuGetErrorString(int error, const char **text) {
  *text = error == SUCCESS ? "no error" : "no device";
  return SUCCESS;
}

/* All other functions fail, because they need a card. Versions of cuDNN differ in which of them they look up. */
#define NEEDS_A_CARD(name)                                                                                             \
  int name(void);                                                                                                      \
  int name(void) {                                                                                                     \
    return NO_DEVICE;                                                                                                  \
  }
#include "driver_functions.h"
