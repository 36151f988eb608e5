/* Camera frames: they read the same in every storage layout of HDF5, from several threads, within the limit of the
 * cache, and with the expected number of reads. */

#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/thread_pool.h"
#include "data/hdf5_file.h"
#include "tests/check.h"
#include "tests/data/demo_file.h"

enum { FRAMES = 20 };

static const char *path;

static uint8_t pixel(int64_t frame, size_t byte) {
  return demo_pixel(3, frame, byte);
}

typedef struct storage {
  const char *name; /* the name of the data set */
  hsize_t chunk[4]; /* its size; 0: not chunked */
  bool compact, deflate, shuffle, checksum;
} storage;

static const storage storages[] = {
    {.name = "contiguous"},
    {.name = "compact", .compact = true},
    {.name = "frame_chunks", .chunk = {1, DEMO_HEIGHT, DEMO_WIDTH, 3}},
    {.name = "frame_chunks_gzip", .chunk = {1, DEMO_HEIGHT, DEMO_WIDTH, 3}, .deflate = true},
    {.name = "frame_chunks_shuffle", .chunk = {1, DEMO_HEIGHT, DEMO_WIDTH, 3}, .shuffle = true, .deflate = true},
    {.name = "frame_chunks_checksum", .chunk = {1, DEMO_HEIGHT, DEMO_WIDTH, 3}, .deflate = true, .checksum = true},
    {.name = "parts_of_frames", .chunk = {1, 3, 4, 3}, .deflate = true},
    {.name = "guessed", .chunk = {7, 3, 4, 2}, .deflate = true},
    {.name = "guessed_as_it_is", .chunk = {7, 3, 4, 2}},
    {.name = "parts_as_they_are", .chunk = {1, 3, 4, 1}},
    {.name = "whole_episode", .chunk = {FRAMES, DEMO_HEIGHT, DEMO_WIDTH, 3}, .deflate = true},
};
enum { STORAGES = sizeof storages / sizeof *storages };

static void write_storage(hid_t file, const storage *s, const uint8_t *pixels) {
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  if (s->compact) H5Pset_layout(properties, H5D_COMPACT);
  if (s->chunk[0]) H5Pset_chunk(properties, 4, s->chunk);
  if (s->shuffle) H5Pset_shuffle(properties);
  if (s->deflate) H5Pset_deflate(properties, 4);
  if (s->checksum) H5Pset_fletcher32(properties);
  put_u8(file, s->name, 4, (hsize_t[]){FRAMES, DEMO_HEIGHT, DEMO_WIDTH, 3}, pixels, properties);
  H5Pclose(properties);
}

/* The file has a user block at its beginning, which shifts every address in it. */
static int enter(void **state) {
  if (make_folder(state)) return -1;
  path = in_folder(*state, "frames.hdf5");
  uint8_t *pixels = malloc((size_t)FRAMES * DEMO_FRAME);
  for (size_t i = 0; i < (size_t)FRAMES * DEMO_FRAME; i++) {
    pixels[i] = pixel((int64_t)(i / DEMO_FRAME), i % DEMO_FRAME);
  }
  hid_t creation = H5Pcreate(H5P_FILE_CREATE);
  H5Pset_userblock(creation, 512);
  hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, creation, H5P_DEFAULT);
  for (size_t i = 0; i < STORAGES; i++) write_storage(file, &storages[i], pixels);
  H5Pclose(creation);
  free(pixels);
  return H5Fclose(file) < 0;
}

static hv_hdf5 *open_file(void) {
  hv_hdf5 *file;
  assert_ok(hv_hdf5_open(path, &file));
  return file;
}

static hv_frames *open_frames(hv_hdf5 *file, const char *name) {
  char object[64];
  snprintf(object, sizeof object, "/%s", name);
  hv_frames *frames;
  assert_ok(hv_hdf5_open_frames(file, object, &frames));
  return frames;
}

static bool frame_is_right(hv_frames *frames, int64_t index) {
  uint8_t rgb[DEMO_FRAME];
  hv_status status = frames->read(frames, index, rgb);
  bool right = !status;
  for (size_t i = 0; right && i < DEMO_FRAME; i++) right = rgb[i] == pixel(index, i);
  hv_status_free(status);
  return right;
}

