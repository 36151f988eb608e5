#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/tensor/device.h"

typedef hv_status (*module_open)(const hv_device_options *options, hv_device **out);

/* The program's folder; "" if the system does not tell it. */
static void program_folder(char *out, size_t size) {
  char path[PATH_MAX];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  path[length > 0 ? length : 0] = '\0';
  snprintf(out, size, "%s", length > 0 ? dirname(path) : "");
}

/* Opens the library from the first place that has it; *out stays NULL if none has. A file that exists but cannot be
 * loaded is an error: falling back to another one would hide it. */
static hv_status open_library(const char *file, void **out) {
  static const char *const places[] = {"", "/../lib"}; /* from the program's folder */
  char folder[PATH_MAX], path[2 * PATH_MAX];
  program_folder(folder, sizeof folder);
  *out = NULL;
  for (size_t i = 0; folder[0] && i < sizeof places / sizeof places[0]; i++) {
    snprintf(path, sizeof path, "%s%s/%s", folder, places[i], file);
    if (!hv_file_exists(path)) continue;
    *out = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    return *out ? HV_OK : hv_error(HV_ERR_DEVICE, "cannot load %s: %s", path, dlerror());
  }
  *out = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  return HV_OK;
}

hv_status hv_device_load(const char *name, const hv_device_options *options, hv_device **out) {
  *out = NULL;
  char file[128];
  int length = snprintf(file, sizeof file, "libhvla-%s.so", name);
  if (length >= (int)sizeof file || strchr(name, '/')) {
    return hv_error(HV_ERR_DEVICE, "there is no device \"%s\"; cpu, cuda and emu are known", name);
  }
  void *library;
  HV_TRY(open_library(file, &library));
  if (!library) {
    return hv_error(
        HV_ERR_DEVICE,
        "the device \"%s\" needs %s, which is neither beside the program, in ../lib, nor on the loader's "
        "path (%s): build everything (cmake --build --preset release), or use --device cpu, which runs everywhere",
        name, file, dlerror());
  }
  module_open open_module;
  *(void **)&open_module = dlsym(library, "hv_device_module_open");
  if (!open_module) {
    dlclose(library);
    return hv_error(HV_ERR_DEVICE,
                    "%s is not a device module of this program: it has no function hv_device_module_open", file);
  }
  /* The library stays loaded: the device's functions live in it. */
  hv_status status = open_module(options, out);
  if (status) dlclose(library);
  return status;
}
