/* The .pt files that an export writes: the zip archive is read by libzip, the pickle is run by a small pickle machine
 * written here, and comparing a file with its tensors notices every damage. torch_load.sh reads them with PyTorch. */
#include "infer/torch_file.h"

#include <sys/mman.h>
#include <zip.h>

#include "tests/check.h"

enum { MAX_VALUES = 4096 };

/* A value that the pickle machine has made. The items of a dictionary are keys and values in turn. */
typedef enum value_kind { MARK, DICT, TUPLE, STRING, INTEGER, FALSE, GLOBAL, PERSISTENT, CALL } value_kind;
typedef struct value {
  value_kind kind;
  const char *text; /* STRING, GLOBAL: not terminated */
  size_t length;
  int64_t integer;
  int items[64]; /* members of DICT and TUPLE; PERSISTENT: the identifier; CALL: callable and arguments */
  int count;
} value;

typedef struct machine {
  value *values; /* [MAX_VALUES] */
  int made, depth, stack[MAX_VALUES];
} machine;

static value *push(machine *m, value_kind kind) {
  assert_true(m->made < MAX_VALUES);
  m->stack[m->depth++] = m->made;
  m->values[m->made] = (value){.kind = kind};
  return &m->values[m->made++];
}

static int pop(machine *m) {
  assert_true(m->depth > 0);
  return m->stack[--m->depth];
}

/* Moves everything above the topmost mark on the stack into the value's items. */
static void take_to_mark(machine *m, value *into) {
  int mark = m->depth - 1;
  while (mark >= 0 && m->values[m->stack[mark]].kind != MARK) mark--;
  assert_true(mark >= 0);
  for (int i = mark + 1; i < m->depth; i++) {
    assert_true(into->count < 64);
    into->items[into->count++] = m->stack[i];
  }
  m->depth = mark;
}

static int64_t little(const uint8_t **at, int bytes) {
  uint64_t number = 0;
  for (int i = 0; i < bytes; i++) number |= (uint64_t) * (*at)++ << (8 * i);
  return (int64_t)number;
}

/* Runs a pickle; returns the value that is left on the stack. */
static value *run(machine *m, const uint8_t *at, const uint8_t *end) {
  assert_memory_equal(at, "\x80\x02", 2);
  at += 2;
  while (at < end) {
    uint8_t op = *at++;
    value fresh = {0};
    switch (op) {
    case '}': push(m, DICT); break;
    case ')': push(m, TUPLE); break;
    case '(': push(m, MARK); break;
    case 0x89: push(m, FALSE); break;
    case 'K': push(m, INTEGER)->integer = little(&at, 1); break;
    case 'M': push(m, INTEGER)->integer = little(&at, 2); break;
    case 'J': push(m, INTEGER)->integer = (int32_t)little(&at, 4); break;
    case 0x8a:
      assert_int_equal(*at++, 8);
      push(m, INTEGER)->integer = little(&at, 8);
      break;
    case 'X': {
      value *string = push(m, STRING);
      string->length = (size_t)little(&at, 4);
      string->text = (const char *)at;
      at += string->length;
      break;
    }
    case 'c': {
      value *global = push(m, GLOBAL);
      const uint8_t *module_end = memchr(at, '\n', (size_t)(end - at));
      assert_non_null(module_end);
      const uint8_t *name_end = memchr(module_end + 1, '\n', (size_t)(end - module_end - 1));
      assert_non_null(name_end);
      global->text = (const char *)at;
      global->length = (size_t)(name_end - at);
      at = name_end + 1;
      break;
    }
    case 't':
      take_to_mark(m, &fresh);
      fresh.kind = TUPLE;
      *push(m, TUPLE) = fresh;
      break;
    case 'u':
      take_to_mark(m, &fresh);
      assert_true(m->depth > 0 && fresh.count % 2 == 0);
      fresh.kind = DICT;
      assert_int_equal(m->values[m->stack[m->depth - 1]].kind, DICT);
      m->values[m->stack[m->depth - 1]] = fresh;
      break;
    case 'Q':
      fresh.items[fresh.count++] = pop(m);
      *push(m, PERSISTENT) = fresh;
      m->values[m->made - 1].kind = PERSISTENT;
      break;
    case 'R':
      fresh.items[1] = pop(m);
      fresh.items[0] = pop(m);
      fresh.count = 2;
      *push(m, CALL) = fresh;
      m->values[m->made - 1].kind = CALL;
      break;
    case '.': assert_true(at == end && m->depth == 1); return &m->values[pop(m)];
    default: fail_msg("unknown opcode 0x%02x, %td bytes before the end", op, end - at);
    }
  }
  fail_msg("the pickle has no end");
  return NULL;
}

