#include "tests/train/damaged_demonstrations.h"

#include <hdf5.h>

#include "data/sample_order.h"
#include "tests/check.h"
#include "tests/train/program.h"

/* The training split is demo_0 to demo_9. */
enum { FRAMES = 435, PATH_SIZE = 64 };

int64_t frame_of_sample(int64_t sample) {
  return hv_sample_order(0, 0, FRAMES, sample);
}

/* Opens the pictures of an episode; *frames: how many there are. */
static hid_t open_pictures(hid_t file, int episode, hsize_t *frames) {
  char name[PATH_SIZE];
  hsize_t sizes[4];
  snprintf(name, sizeof name, "/data/demo_%d/obs/agentview_image", episode);
  hid_t set = H5Dopen2(file, name, H5P_DEFAULT), space = H5Dget_space(set);
  assert_int_equal(H5Sget_simple_extent_dims(space, sizes, NULL), 4);
  H5Sclose(space);
  *frames = sizes[0];
  return set;
}

const char *write_damaged_demonstrations(const char *path, int64_t frame) {
  static const char junk[] = "this is not deflate";
  static char name[PATH_SIZE];
  hsize_t frames, at = (hsize_t)frame;
  must_shell("cp '" DEMONSTRATIONS "' '%s' && chmod u+w '%s'", path, path);
  hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
  assert_true(file >= 0);
  int episode = 0;
  hid_t set;
  for (set = open_pictures(file, 0, &frames); at >= frames; set = open_pictures(file, ++episode, &frames)) {
    H5Dclose(set);
    at -= frames;
  }
  assert_true(H5Dwrite_chunk(set, H5P_DEFAULT, 0, (const hsize_t[]){at, 0, 0, 0}, sizeof junk, junk) >= 0);
  H5Dclose(set);
  assert_true(H5Fclose(file) >= 0);
  snprintf(name, sizeof name, "/data/demo_%d", episode);
  return name;
}
