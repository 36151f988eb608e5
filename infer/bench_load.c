#include "infer/bench_load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/median.h"
#include "core/base/string_list.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "infer/hvla.h"

enum { READ_BYTES = 8 << 20 };

typedef struct loading {
  const hv_bench_load_options *options;
  hv_string_list files;
  double bytes;
  double *load, *read, *touch; /* seconds, [repeat] */
  double still_cached;         /* the largest share of a file that stayed in the cache although it was dropped */
} loading;

/* The files that hold tensors. */
static hv_status list_files(loading *self) {
  hv_safetensors *tensors;
  HV_TRY(hv_safetensors_open(self->options->model, &tensors));
  hv_status status = HV_OK;
  for (int32_t i = 0; i < hv_safetensors_count(tensors) && !status; i++) {
    const hv_file_tensor *tensor = hv_safetensors_get(tensors, i);
    self->bytes += (double)tensor->size;
    if (!hv_string_list_contains(&self->files, tensor->file))
      status = hv_string_list_append(&self->files, tensor->file);
  }
  hv_safetensors_close(tensors);
  return status;
}

/* Share of a mapped file's pages that are in memory. */
static double cached_share(const hv_mapping *file) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (file->size + page - 1) / page, present = 0;
  unsigned char *flags = malloc(pages + 1);
  if (flags && mincore((void *)(uintptr_t)file->data, file->size, flags) == 0) {
    for (size_t i = 0; i < pages; i++) present += flags[i] & 1;
  }
  free(flags);
  return pages > 0 ? (double)present / (double)pages : 0;
}

static hv_status drop_file(loading *self, const char *path) {
  hv_mapping mapping;
  HV_TRY(hv_sync_file(path)); /* unwritten pages would stay in the cache */
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return hv_error_errno(errno, "cannot open %s", path);
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* only advice: its effect is measured below */
  close(fd);
  HV_TRY(hv_map_file(path, &mapping));
  double share = cached_share(&mapping);
  if (share > self->still_cached) self->still_cached = share;
  hv_unmap(&mapping);
  return HV_OK;
}

static hv_status drop_files(loading *self) {
  for (size_t i = 0; i < self->files.count; i++) HV_TRY(drop_file(self, self->files.items[i]));
  return HV_OK;
}

static hv_status read_file(const char *path, void *buffer) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return hv_error_errno(errno, "cannot open %s", path);
  hv_status status = HV_OK;
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  for (ssize_t got = 1; got != 0 && !status;) {
    got = read(fd, buffer, READ_BYTES);
    if (got < 0 && errno != EINTR) status = hv_error_errno(errno, "cannot read %s", path);
  }
  close(fd);
  return status;
}

static hv_status time_read(loading *self, double *seconds) {
  HV_TRY(drop_files(self));
  void *buffer = malloc(READ_BYTES);
  if (!buffer) return hv_error_memory("a buffer");
  double start = hv_clock_seconds();
  hv_status status = HV_OK;
  for (size_t i = 0; i < self->files.count && !status; i++) status = read_file(self->files.items[i], buffer);
  *seconds = hv_clock_seconds() - start;
  free(buffer);
  return status;
}

static hv_status time_load(loading *self, double *seconds) {
  hvla_error error;
  hvla_model *model;
  hvla_options options = hvla_default_options();
  options.device = self->options->device;
  options.dtype = self->options->dtype;
  options.threads = self->options->threads;
  HV_TRY(drop_files(self));
  double start = hv_clock_seconds();
  hvla_code code = hvla_load(self->options->model, &options, &model, &error);
  *seconds = hv_clock_seconds() - start;
  if (code) return hv_error((hv_code)code, "%s", error.message);
  hvla_free(model);
  return HV_OK;
}

/* Touches as much fresh memory as the files hold, a byte in each page. A virtual machine's host may have taken unused
 * memory back, and then its next use takes longer than reading the disk does. Timed separately and before the load, so
 * that the load does not wait for it. */
static hv_status time_touch(loading *self, double *seconds) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)self->bytes;
  volatile char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return hv_error_errno(errno, "cannot get %zu bytes of memory", bytes);
  (void)madvise((void *)memory, bytes, MADV_HUGEPAGE); /* as the CPU device does for its memory */
  double start = hv_clock_seconds();
  for (size_t at = 0; at < bytes; at += page) memory[at] = 1;
  *seconds = hv_clock_seconds() - start;
  munmap((void *)memory, bytes);
  return HV_OK;
}

static json_t *summary(double *values, size_t count) {
  double middle = hv_median(values, count);
  return json_pack("{s:f, s:f, s:f}", "min", values[0], "median", middle, "max", values[count - 1]);
}

static hv_status report(loading *self, hv_text *out) {
  size_t count = (size_t)self->options->repeat;
  json_t *load = summary(self->load, count), *read = summary(self->read, count), *touch = summary(self->touch, count);
  double load_s = json_real_value(json_object_get(load, "median"));
  double read_s = json_real_value(json_object_get(read, "median"));
  double touch_s = json_real_value(json_object_get(touch, "median"));
  double best = json_real_value(json_object_get(read, "min")) / json_real_value(json_object_get(load, "min"));
  json_t *object =
      json_pack("{s:f, s:o, s:o, s:o, s:f, s:f, s:f}", "bytes", self->bytes, "load_s", load, "read_s", read, "touch_s",
                touch, "ratio", read_s / load_s, "ratio_best", best, "still_cached", self->still_cached);
  if (!object) return hv_error_memory("the benchmark's result");
  hv_status status = HV_OK;
  if (self->options->json) {
    status = hv_json_format_line(object, out);
    hv_text_add(out, "\n");
  } else {
    hv_text_add(out, "loading %.2f GB in %zu file%s\n", 1e-9 * self->bytes, self->files.count,
                self->files.count == 1 ? "" : "s");
    hv_text_add(out, "  hvla_load        %.3f s (median of %zu), %.2f GB/s\n", load_s, count,
                1e-9 * self->bytes / load_s);
    hv_text_add(out,
                "  sequential read  %.3f s, %.2f GB/s: loading reaches %.0f %% of it, the fastest of each %.0f %%\n",
                read_s, 1e-9 * self->bytes / read_s, 100 * read_s / load_s, 100 * best);
    hv_text_add(out, "  fresh memory     %.3f s for the first use of as many bytes, before the load\n", touch_s);
    if (self->still_cached > 0.01)
      hv_text_add(out,
                  "  up to %.0f %% of a file stayed in the system's cache: the rates above are not those of the disk\n",
                  100 * self->still_cached);
  }
  json_decref(object);
  return status;
}

hv_status hv_bench_load(const hv_bench_load_options *options, hv_text *out) {
  loading self = {.options = options};
  hv_status status = HV_OK;
  self.load = calloc((size_t)options->repeat, sizeof *self.load);
  self.read = calloc((size_t)options->repeat, sizeof *self.read);
  self.touch = calloc((size_t)options->repeat, sizeof *self.touch);
  if (!self.load || !self.read || !self.touch) {
    status = hv_error_memory("the measured times");
    goto done;
  }
  HV_CHECK(list_files(&self));
  for (int64_t i = 0; i < options->repeat; i++) {
    HV_CHECK(time_read(&self, &self.read[i]));
    HV_CHECK(time_touch(&self, &self.touch[i]));
    HV_CHECK(time_load(&self, &self.load[i]));
  }
  status = report(&self, out);
done:
  hv_string_list_free(&self.files);
  free(self.load);
  free(self.read);
  free(self.touch);
  return status;
}