static value *item(const machine *m, const value *of, int index) {
  assert_true(index < of->count);
  return &m->values[of->items[index]];
}

static void assert_text(const value *v, value_kind kind, const char *text) {
  assert_int_equal(v->kind, kind);
  assert_int_equal(v->length, strlen(text));
  assert_memory_equal(v->text, text, v->length);
}

static void assert_integers(const machine *m, const value *v, const int64_t *wanted, int count) {
  assert_int_equal(v->kind, TUPLE);
  assert_int_equal(v->count, count);
  for (int i = 0; i < count; i++) assert_int_equal(item(m, v, i)->integer, wanted[i]);
}

/* Fails unless the value is a tensor in the form that torch rebuilds one from. */
static void assert_tensor(const machine *m, const value *v, const hv_file_tensor *tensor, const char *storage_class,
                          int key, const int64_t *strides) {
  char name[32];
  assert_int_equal(v->kind, CALL);
  assert_text(item(m, v, 0), GLOBAL, "torch._utils\n_rebuild_tensor_v2");
  const value *arguments = item(m, v, 1);
  assert_int_equal(arguments->count, 6);
  const value *storage = item(m, item(m, arguments, 0), 0);
  assert_int_equal(item(m, arguments, 0)->kind, PERSISTENT);
  assert_int_equal(storage->count, 5);
  assert_text(item(m, storage, 0), STRING, "storage");
  snprintf(name, sizeof name, "torch\n%s", storage_class);
  assert_text(item(m, storage, 1), GLOBAL, name);
  snprintf(name, sizeof name, "%d", key);
  assert_text(item(m, storage, 2), STRING, name);
  assert_text(item(m, storage, 3), STRING, "cpu");
  assert_int_equal(item(m, storage, 4)->integer, tensor->count);
  assert_int_equal(item(m, arguments, 1)->integer, 0);
  assert_integers(m, item(m, arguments, 2), tensor->shape, tensor->rank);
  assert_integers(m, item(m, arguments, 3), strides, tensor->rank);
  assert_int_equal(item(m, arguments, 4)->kind, FALSE);
  assert_text(item(m, item(m, arguments, 5), 0), GLOBAL, "collections\nOrderedDict");
}

static uint16_t half_ones[300];
static double wide[6] = {1, -2, 0.1, 1e10, -0.0, 4};
static int64_t counts[2] = {-5, (int64_t)1 << 40};
static uint8_t flags[3] = {1, 0, 1};
static int8_t codes[3] = {-128, 0, 127};
static float scalar = 0.5f;

