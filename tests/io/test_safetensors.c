/* Safetensors: what is written reads back, a fixture that the Python package wrote is read, files are cut into shards
 * at a limit, and broken files are refused by name. */
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>

#include "core/base/text.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "core/io/safetensors_shards.h"
#include "tests/check.h"

/* Builds the bytes of a file from a header and a number of data bytes (0, 1, 2, …). */
static uint8_t *build(const char *header, size_t data_size, size_t *size) {
  size_t length = strlen(header);
  *size = 8 + length + data_size;
  uint8_t *bytes = malloc(*size);
  assert_non_null(bytes);
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((uint64_t)length >> (8 * i));
  for (size_t i = 0; i < length; i++) bytes[8 + i] = (uint8_t)header[i];
  for (size_t i = 0; i < data_size; i++) bytes[8 + length + i] = (uint8_t)i;
  return bytes;
}

static hv_status open_header(const char *header, size_t data_size, hv_safetensors **out, uint8_t **bytes) {
  size_t size;
  *bytes = build(header, data_size, &size);
  return hv_safetensors_open_memory(*bytes, size, "file.safetensors", out);
}

static void broken_headers_are_refused(void **state) {
  (void)state;
  static const struct {
    const char *header;
    size_t data_size;
    const char *message;
  } cases[] = {
      {"", 0, "not a safetensors file"},
      {"[]", 0, "must begin with '{'"},
      {"{\"a\":", 0, "not valid JSON"},
      {"{\"a\":1}", 0, "tensor a: must be a mapping, not an integer"},
      {"{\"a\":{}}", 0, "\"dtype\" must be a string"},
      {"{\"a\":{\"dtype\":\"F32\"}}", 0, "\"shape\" must be a list"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "\"data_offsets\" must be a list of two integers"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "must hold integers"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "not negative"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 4, "outside the file's 4 bytes"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "outside"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "outside"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "hold 4 bytes, but F32 [2] needs 8"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "9 dimensions"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4, "64 bits"},
      {"{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0, "more bytes than 64"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}", 4, "not valid JSON"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
       "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
       3, "tensors a and b overlap"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
       "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
       4, "overlap"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, "1 bytes in front of tensor a"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 4, "3 bytes at the end"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
       "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
       1, "duplicate"},
      {"{\"__metadata__\":3}", 0, "__metadata__ must be a mapping"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    hv_safetensors *file;
    uint8_t *bytes;
    assert_error(open_header(cases[i].header, cases[i].data_size, &file, &bytes), "file.safetensors", cases[i].message);
    assert_null(file);
    free(bytes);
  }
}

static void lengths_that_lie_are_refused(void **state) {
  (void)state;
  size_t size;
  uint8_t *bytes = build("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, &size);
  hv_safetensors *file;
  for (size_t cut = 0; cut < size; cut++) {
    assert_error(hv_safetensors_open_memory(bytes, cut, "cut.safetensors", &file), "cut.safetensors");
  }
  static const uint64_t lengths[] = {UINT64_MAX, INT64_MAX, 1ull << 40, (100u << 20) + 1, 1000};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    for (int b = 0; b < 8; b++) bytes[b] = (uint8_t)(lengths[i] >> (8 * b));
    assert_error(hv_safetensors_open_memory(bytes, size, "long.safetensors", &file), "long.safetensors", "truncated");
  }
  free(bytes);
}

static void an_unknown_dtype_matters_only_to_who_asks(void **state) {
  (void)state;
  hv_safetensors *file;
  uint8_t *bytes;
  const hv_file_tensor *tensor;
  assert_ok(open_header("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[0,2]},"
                        "\"b\":{\"dtype\":\"BOOL\",\"shape\":[],\"data_offsets\":[2,3]},"
                        "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[2,2]}}   ",
                        3, &file, &bytes));
  assert_int_equal(hv_safetensors_count(file), 3);
  assert_error(hv_safetensors_require(file, "a", &tensor), "file.safetensors", "tensor a", "F8_E4M3");
  assert_error(hv_safetensors_require(file, "c", &tensor), "file.safetensors", "no tensor c");
  assert_ok(hv_safetensors_require(file, "b", &tensor));
  assert_int_equal(tensor->rank, 0);
  assert_int_equal(tensor->count, 1);
  assert_int_equal(*(const uint8_t *)tensor->data, 2);
  assert_ok(hv_safetensors_require(file, "empty", &tensor));
  assert_int_equal(tensor->count, 0);
  hv_safetensors_close(file);
  free(bytes);
}

static void what_is_written_reads_back(void **state) {
  const char *path = in_folder(*state, "out.safetensors");
  const float values[6] = {1, -2, 3.5f, 0, INFINITY, 1e-40f};
  const uint16_t halves[3] = {0x3c00, 0xc000, 0x7bff};
  const int32_t ids[2] = {-1, 7};
  hv_safetensors_writer *writer;
  assert_ok(hv_safetensors_writer_open(path, &writer));
  assert_ok(hv_safetensors_writer_declare(writer, "matrix", HV_F32, 2, (const int64_t[]){2, 3}));
  assert_ok(hv_safetensors_writer_declare(writer, "ids", HV_I32, 1, (const int64_t[]){2}));
  assert_ok(hv_safetensors_writer_declare(writer, "half", HV_F16, 1, (const int64_t[]){3}));
  assert_ok(hv_safetensors_writer_declare(writer, "none", HV_F32, 1, (const int64_t[]){0}));
  assert_error(hv_safetensors_writer_declare(writer, "ids", HV_I32, 0, NULL), "ids", "twice");
  assert_ok(hv_safetensors_writer_write(writer, values, 5));
  assert_false(hv_file_exists(path));
  assert_ok(hv_safetensors_writer_write(writer, (const char *)values + 5, sizeof values - 5));
  assert_ok(hv_safetensors_writer_write(writer, ids, sizeof ids));
  assert_ok(hv_safetensors_writer_write(writer, halves, sizeof halves));
  assert_ok(hv_safetensors_writer_commit(writer));

  hv_safetensors *file;
  const hv_file_tensor *tensor;
  assert_ok(hv_safetensors_open(path, &file));
  assert_int_equal(hv_safetensors_count(file), 4);
  assert_string_equal(hv_safetensors_get(file, 0)->name, "half");
  assert_ok(hv_safetensors_require(file, "matrix", &tensor));
  assert_int_equal((uintptr_t)tensor->data % 8, 0);
  assert_memory_equal(tensor->data, values, sizeof values);
  assert_int_equal(tensor->shape[0], 2);
  assert_int_equal(tensor->shape[1], 3);
  assert_ok(hv_safetensors_require(file, "half", &tensor));
  float read[2];
  hv_file_tensor_read_f32(tensor, 1, 2, read);
  assert_float_equal(read[0], -2, 0);
  assert_float_equal(read[1], 65504, 0);
  assert_ok(hv_safetensors_require(file, "ids", &tensor));
  hv_file_tensor_read_f32(tensor, 0, 2, read);
  assert_float_equal(read[0], -1, 0);
  hv_safetensors_close(file);
}

static void an_incomplete_file_never_appears(void **state) {
  const char *path = in_folder(*state, "partial.safetensors");
  hv_safetensors_writer *writer;
  assert_ok(hv_safetensors_writer_open(path, &writer));
  assert_ok(hv_safetensors_writer_declare(writer, "a", HV_F32, 1, (const int64_t[]){2}));
  assert_ok(hv_safetensors_writer_write(writer, "1234", 4));
  assert_error(hv_safetensors_writer_write(writer, "12345", 5), "8 bytes declared");
  assert_error(hv_safetensors_writer_commit(writer), path, "8 bytes", "4 written");
  assert_false(hv_file_exists(path));
  assert_ok(hv_safetensors_writer_open(path, &writer));
  hv_safetensors_writer_abort(writer);
  assert_false(hv_file_exists(path));
  assert_error(hv_safetensors_writer_open(in_folder(*state, "no/such/folder/x"), &writer), "no/such/folder");
}

/* A sparse file, which takes no room on the disk, with offsets that need more than 32 bits. */
static void a_file_of_six_gigabytes_is_read(void **state) {
  const char *path = in_folder(*state, "huge.safetensors");
  static const char header[] = "{\"big\":{\"dtype\":\"F32\",\"shape\":[1610612736],\"data_offsets\":[0,6442450944]},"
                               "\"last\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6442450944,6442450948]}}";
  size_t size;
  uint8_t *bytes = build(header, 0, &size);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  assert_true(fd >= 0);
  assert_int_equal(pwrite(fd, bytes, size, 0), size);
  assert_int_equal(pwrite(fd, "LAST", 4, (off_t)size + 6442450944), 4);
  free(bytes);
  hv_safetensors *file;
  const hv_file_tensor *tensor;
  assert_ok(hv_safetensors_open(path, &file));
  assert_ok(hv_safetensors_require(file, "last", &tensor));
  assert_memory_equal(tensor->data, "LAST", 4);
  assert_ok(hv_safetensors_require(file, "big", &tensor));
  float value = 1;
  hv_file_tensor_read_f32(tensor, tensor->count - 1, 1, &value);
  assert_float_equal(value, 0, 0);
  hv_safetensors_close(file);
  assert_int_equal(ftruncate(fd, (off_t)size + 6442450944), 0);
  close(fd);
  assert_error(hv_safetensors_open(path, &file), path, "tensor last", "outside");
}

static void write_shard(const char *folder, const char *name, const char *tensor) {
  hv_safetensors_writer *writer;
  assert_ok(hv_safetensors_writer_open(in_folder(folder, name), &writer));
  assert_ok(hv_safetensors_writer_declare(writer, tensor, HV_U8, 1, (const int64_t[]){3}));
  assert_ok(hv_safetensors_writer_write(writer, "abc", 3));
  assert_ok(hv_safetensors_writer_commit(writer));
}

static void shards_are_one_model(void **state) {
  const char *folder = in_folder(*state, "sharded");
  assert_ok(hv_make_directories(folder));
  write_text(in_folder(folder, "model.safetensors.index.json"),
             "{\"metadata\":{},\"weight_map\":{\"x\":\"model-1.safetensors\",\"y\":\"model-2.safetensors\","
             "\"z\":\"model-3.safetensors\"}}");
  hv_safetensors *file;
  write_shard(folder, "model-1.safetensors", "x");
  assert_error(hv_safetensors_open(folder, &file), "2 of 3 files", "model-2.safetensors", "model-3.safetensors");
  write_shard(folder, "model-2.safetensors", "y");
  write_shard(folder, "model-3.safetensors", "other");
  assert_error(hv_safetensors_open(folder, &file), "1 tensors are not where", "z should be in model-3.safetensors");
  write_shard(folder, "model-3.safetensors", "x");
  assert_error(hv_safetensors_open(folder, &file), "tensor x is in both");
  write_shard(folder, "model-3.safetensors", "z");
  assert_ok(hv_safetensors_open(folder, &file));
  assert_int_equal(hv_safetensors_count(file), 3);
  const hv_file_tensor *tensor = hv_safetensors_find(file, "y");
  assert_non_null(tensor);
  assert_memory_equal(tensor->data, "abc", 3);
  assert_non_null(strstr(tensor->file, "model-2.safetensors"));
  hv_safetensors_close(file);
}

/* Tensors of bytes, one of them without dimensions, and the number of the file that each goes to if a file takes at
 * most eight bytes. */
static const struct {
  const char *name;
  int32_t rank;
  int64_t count;
  int file;
} cut[] = {{"a", 1, 3, 1},   {"b", 1, 5, 1}, {"none", 1, 0, 1},  {"c", 1, 1, 2},
           {"one", 0, 1, 2}, {"d", 1, 7, 3}, {"wide", 2, 20, 4}, {"last", 1, 0, 5}};
enum { CUT = sizeof cut / sizeof *cut, CUT_BYTES = 37 };

static hv_safetensors_shards *declare_cut(const char *folder, int64_t limit) {
  hv_safetensors_shards *shards;
  assert_ok(hv_safetensors_shards_open(folder, limit, &shards));
  for (int i = 0; i < CUT; i++) {
    const int64_t shape[] = {cut[i].rank == 2 ? cut[i].count / 4 : cut[i].count, 4};
    assert_ok(hv_safetensors_shards_declare(shards, cut[i].name, HV_U8, cut[i].rank, shape));
  }
  return shards;
}

static void expect_cut(const char *folder, const uint8_t *data, bool sharded) {
  hv_safetensors *file;
  assert_ok(hv_safetensors_open(folder, &file));
  assert_int_equal(hv_safetensors_count(file), CUT);
  for (int i = 0; i < CUT; i++) {
    const hv_file_tensor *tensor;
    char name[64] = "/model.safetensors";
    assert_ok(hv_safetensors_require(file, cut[i].name, &tensor));
    assert_int_equal(tensor->rank, cut[i].rank);
    assert_int_equal(tensor->size, cut[i].count);
    assert_memory_equal(tensor->data, data, tensor->size);
    data += tensor->size;
    if (sharded) snprintf(name, sizeof name, "/model-%05d-of-00005.safetensors", cut[i].file);
    assert_string_equal(strrchr(tensor->file, '/'), name);
  }
  hv_safetensors_close(file);
}

static void tensors_are_cut_into_files_at_the_limit(void **state) {
  uint8_t data[CUT_BYTES];
  for (int i = 0; i < CUT_BYTES; i++) data[i] = (uint8_t)(i + 1);
  for (int sharded = 0; sharded < 2; sharded++) {
    const char *folder = in_folder(*state, sharded ? "cut" : "whole");
    assert_ok(hv_make_directories(folder));
    hv_safetensors_shards *shards = declare_cut(folder, sharded ? 8 : 0);
    for (size_t at = 0; at < CUT_BYTES; at += 4) {
      assert_ok(hv_safetensors_shards_write(shards, data + at, CUT_BYTES - at < 4 ? CUT_BYTES - at : 4));
    }
    assert_ok(hv_safetensors_shards_commit(shards));
    expect_cut(folder, data, sharded);
  }
  json_t *index;
  assert_ok(hv_json_load(in_folder(*state, "cut/model.safetensors.index.json"), &index));
  const json_t *total = json_object_get(json_object_get(index, "metadata"), "total_size");
  assert_int_equal(json_integer_value(total), CUT_BYTES);
  json_decref(index);
}

/* No empty file is written before the first tensor, though it is larger than the limit. */
static void a_tensor_beyond_the_limit_has_a_file_of_its_own(void **state) {
  static const uint8_t data[2 * CUT_BYTES] = {0};
  const char *folder = in_folder(*state, "beyond");
  hv_safetensors_shards *shards;
  assert_ok(hv_make_directories(folder));
  assert_ok(hv_safetensors_shards_open(folder, CUT_BYTES / 2, &shards));
  assert_ok(hv_safetensors_shards_declare(shards, "a", HV_U8, 1, (const int64_t[]){CUT_BYTES}));
  assert_ok(hv_safetensors_shards_declare(shards, "b", HV_U8, 1, (const int64_t[]){CUT_BYTES}));
  assert_ok(hv_safetensors_shards_write(shards, data, sizeof data));
  assert_ok(hv_safetensors_shards_commit(shards));
  assert_true(hv_file_exists(in_folder(*state, "beyond/model-00001-of-00002.safetensors")));
  assert_true(hv_file_exists(in_folder(*state, "beyond/model-00002-of-00002.safetensors")));
}

static void files_want_the_data_that_was_declared(void **state) {
  static const uint8_t data[CUT_BYTES + 1] = {0};
  const char *folder = in_folder(*state, "more");
  assert_ok(hv_make_directories(folder));
  hv_safetensors_shards *shards = declare_cut(folder, 8);
  assert_error(hv_safetensors_shards_declare(shards, "bad", HV_U8, 1, (const int64_t[]){-1}), "bad", "out of range");
  assert_error(hv_safetensors_shards_declare(shards, "bad", HV_F32, 1, (const int64_t[]){INT64_MAX}), "out of range");
  assert_error(hv_safetensors_shards_write(shards, data, CUT_BYTES + 1), "more data than was declared");
  hv_safetensors_shards_abort(shards);
  shards = declare_cut(folder, 8);
  assert_ok(hv_safetensors_shards_write(shards, data, CUT_BYTES - 1));
  assert_error(hv_safetensors_shards_commit(shards), "20 bytes of data were declared, 19 written");
}

static void an_index_stays_in_its_directory(void **state) {
  const char *folder = in_folder(*state, "escaping");
  assert_ok(hv_make_directories(folder));
  hv_safetensors *file;
  assert_error(hv_safetensors_open(folder, &file), folder, "neither model.safetensors nor");
  static const char *const maps[] = {"{\"weight_map\":{\"x\":\"../secret.safetensors\"}}",
                                     "{\"weight_map\":{\"x\":\"/etc/passwd\"}}",
                                     "{\"weight_map\":{\"x\":3}}",
                                     "{\"weight_map\":{}}",
                                     "{}",
                                     "[]"};
  for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
    write_text(in_folder(folder, "model.safetensors.index.json"), maps[i]);
    assert_error(hv_safetensors_open(folder, &file), "index.json", "weight_map");
  }
}

