/* Writes small robomimic files for tests with the HDF5 library, and damages them. */
#ifndef HV_TESTS_DATA_DEMO_FILE_H
#define HV_TESTS_DATA_DEMO_FILE_H

#include <hdf5.h>
#include <stddef.h>
#include <stdint.h>

enum { DEMO_COUNT = 3, DEMO_WIDTH = 10, DEMO_HEIGHT = 8, DEMO_FRAME = DEMO_WIDTH * DEMO_HEIGHT * 3 };

/* Writes a file with demo_0, demo_1 and demo_2 of 5, 6 and 7 steps. It has actions (T, 7), a state of 9 numbers,
 * obs/front_image, num_samples, the instruction "Pick up the cube", and the masks train (demo_0, demo_2) and valid
 * (demo_1). */
void write_demo_file(const char *path);
int64_t demo_frames(int demo);
uint8_t demo_pixel(int demo, int64_t frame, size_t byte);

/* These create a data set or attribute, and missing groups on its path. If the library refuses, the test fails. */
void put_f64(hid_t file, const char *path, int rank, const hsize_t *shape, const double *values);
void put_u8(hid_t file, const char *path, int rank, const hsize_t *shape, const uint8_t *values, hid_t properties);
void put_names(hid_t file, const char *path, const char *const *names, size_t count);
void put_text_attribute(hid_t file, const char *object, const char *name, const char *text);
void put_integer_attribute(hid_t file, const char *object, const char *name, int64_t value);
void remove_object(hid_t file, const char *path);
/* Replaces a data set by one of another type and shape, filled with zeros. */
void replace(hid_t file, const char *path, hid_t type, int rank, const hsize_t *shape);

/* Stores the six frames of demo_1 again, each in a deflated chunk of its own, except that the chunk of `frame` (0 to 5)
 * holds these bytes, stored as they are. */
void put_raw_frame(hid_t file, hsize_t frame, const void *bytes, size_t size);

#endif