/* Every kind of tensor that a model may contain, three to a module. `stored` is the dtype in the file. */
static const struct made_up {
  const char *name;
  hv_file_tensor tensor;
  hv_dtype stored;
  const char *storage_class;
  int64_t strides[3];
} made_up[] = {
    {"a.half.weight",
     {.name = "half", .dtype = HV_BF16, .rank = 2, .shape = {3, 100}, .count = 300, .data = half_ones, .size = 600},
     HV_BF16,
     "BFloat16Storage",
     {100, 1}},
    {"a.wide",
     {.name = "wide", .dtype = HV_F64, .rank = 3, .shape = {1, 2, 3}, .count = 6, .data = wide, .size = 48},
     HV_F32,
     "FloatStorage",
     {6, 3, 1}},
    {"a.scalar",
     {.name = "scalar", .dtype = HV_F32, .count = 1, .data = &scalar, .size = 4},
     HV_F16,
     "HalfStorage",
     {0}},
    {"b.counts",
     {.name = "counts", .dtype = HV_I64, .rank = 1, .shape = {2}, .count = 2, .data = counts, .size = 16},
     HV_I64,
     "LongStorage",
     {1}},
    {"b.flags",
     {.name = "flags", .dtype = HV_U8, .rank = 1, .shape = {3}, .count = 3, .data = flags, .size = 3},
     HV_U8,
     "ByteStorage",
     {1}},
    {"b.nothing.at.all",
     {.name = "nothing", .dtype = HV_F32, .rank = 3, .shape = {0, 70000, 5000000000}, .data = flags},
     HV_F32,
     "FloatStorage",
     {350000000000000, 5000000000, 1}},
    {"c.codes",
     {.name = "codes", .dtype = HV_I8, .rank = 1, .shape = {3}, .count = 3, .data = codes, .size = 3},
     HV_I8,
     "CharStorage",
     {1}},
    {"c.mask",
     {.name = "mask", .dtype = HV_BOOL, .rank = 1, .shape = {3}, .count = 3, .data = flags, .size = 3},
     HV_BOOL,
     "BoolStorage",
     {1}},
};
enum { COUNT = sizeof made_up / sizeof *made_up };

static void list_tensors(hv_torch_tensor out[COUNT]) {
  for (int i = 0; i < 300; i++) half_ones[i] = (uint16_t)(0x3f80 + i);
  for (int i = 0; i < COUNT; i++)
    out[i] = (hv_torch_tensor){.name = made_up[i].name, .source = &made_up[i].tensor, .dtype = made_up[i].stored};
}

static void write_file(const char *path) {
  hv_torch_tensor tensors[COUNT];
  list_tensors(tensors);
  assert_ok(hv_torch_file_write(path, tensors, COUNT, NULL, NULL));
}

static hv_status compare(const char *path) {
  hv_torch_tensor tensors[COUNT];
  list_tensors(tensors);
  return hv_torch_file_compare(path, tensors, COUNT, NULL, NULL);
}

/* The content of an entry in the mapped file; it must be stored without compression and at a multiple of 64 bytes. */
static const uint8_t *entry(const hv_mapping *file, zip_t *archive, int index, const char *name, size_t *size) {
  zip_stat_t stat;
  assert_int_equal(zip_stat_index(archive, (zip_uint64_t)index, 0, &stat), 0);
  assert_string_equal(stat.name, name);
  assert_int_equal(stat.comp_method, ZIP_CM_STORE);
  *size = stat.size;
  /* Finds the local header by the name of the entry, which is also in the central directory. */
  size_t length = strlen(name);
  for (const uint8_t *at = file->data; at + 30 + length < file->data + file->size; at++) {
    if (memcmp(at, "PK\3\4", 4) != 0 || memcmp(at + 30, name, length) != 0) continue;
    assert_int_equal(at[6] | at[7], 0); /* no flags: sizes and checksum are in the header itself */
    size_t begin = 30 + (size_t)(at[26] | at[27] << 8) + (size_t)(at[28] | at[29] << 8);
    assert_int_equal((size_t)(at + begin - file->data) % 64, 0);
    return at + begin;
  }
  fail_msg("%s has no header", name);
  return file->data;
}

