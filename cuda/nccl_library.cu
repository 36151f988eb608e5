#include "cuda/nccl_library.h"

#include <dlfcn.h>

enum { OLDEST = 21800 /* 2.18: non-blocking communicators that can be aborted at any time */ };

void hv_nccl_library_close(hv_nccl_library *library) {
  if (library->file) dlclose(library->file);
  library->file = nullptr;
}

static hv_status look_up(hv_nccl_library *library) {
#define LOOK_UP(name)                                                                                                  \
  *(void **)&library->name = dlsym(library->file, "nccl" #name);                                                       \
  if (!library->name)                                                                                                  \
    return hv_error(HV_ERR_DEVICE, "libnccl.so.2 lacks nccl" #name ": NCCL 2.18 or newer is "                          \
                                   "needed");
  HV_NCCL_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
  int version = 0;
  if (library->GetVersion(&version) != ncclSuccess || version < OLDEST) {
    return hv_error(HV_ERR_DEVICE, "NCCL %d.%d is installed; 2.18 or newer is needed", version / 10000,
                    version / 100 % 100);
  }
  return HV_OK;
}

hv_status hv_nccl_library_open(hv_nccl_library *out) {
  *out = hv_nccl_library{};
  /* Never unloaded (RTLD_NODELETE): its threads may outlive the communicator (that of rank 0 waits for ranks that never
   * come). */
  out->file = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!out->file) {
    return hv_error(HV_ERR_DEVICE, "ranks on CUDA cards need NCCL (%s); install it, or set parallel.transport to mpi",
                    dlerror());
  }
  hv_status status = look_up(out);
  if (status) hv_nccl_library_close(out);
  return status;
}
