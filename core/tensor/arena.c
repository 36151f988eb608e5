#include "core/tensor/arena.h"

enum { ALIGNMENT = 256 };

hv_status hv_arena_open(hv_device *device, hv_memory_kind kind, size_t capacity, const char *what, hv_arena *out) {
  *out = (hv_arena){.device = device, .capacity = capacity};
  void *base;
  HV_TRY(hv_device_allocate(device, kind, capacity ? capacity : ALIGNMENT, what, &base));
  out->base = base;
  return HV_OK;
}

hv_arena hv_arena_for_plan(hv_device *plan) {
  /* Not NULL, so that tensors count as present; never dereferenced. */
  char *base = (char *)(uintptr_t)ALIGNMENT;
  return (hv_arena){.device = plan, .base = base, .capacity = SIZE_MAX};
}

void hv_arena_close(hv_arena *arena) {
  if (arena->base) hv_device_release(arena->device, arena->base);
  *arena = (hv_arena){0};
}

hv_tensor hv_arena_take(hv_arena *arena, hv_dtype dtype, int64_t rows, int64_t cols) {
  size_t bytes = (size_t)(rows * cols) * hv_dtype_size(dtype);
  size_t start = arena->used;
  arena->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (arena->used > arena->peak) arena->peak = arena->used;
  if (arena->used > arena->capacity) {
    arena->overflow = true;
    start = 0;
  }
  return hv_tensor_make(arena->base + start, dtype, rows, cols);
}

hv_status hv_arena_status(const hv_arena *arena) {
  if (!arena->overflow) return HV_OK;
  return hv_error(HV_ERR_INTERNAL, "the arena holds %zu bytes, but %zu are needed", arena->capacity, arena->peak);
}
