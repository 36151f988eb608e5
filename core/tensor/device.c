#include "core/tensor/device.h"

void hv_device_close(hv_device *device) {
  if (!device) return;
  hv_memory_close(&device->memory);
  device->methods->close(device);
}

/* Adds to an out-of-memory error what this process holds already, and how much others do. */
static hv_status explain(hv_device *device, hv_status error) {
  hv_text text = {0};
  hv_device_room room = hv_device_get_room(device);
  size_t held = device->memory.held.total;
  hv_text_add(&text, "%s\nheld by this process:\n", hv_status_message(error));
  hv_memory_table(&device->memory.held, "  ", &text);
  if (room.all > room.available + held) {
    hv_text_add(&text, "held by others (other processes, the system): %.3f of %.3f GB\n",
                (double)(room.all - room.available - held) * 1e-9, (double)room.all * 1e-9);
  }
  if (text.failed) {
    hv_text_free(&text);
    return error;
  }
  text.data[--text.length] = '\0'; /* a message does not end its last line */
  hv_status explained = hv_error(hv_status_code(error), "%s", text.data);
  hv_text_free(&text);
  hv_status_free(error);
  return explained;
}

hv_status hv_device_allocate(hv_device *device, hv_memory_kind kind, size_t bytes, const char *what, void **out) {
  hv_status status = device->methods->allocate(device, bytes, what, out);
  if (status) return hv_status_code(status) == HV_ERR_MEMORY ? explain(device, status) : status;
  status = hv_memory_enter(&device->memory, kind, *out, bytes);
  if (status) {
    device->methods->release(device, *out);
    *out = NULL;
  }
  return status;
}

void hv_device_release(hv_device *device, void *memory) {
  if (!memory) return;
  hv_memory_strike(&device->memory, memory);
  device->methods->release(device, memory);
}
