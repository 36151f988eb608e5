/* Reading mapped files ahead in a thread: after waiting for a range its pages are in memory (mincore), and waiting and
 * closing always return. */
#include "core/io/read_ahead.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "tests/check.h"

enum { SIZE = 20 << 20 };

static hv_mapping write_and_drop(const char *path) {
  hv_mapping file;
  uint8_t *bytes = malloc(SIZE);
  assert_non_null(bytes);
  for (int i = 0; i < SIZE; i++) bytes[i] = (uint8_t)(i * 7 + i / 4096);
  assert_ok(hv_write_file_atomic(path, bytes, SIZE));
  free(bytes);
  int fd = open(path, O_RDONLY);
  assert_true(fd >= 0);
  (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* not every file system does */
  close(fd);
  assert_ok(hv_map_file(path, &file));
  return file;
}

/* Whether every page of the range is in memory. */
static int present(const uint8_t *data, size_t size) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), skew = (uintptr_t)data % page;
  size_t pages = (size + skew + page - 1) / page;
  unsigned char flags[pages];
  if (mincore((void *)((uintptr_t)data - skew), size + skew, flags) != 0) return 0;
  for (size_t i = 0; i < pages; i++)
    if (!(flags[i] & 1)) return 0;
  return 1;
}

static void what_was_waited_for_is_in_memory(void **state) {
  hv_mapping file = write_and_drop(in_folder(*state, "file"));
  const hv_mapped_range ranges[] = {
      {file.data + 13, 100}, {file.data + 113, 0}, {file.data + 113, 9000001}, {file.data + 15000001, SIZE - 15000001}};
  hv_read_ahead *ahead;
  assert_ok(hv_read_ahead_open(ranges, 4, &ahead));
  for (size_t i = 0; i < 4; i++) {
    hv_read_ahead_wait(ahead, i);
    if (ranges[i].size > 0) assert_true(present(ranges[i].data, ranges[i].size));
  }
  hv_read_ahead_wait(ahead, 0);
  hv_read_ahead_close(ahead);
  for (int i = 0; i < SIZE; i += 1013) assert_int_equal(file.data[i], (uint8_t)(i * 7 + i / 4096));
  hv_unmap(&file);
}

static void it_can_be_closed_at_any_time(void **state) {
  hv_mapping file = write_and_drop(in_folder(*state, "closed"));
  hv_mapped_range ranges[] = {{file.data, SIZE / 2}, {file.data + SIZE / 2, SIZE / 2}};
  hv_read_ahead *ahead;
  for (int waits = 0; waits < 20; waits++) {
    assert_ok(hv_read_ahead_open(ranges, 2, &ahead));
    if (waits % 2) hv_read_ahead_wait(ahead, 0);
    hv_read_ahead_close(ahead);
  }
  assert_ok(hv_read_ahead_open(ranges, 0, &ahead));
  hv_read_ahead_close(ahead);
  hv_read_ahead_close(NULL);
  hv_unmap(&file);
}

/* The file was truncated after it was mapped: the reading thread does not crash on the pages that are gone. */
static void a_part_that_is_gone_ends_no_program(void **state) {
  const char *path = in_folder(*state, "shortened");
  hv_mapping file = write_and_drop(path);
  assert_int_equal(truncate(path, SIZE / 4), 0);
  hv_mapped_range range = {file.data, SIZE};
  hv_read_ahead *ahead;
  assert_ok(hv_read_ahead_open(&range, 1, &ahead));
  hv_read_ahead_wait(ahead, 0);
  hv_read_ahead_close(ahead);
  hv_unmap(&file);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_was_waited_for_is_in_memory),
      cmocka_unit_test(it_can_be_closed_at_any_time),
      cmocka_unit_test(a_part_that_is_gone_ends_no_program),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
