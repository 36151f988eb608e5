#include "train/run/run_choices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"

enum { LARGEST_FILE = 16 << 20 };

static char *path_of(const char *run, const hv_device *device) {
  char name[64];
  snprintf(name, sizeof name, "device-choices-%.32s.txt", device->name);
  return hv_path_join(run, name);
}

hv_status hv_run_choices_load(const char *run, hv_device *device) {
  hv_status status = HV_OK;
  char *text = NULL, *path = NULL;
  bool fits;
  if (!hv_device_chooses(device)) return HV_OK;
  path = path_of(run, device);
  if (!path) return hv_error_memory("a path");
  if (!hv_file_exists(path)) goto done;
  HV_CHECK(hv_read_text(path, LARGEST_FILE, &text, NULL));
  HV_CHECK(hv_error_context(hv_device_read_choices(device, text, &fits), "%s", path));
  if (!fits) {
    hv_log_warning("%s was written with another card or library version: the run continues, but its results will not "
                   "be the same to the bit",
                   path);
  }
done:
  free(text);
  free(path);
  return status;
}

/* Sets *texts, on the heap, which begins with the first rank's text. */
static hv_status gather_texts(hv_comm *comm, const hv_device *device, char **texts) {
  hv_status status = HV_OK;
  hv_text own = {0};
  char *padded = NULL;
  hv_device_write_choices(device, &own);
  double length = comm->rank == 0 ? (double)own.length : 0;
  HV_CHECK(hv_comm_sum(comm, "the length of the device's choices", &length, 1));
  size_t size = (size_t)length + 1;
  padded = calloc(1, size);
  *texts = calloc((size_t)comm->size, size);
  if (!padded || !*texts || own.failed) {
    status = hv_error_memory("the device's choices");
    goto done;
  }
  if (comm->rank == 0) memcpy(padded, hv_text_string(&own), own.length);
  status = hv_comm_gather(comm, "the device's choices", padded, size, *texts);
done:
  free(padded);
  hv_text_free(&own);
  return status;
}

hv_status hv_run_choices_share(hv_comm *comm, hv_device *device) {
  char *texts = NULL;
  bool fits = true;
  if (comm->size == 1 || !hv_device_chooses(device)) return HV_OK;
  hv_status status = gather_texts(comm, device, &texts);
  if (!status && comm->rank > 0) status = hv_device_read_choices(device, texts, &fits);
  free(texts);
  if (!fits) {
    hv_log_warning("this rank has another card or library version than rank 0: a resumed run will not give the same "
                   "results to the bit");
  }
  return status;
}

hv_status hv_run_choices_save(const char *run, const hv_device *device) {
  hv_text text = {0};
  if (!hv_device_chooses(device)) return HV_OK;
  char *path = path_of(run, device);
  hv_device_write_choices(device, &text);
  hv_status status = !path || text.failed ? hv_error_memory("the device's choices")
                                          : hv_write_file_atomic(path, hv_text_string(&text), text.length);
  hv_text_free(&text);
  free(path);
  return status;
}