static void all_storages_read_the_same(void **state) {
  (void)state;
  hv_hdf5 *file = open_file();
  for (size_t s = 0; s < STORAGES; s++) {
    hv_frames *frames = open_frames(file, storages[s].name);
    assert_int_equal(frames->count, FRAMES);
    assert_int_equal(frames->width, DEMO_WIDTH);
    assert_int_equal(frames->height, DEMO_HEIGHT);
    for (int64_t i = FRAMES - 1; i >= 0; i--) {
      if (!frame_is_right(frames, i)) fail_msg("%s: frame %d is wrong", storages[s].name, (int)i);
    }
    uint8_t rgb[DEMO_FRAME];
    assert_error(frames->read(frames, FRAMES, rgb), "frame 20");
    hv_frames_close(frames);
  }
  hv_hdf5_close(file);
}

/* The file is truncated while it is open, as if somebody copied it anew. */
static void a_frame_that_is_no_longer_there_is_told(void **state) {
  (void)state;
  uint8_t rgb[DEMO_FRAME];
  hv_hdf5 *file = open_file();
  hv_frames *frames = open_frames(file, "contiguous");
  assert_true(frame_is_right(frames, 1));
  assert_int_equal(truncate(path, 4096), 0);
  assert_error(frames->read(frames, FRAMES - 1, rgb), "frames.hdf5: /contiguous: frame 19: lies beyond the end");
  hv_frames_close(frames);
  hv_hdf5_close(file);
}

/* In a damaged file, a chunk is wider than the bytes that are stored of it: HDF5 would copy the memory behind them. */
static void a_chunk_is_no_larger_than_what_is_stored_of_it(void **state) {
  (void)state;
  static const uint8_t width[] = {7, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0};
  hv_mapping file;
  assert_ok(hv_map_file(path, &file));
  uint8_t *bytes = malloc(file.size), *at = NULL;
  assert_non_null(bytes);
  memcpy(bytes, file.data, file.size);
  for (uint8_t *from = bytes; (from = memmem(from, file.size - (size_t)(from - bytes), width, sizeof width)); from++) {
    at = from; /* in both data sets with this chunk, one of which is compressed */
    at[8 + 2] = 44;
  }
  assert_non_null(at);
  assert_ok(hv_write_file_atomic(path, bytes, file.size));
  free(bytes);
  hv_unmap(&file);
  hv_hdf5 *damaged = open_file();
  hv_frames *frames;
  uint8_t rgb[DEMO_FRAME];
  hv_status status = hv_hdf5_open_frames(damaged, "/guessed_as_it_is", &frames);
  if (status) { /* HDF5 1.14 counts the chunks of that size, and finds fewer than there are */
    assert_error(status, "/guessed_as_it_is: was declared but never written");
  } else {
    assert_error(frames->read(frames, 0, rgb), "/guessed_as_it_is: its chunk at row 0 is stored in");
    hv_frames_close(frames);
  }
  hv_hdf5_close(damaged);
}

/* Counts reads. The pread below replaces the C library's, so that HDF5's own reads are counted too. */
static atomic_int reads;

ssize_t pread(int fd, void *out, size_t size, off_t at) {
  reads++;
  return syscall(SYS_pread64, fd, out, size, at);
}

/* Frames that are cut into several chunks need one read a chunk. HDF5 itself reads byte by byte if it has no room for a
 * chunk in its cache. */
static void frames_cut_up_are_read_by_chunks(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int chunks; /* in all frames together */
  } cases[] = {{"guessed_as_it_is", 3 * 3 * 3 * 2}, {"parts_as_they_are", FRAMES * 3 * 3 * 3}};
  for (int i = 0; i < 2; i++) {
    hv_hdf5 *file = open_file();
    hv_frames *frames = open_frames(file, cases[i].name);
    reads = 0;
    for (int64_t t = 0; t < FRAMES; t++) assert_true(frame_is_right(frames, t));
    assert_in_range(reads, cases[i].chunks, cases[i].chunks + 40);
    hv_frames_close(frames);
    hv_hdf5_close(file);
  }
}

