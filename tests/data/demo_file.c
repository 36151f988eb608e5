#include "tests/data/demo_file.h"

#include "tests/check.h"

static hid_t parents(void) {
  hid_t links = H5Pcreate(H5P_LINK_CREATE);
  assert_true(links >= 0 && H5Pset_create_intermediate_group(links, 1) >= 0);
  return links;
}

static void put(hid_t file, const char *path, hid_t type, hid_t memory_type, int rank, const hsize_t *shape,
                const void *values, hid_t properties) {
  hid_t links = parents(), space = H5Screate_simple(rank, shape, NULL);
  hid_t set = H5Dcreate2(file, path, type, space, links, properties, H5P_DEFAULT);
  assert_true(set >= 0);
  if (values) assert_true(H5Dwrite(set, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
  H5Dclose(set);
  H5Sclose(space);
  H5Pclose(links);
}

void put_f64(hid_t file, const char *path, int rank, const hsize_t *shape, const double *values) {
  put(file, path, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, rank, shape, values, H5P_DEFAULT);
}

void put_u8(hid_t file, const char *path, int rank, const hsize_t *shape, const uint8_t *values, hid_t properties) {
  put(file, path, H5T_STD_U8LE, H5T_NATIVE_UINT8, rank, shape, values, properties);
}

void put_names(hid_t file, const char *path, const char *const *names, size_t count) {
  enum { SIZE = 8 };
  char *block = calloc(count + 1, SIZE);
  for (size_t i = 0; i < count; i++) memcpy(block + i * SIZE, names[i], strnlen(names[i], SIZE));
  hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, SIZE);
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  put(file, path, type, type, 1, (hsize_t[]){count}, block, H5P_DEFAULT);
  H5Tclose(type);
  free(block);
}

static void put_attribute(hid_t file, const char *object, const char *name, hid_t type, hid_t memory_type,
                          const void *value) {
  hid_t space = H5Screate(H5S_SCALAR);
  if (H5Aexists_by_name(file, object, name, H5P_DEFAULT) > 0) H5Adelete_by_name(file, object, name, H5P_DEFAULT);
  hid_t id = H5Acreate_by_name(file, object, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(id >= 0 && H5Awrite(id, memory_type, value) >= 0);
  H5Aclose(id);
  H5Sclose(space);
}

void put_text_attribute(hid_t file, const char *object, const char *name, const char *text) {
  hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  put_attribute(file, object, name, type, type, &text);
  H5Tclose(type);
}

void put_integer_attribute(hid_t file, const char *object, const char *name, int64_t value) {
  put_attribute(file, object, name, H5T_STD_I32BE, H5T_NATIVE_INT64, &value);
}

void remove_object(hid_t file, const char *path) {
  assert_true(H5Ldelete(file, path, H5P_DEFAULT) >= 0);
}

void replace(hid_t file, const char *path, hid_t type, int rank, const hsize_t *shape) {
  remove_object(file, path);
  size_t count = 1;
  for (int i = 0; i < rank; i++) count *= (size_t)shape[i];
  void *zeros = calloc(count + 1, H5Tget_size(type));
  put(file, path, type, type, rank, shape, zeros, H5P_DEFAULT);
  free(zeros);
}

int64_t demo_frames(int demo) {
  return 5 + demo;
}

uint8_t demo_pixel(int demo, int64_t frame, size_t byte) {
  return (uint8_t)((size_t)demo * 71 + (size_t)frame * 13 + byte * byte % 251);
}

static double demo_value(int demo, int64_t step, int64_t column) {
  if (column == 6) return (step + demo) % 2 ? 1.0 : 0.0;
  return 0.1 * (double)(demo + 1) * (double)(step + 1) - 0.05 * (double)column;
}

static void put_matrix(hid_t file, int demo, const char *name, int64_t width) {
  char path[128];
  snprintf(path, sizeof path, "/data/demo_%d/%s", demo, name);
  int64_t frames = demo_frames(demo);
  double *values = malloc((size_t)(frames * width) * sizeof *values);
  for (int64_t i = 0; i < frames * width; i++) values[i] = demo_value(demo, i / width, i % width);
  put_f64(file, path, 2, (hsize_t[]){(hsize_t)frames, (hsize_t)width}, values);
  free(values);
}

static void put_images(hid_t file, int demo) {
  char path[128];
  snprintf(path, sizeof path, "/data/demo_%d/obs/front_image", demo);
  int64_t frames = demo_frames(demo);
  uint8_t *pixels = malloc((size_t)frames * DEMO_FRAME);
  for (size_t i = 0; i < (size_t)frames * DEMO_FRAME; i++) {
    pixels[i] = demo_pixel(demo, (int64_t)(i / DEMO_FRAME), i % DEMO_FRAME);
  }
  put_u8(file, path, 4, (hsize_t[]){(hsize_t)frames, DEMO_HEIGHT, DEMO_WIDTH, 3}, pixels, H5P_DEFAULT);
  free(pixels);
}

void write_demo_file(const char *path) {
  hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  assert_true(file >= 0);
  for (int demo = 0; demo < DEMO_COUNT; demo++) {
    char object[64];
    snprintf(object, sizeof object, "/data/demo_%d", demo);
    put_matrix(file, demo, "actions", 7);
    put_matrix(file, demo, "obs/robot0_eef_pos", 3);
    put_matrix(file, demo, "obs/robot0_eef_quat", 4);
    put_matrix(file, demo, "obs/robot0_gripper_qpos", 2);
    put_images(file, demo);
    put_integer_attribute(file, object, "num_samples", demo_frames(demo));
    put_text_attribute(file, object, "ep_meta", "{\"lang\": \"Pick up the cube\"}");
  }
  put_text_attribute(file, "/data", "env_args", "{\"env_name\": \"Lift\"}");
  put_names(file, "/mask/train", (const char *const[]){"demo_2", "demo_0"}, 2);
  put_names(file, "/mask/valid", (const char *const[]){"demo_1"}, 1);
  assert_true(H5Fclose(file) >= 0);
}

void put_raw_frame(hid_t file, hsize_t frame, const void *bytes, size_t size) {
  static const uint8_t pixels[6 * DEMO_FRAME];
  const char *path = "/data/demo_1/obs/front_image";
  remove_object(file, path);
  hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, 4, (hsize_t[]){1, DEMO_HEIGHT, DEMO_WIDTH, 3});
  H5Pset_deflate(properties, 4);
  put_u8(file, path, 4, (hsize_t[]){6, DEMO_HEIGHT, DEMO_WIDTH, 3}, pixels, properties);
  hid_t set = H5Dopen2(file, path, H5P_DEFAULT);
  assert_true(H5Dwrite_chunk(set, H5P_DEFAULT, 0, (hsize_t[]){frame, 0, 0, 0}, size, bytes) >= 0);
  H5Dclose(set);
  H5Pclose(properties);
}