static void the_archive_is_what_torch_reads(void **state) {
  hv_mapping file;
  int code;
  size_t size;
  write_file(in_folder(*state, "good.pt"));
  assert_ok(compare(in_folder(*state, "good.pt")));
  assert_ok(hv_map_file(in_folder(*state, "good.pt"), &file));
  zip_t *archive = zip_open(in_folder(*state, "good.pt"), ZIP_RDONLY | ZIP_CHECKCONS, &code);
  assert_non_null(archive);
  assert_int_equal(zip_get_num_entries(archive, 0), COUNT + 3);
  const uint8_t *pickle = entry(&file, archive, 0, "archive/data.pkl", &size);
  machine m = {.values = calloc(MAX_VALUES, sizeof *m.values)};
  assert_non_null(m.values);
  const value *top = run(&m, pickle, pickle + size);
  assert_int_equal(top->kind, DICT);
  assert_int_equal(top->count, 2);
  assert_text(item(&m, top, 0), STRING, "model");
  const value *model = item(&m, top, 1);
  assert_int_equal(model->count, 6);
  assert_text(item(&m, model, 0), STRING, "a");
  assert_text(item(&m, model, 2), STRING, "b");
  assert_text(item(&m, model, 4), STRING, "c");
  assert_memory_equal(entry(&file, archive, 1, "archive/byteorder", &size), "little", 6);
  assert_int_equal(size, 6);
  for (int i = 0; i < COUNT; i++) {
    const struct made_up *t = &made_up[i];
    const value *module = item(&m, model, 2 * (i / 3) + 1);
    assert_text(item(&m, module, 2 * (i % 3)), STRING, t->name + 2);
    assert_tensor(&m, item(&m, module, 2 * (i % 3) + 1), &t->tensor, t->storage_class, i, t->strides);
    char name[32], expected[1024];
    snprintf(name, sizeof name, "archive/data/%d", i);
    const uint8_t *data = entry(&file, archive, 2 + i, name, &size);
    assert_int_equal(size, t->tensor.count * (int64_t)hv_dtype_size(t->stored));
    hv_dtype_convert(t->stored, expected, t->tensor.dtype, t->tensor.data, t->tensor.count);
    assert_memory_equal(data, expected, size);
  }
  assert_memory_equal(entry(&file, archive, 2 + COUNT, "archive/version", &size), "3\n", 2);
  zip_discard(archive);
  hv_unmap(&file);
  free(m.values);
}

static void the_same_tensors_make_the_same_file(void **state) {
  const char *one = in_folder(*state, "one.pt"), *two = in_folder(*state, "two.pt");
  write_file(one);
  write_file(two);
  assert_true(same_bytes(one, two));
}

/* A file that was cut is refused, and so is one with a changed byte, if the byte is part of the content. */
static void damage_is_noticed(void **state) {
  hv_mapping file;
  int unnoticed = 0;
  write_file(in_folder(*state, "whole.pt"));
  assert_ok(hv_map_file(in_folder(*state, "whole.pt"), &file));
  uint8_t *bytes = malloc(file.size);
  assert_non_null(bytes);
  memcpy(bytes, file.data, file.size);
  for (size_t at = 0; at < file.size; at += 37) {
    assert_ok(hv_write_file_atomic(in_folder(*state, "bad.pt"), bytes, at));
    assert_error(compare(in_folder(*state, "bad.pt")), "bad.pt");
    bytes[at] ^= 0x10;
    assert_ok(hv_write_file_atomic(in_folder(*state, "bad.pt"), bytes, file.size));
    bytes[at] ^= 0x10;
    hv_status status = compare(in_folder(*state, "bad.pt"));
    unnoticed += status == HV_OK;
    hv_status_free(status);
  }
  /* Changes of padding, times and attributes need not be noticed. */
  assert_true((double)unnoticed < 0.5 * (double)file.size / 37);
  free(bytes);
  hv_unmap(&file);
}

