/* No library for attention: for the emulator, whose purpose is to run the built-in kernels, and for builds without
 * cuDNN's headers. */
#include "cuda/attention_library.h"

hv_status hv_attention_library_open(hv_attention_library **out) {
  *out = nullptr;
  return HV_OK;
}

void hv_attention_library_close(hv_attention_library *) {}

bool hv_attention_library_run(hv_attention_library *, hv_stream *, const hv_attention_args *) {
  return false;
}
