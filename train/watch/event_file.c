#include "train/watch/event_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "train/watch/event.pb-c.h"

struct hv_event_file {
  FILE *file;
  char *path;
  uint32_t crc_table[256];
  uint8_t *record; /* owned: scratch for one message */
  size_t capacity;
};

/* CRC-32C, the Castagnoli polynomial with its bits reversed. */
static void fill_crc_table(uint32_t table[256]) {
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    table[byte] = crc;
  }
}

/* The checksum as TFRecord stores it: rotated and offset by a constant, so that it is not the CRC of bytes that contain
 * it. */
static uint32_t masked_crc(const uint32_t table[256], const uint8_t *data, size_t size) {
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < size; i++) crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put_little_endian(uint64_t value, int bytes, uint8_t *out) {
  for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

static hv_status make_room(hv_event_file *file, size_t size) {
  if (size <= file->capacity) return HV_OK;
  uint8_t *record = realloc(file->record, size);
  if (!record) return hv_error_memory("an event");
  file->record = record;
  file->capacity = size;
  return HV_OK;
}

static hv_status write_event(hv_event_file *file, const Hv__Event *event) {
  enum { LENGTH = 8, CRC = 4 };
  size_t size = hv__event__get_packed_size(event);
  HV_TRY(make_room(file, LENGTH + CRC + size + CRC));
  uint8_t *record = file->record, *message = record + LENGTH + CRC;
  put_little_endian(size, LENGTH, record);
  put_little_endian(masked_crc(file->crc_table, record, LENGTH), CRC, record + LENGTH);
  hv__event__pack(event, message);
  put_little_endian(masked_crc(file->crc_table, message, size), CRC, message + size);
  size_t total = LENGTH + CRC + size + CRC;
  if (fwrite(record, 1, total, file->file) != total || fflush(file->file) != 0) {
    return hv_error_errno(errno, "cannot write %s", file->path);
  }
  return HV_OK;
}

/* The version that readers look for, and where this session begins. */
static hv_status write_head(hv_event_file *file, int64_t step, double now) {
  Hv__SessionLog log = HV__SESSION_LOG__INIT;
  Hv__Event event = HV__EVENT__INIT;
  event.wall_time = now;
  event.what_case = HV__EVENT__WHAT_FILE_VERSION;
  event.file_version = (char[]){"brain.Event:2"};
  HV_TRY(write_event(file, &event));
  log.status = HV__SESSION_LOG__STATUS__START;
  event.step = step + 1;
  event.what_case = HV__EVENT__WHAT_SESSION_LOG;
  event.session_log = &log;
  return write_event(file, &event);
}

/* Names sort in the order of sessions, which is how TensorBoard reads them. */
static hv_status open_file(hv_event_file *file, const char *run, const struct timespec *now) {
  enum { HOST_SIZE = 65, NAME_SIZE = HOST_SIZE + 96 };
  char host[HOST_SIZE], name[NAME_SIZE];
  if (gethostname(host, sizeof host) != 0) strcpy(host, "localhost");
  host[HOST_SIZE - 1] = '\0';
  snprintf(name, sizeof name, "tensorboard/events.out.tfevents.%010lld.%s.%09ld", (long long)now->tv_sec, host,
           now->tv_nsec);
  char *directory = hv_path_join(run, "tensorboard");
  file->path = hv_path_join(run, name);
  hv_status status = directory && file->path ? hv_make_directories(directory) : hv_error_memory("a path");
  free(directory);
  if (status) return status;
  file->file = fopen(file->path, "wbxe");
  return file->file ? HV_OK : hv_error_errno(errno, "cannot make %s", file->path);
}

hv_status hv_event_file_open(const char *run, int64_t step, hv_event_file **out) {
  hv_status status = HV_OK;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  *out = NULL;
  hv_event_file *file = calloc(1, sizeof *file);
  if (!file) return hv_error_memory("the event file");
  fill_crc_table(file->crc_table);
  HV_CHECK(open_file(file, run, &now));
  HV_CHECK(write_head(file, step, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec));
  *out = file;
  file = NULL;
done:
  hv_event_file_close(file);
  return status;
}

void hv_event_file_close(hv_event_file *file) {
  if (!file) return;
  if (file->file) fclose(file->file);
  free(file->path);
  free(file->record);
  free(file);
}

hv_status hv_event_file_write(hv_event_file *file, int64_t step, double time, const hv_scalar *scalars, size_t count) {
  hv_status status = HV_OK;
  Hv__Scalar *values = calloc(count + 1, sizeof *values);
  Hv__Scalar **pointers = calloc(count + 1, sizeof(Hv__Scalar *));
  Hv__Summary summary = HV__SUMMARY__INIT;
  Hv__Event event = HV__EVENT__INIT;
  if (!values || !pointers) {
    status = hv_error_memory("an event");
    goto done;
  }
  for (size_t i = 0; i < count; i++) {
    hv__scalar__init(&values[i]);
    values[i].tag = (char *)(uintptr_t)scalars[i].tag; /* read only */
    values[i].value_case = HV__SCALAR__VALUE_SIMPLE_VALUE;
    values[i].simple_value = scalars[i].value;
    pointers[i] = &values[i];
  }
  summary.n_value = count;
  summary.value = pointers;
  event.wall_time = time;
  event.step = step;
  event.what_case = HV__EVENT__WHAT_SUMMARY;
  event.summary = &summary;
  status = write_event(file, &event);
done:
  free(values);
  free(pointers);
  return status;
}