static void files_that_are_something_else_are_named(void **state) {
  hv_safetensors *file;
  assert_error(hv_safetensors_open(in_folder(*state, "absent.safetensors"), &file), "absent.safetensors");
  const char *path = in_folder(*state, "pointer.safetensors");
  write_text(path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  assert_error(hv_safetensors_open(path, &file), path, "Git LFS pointer", "git lfs pull");
  write_text(path, "<!DOCTYPE html>");
  assert_error(hv_safetensors_open(path, &file), path, "web page");
  write_text(path, "version https://git");
  assert_error(hv_safetensors_open(path, &file), path, "not a safetensors file");
  write_text(path, "");
  assert_error(hv_safetensors_open(path, &file), path, "0 bytes");
}

static void files_of_pytorchs_library_are_read(void **state) {
  (void)state;
  hv_safetensors *file;
  const hv_file_tensor *tensor;
  assert_ok(hv_safetensors_open(HVLA_SOURCE_DIR "/tests/fixtures/parity/one_arm/model.safetensors", &file));
  assert_true(hv_safetensors_count(file) > 50);
  assert_ok(hv_safetensors_require(file, "llm_backbone.llm.model.embed_tokens.weight", &tensor));
  assert_int_equal(tensor->dtype, HV_F32);
  assert_int_equal(tensor->rank, 2);
  hv_safetensors_close(file);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(broken_headers_are_refused),
      cmocka_unit_test(lengths_that_lie_are_refused),
      cmocka_unit_test(an_unknown_dtype_matters_only_to_who_asks),
      cmocka_unit_test(what_is_written_reads_back),
      cmocka_unit_test(an_incomplete_file_never_appears),
      cmocka_unit_test(a_file_of_six_gigabytes_is_read),
      cmocka_unit_test(shards_are_one_model),
      cmocka_unit_test(tensors_are_cut_into_files_at_the_limit),
      cmocka_unit_test(a_tensor_beyond_the_limit_has_a_file_of_its_own),
      cmocka_unit_test(files_want_the_data_that_was_declared),
      cmocka_unit_test(an_index_stays_in_its_directory),
      cmocka_unit_test(files_that_are_something_else_are_named),
      cmocka_unit_test(files_of_pytorchs_library_are_read),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