static void what_differs_is_named(void **state) {
  hv_torch_tensor tensors[COUNT];
  list_tensors(tensors);
  const char *path = in_folder(*state, "named.pt");
  write_file(path);
  wide[2] = 0.25;
  assert_error(hv_torch_file_compare(path, tensors, COUNT, NULL, NULL), "named.pt", "a.wide", "other values");
  wide[2] = 0.1;
  tensors[1].dtype = HV_F64;
  assert_error(hv_torch_file_compare(path, tensors, COUNT, NULL, NULL), "a.wide", "FloatStorage", "DoubleStorage");
  tensors[1].dtype = HV_F32;
  hv_file_tensor reshaped = made_up[0].tensor;
  reshaped.shape[0] = 100;
  reshaped.shape[1] = 3;
  tensors[0].source = &reshaped;
  assert_error(hv_torch_file_compare(path, tensors, COUNT, NULL, NULL), "a.half.weight", "3 in its shape", "not 100");
  tensors[0].source = &made_up[0].tensor;
  assert_error(hv_torch_file_compare(path, tensors, COUNT - 1, NULL, NULL), "named.pt");
  tensors[5].name = "c.nothing";
  assert_error(hv_torch_file_compare(path, tensors, COUNT, NULL, NULL), "named.pt");
  assert_error(hv_torch_file_compare(in_folder(*state, "absent.pt"), tensors, COUNT, NULL, NULL), "absent.pt");
}

static void values_that_do_not_fit_leave_no_file(void **state) {
  hv_torch_tensor tensors[COUNT];
  list_tensors(tensors);
  tensors[1].dtype = HV_F16;
  assert_error(hv_torch_file_write(in_folder(*state, "never.pt"), tensors, COUNT, NULL, NULL), "tensor wide",
               "element 3", "1e+10");
  assert_false(hv_file_exists(in_folder(*state, "never.pt")));
  write_text(in_folder(*state, "there.pt"), "x");
  assert_error(hv_torch_file_write(in_folder(*state, "there.pt"), tensors, COUNT, NULL, NULL), "there.pt", "exists");
}

/* A file of more than 4 GiB, whose sizes and offsets need the 64-bit fields of the archive. The tensors are zeros that
 * take no memory. */
static int large_files(void) {
  const size_t size = ((size_t)1 << 32) + 1000;
  void *zeros = mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void *state;
  assert_true(zeros != MAP_FAILED);
  if (make_folder(&state)) return 1;
  const hv_file_tensor large = {.name = "large",
                                .dtype = HV_U8,
                                .rank = 1,
                                .shape = {(int64_t)size},
                                .count = (int64_t)size,
                                .data = zeros,
                                .size = size};
  const hv_torch_tensor tensors[] = {
      {.name = "a.small", .source = &made_up[1].tensor, .dtype = HV_F64},
      {.name = "a.large", .source = &large, .dtype = HV_U8},
      {.name = "a.behind", .source = &made_up[1].tensor, .dtype = HV_F32},
  };
  const char *path = in_folder(state, "large.pt");
  hv_mapping file;
  assert_ok(hv_torch_file_write(path, tensors, 3, NULL, NULL));
  assert_ok(hv_torch_file_compare(path, tensors, 3, NULL, NULL));
  assert_ok(hv_map_file(path, &file));
  float first = (float)wide[0], found = 0;
  size_t behind = file.size - 2048; /* the last tensor ends before the directory, and begins at a multiple of 64 */
  behind -= behind % 64;
  for (; behind < file.size - 64 && found != first; behind += 64) memcpy(&found, file.data + behind, sizeof found);
  assert_true(found == first);
  hv_unmap(&file);
  munmap(zeros, size);
  return remove_folder(&state);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "large") == 0) return large_files();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_archive_is_what_torch_reads),
      cmocka_unit_test(the_same_tensors_make_the_same_file),
      cmocka_unit_test(damage_is_noticed),
      cmocka_unit_test(what_differs_is_named),
      cmocka_unit_test(values_that_do_not_fit_leave_no_file),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