/* Two data sets that can only be read whole: both stay in the cache if there is room, else each evicts the other. */
static void cache_keeps_to_its_limit(void **state) {
  (void)state;
  const size_t one = (size_t)FRAMES * DEMO_FRAME;
  hv_hdf5 *file = open_file();
  hv_frames *first = open_frames(file, "guessed"), *second = open_frames(file, "whole_episode");
  hv_hdf5_set_cache(file, 2 * one);
  assert_true(frame_is_right(first, 0) && frame_is_right(second, 0));
  assert_int_equal(hv_hdf5_cached_bytes(file), 2 * one);
  hv_frames_close(second);
  assert_int_equal(hv_hdf5_cached_bytes(file), one);
  second = open_frames(file, "whole_episode");
  hv_hdf5_set_cache(file, 2 * one - 1);
  for (int64_t i = 0; i < FRAMES; i++) {
    assert_true(frame_is_right(first, i));
    assert_true(frame_is_right(second, FRAMES - 1 - i));
    assert_int_equal(hv_hdf5_cached_bytes(file), one);
  }
  hv_hdf5_set_cache(file, 1);
  assert_true(frame_is_right(first, 1));
  assert_int_equal(hv_hdf5_cached_bytes(file), one);
  hv_frames_close(first);
  assert_true(frame_is_right(second, 3));
  hv_frames_close(second);
  hv_hdf5_close(file);
}

typedef struct reader {
  hv_job job;
  hv_frames **frames;
  int wrong;
} reader;

static void read_all_frames(hv_job *job, int worker) {
  (void)worker;
  reader *self = (reader *)job;
  for (int64_t i = 0; i < FRAMES; i++) {
    for (size_t s = 0; s < STORAGES; s++) self->wrong += !frame_is_right(self->frames[s], i);
  }
}

static void threads_read_at_once(void **state) {
  (void)state;
  enum { READERS = 8 };
  hv_hdf5 *file = open_file();
  hv_frames *frames[STORAGES];
  for (size_t s = 0; s < STORAGES; s++) frames[s] = open_frames(file, storages[s].name);
  hv_thread_pool *pool;
  assert_ok(hv_thread_pool_open(4, &pool));
  assert_int_equal(hv_thread_pool_threads(pool), 4);
  reader readers[READERS] = {0};
  for (int i = 0; i < READERS; i++) {
    readers[i] = (reader){.job = {.run = read_all_frames}, .frames = frames};
    hv_thread_pool_submit(pool, &readers[i].job);
  }
  hv_thread_pool_close(pool);
  for (int i = 0; i < READERS; i++) assert_int_equal(readers[i].wrong, 0);
  for (size_t s = 0; s < STORAGES; s++) hv_frames_close(frames[s]);
  hv_hdf5_close(file);
}

/* A job that reads one data set over and over, which evicts the other from a cache that has room for one. */
typedef struct pusher {
  hv_job job;
  hv_frames *frames;
  atomic_bool stop;
  int wrong;
} pusher;

static void push(hv_job *job, int worker) {
  pusher *self = (pusher *)job;
  (void)worker;
  for (int64_t t = 0; !self->stop; t = (t + 1) % FRAMES) self->wrong += !frame_is_right(self->frames, t);
}

static void frames_are_closed_while_others_are_read(void **state) {
  (void)state;
  hv_hdf5 *file = open_file();
  hv_hdf5_set_cache(file, 1);
  hv_thread_pool *pool;
  assert_ok(hv_thread_pool_open(1, &pool));
  pusher other = {.job = {.run = push}, .frames = open_frames(file, "guessed")};
  hv_thread_pool_submit(pool, &other.job);
  for (int i = 0; i < 500; i++) {
    hv_frames *frames = open_frames(file, "whole_episode");
    assert_true(frame_is_right(frames, i % FRAMES));
    hv_frames_close(frames);
  }
  other.stop = true;
  hv_thread_pool_close(pool);
  assert_int_equal(other.wrong, 0);
  hv_frames_close(other.frames);
  assert_int_equal(hv_hdf5_cached_bytes(file), 0);
  hv_hdf5_close(file);
}

int main(void) {
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(all_storages_read_the_same, enter, remove_folder),
      cmocka_unit_test_setup_teardown(a_frame_that_is_no_longer_there_is_told, enter, remove_folder),
      cmocka_unit_test_setup_teardown(frames_cut_up_are_read_by_chunks, enter, remove_folder),
      cmocka_unit_test_setup_teardown(a_chunk_is_no_larger_than_what_is_stored_of_it, enter, remove_folder),
      cmocka_unit_test_setup_teardown(cache_keeps_to_its_limit, enter, remove_folder),
      cmocka_unit_test_setup_teardown(threads_read_at_once, enter, remove_folder),
      cmocka_unit_test_setup_teardown(frames_are_closed_while_others_are_read, enter, remove_folder),
  };
  return cmocka_run_group_tests_name("frames", tests, NULL, NULL);
}
