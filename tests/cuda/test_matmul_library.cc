/* How cuda/matmul.cu uses cuBLASLt, without a card: stand_in_cublaslt.cc takes the library's place. Products are
 * computed as matmul.h says, and algorithms are chosen and kept as it promises. */
#include <cublasLt.h>
#include <fcntl.h>
#include <math.h>
#include <unistd.h>

#include "core/tensor/dtype.h"
#include "cuda/matmul.h"
#include "tests/check.h"
extern "C" {
#include "tests/shell.h"
}

enum { MOST = 40, GAP = 3, BUFFER = MOST * (MOST + GAP), POISON = 0x7f, CALLS_PATH = 1024 };

/* A matrix [rows, cols] in a buffer of its own, with gaps of GAP elements between rows. */
struct matrix {
  alignas(256) unsigned char bytes[BUFFER * sizeof(float)];
  hv_tensor t;
};

struct fixture {
  hv_runtime *runtime;
  hv_queue *queue;
  hv_matmul *matmul;
  alignas(256) unsigned char workspace[4096];
};

static fixture *open_fixture(void) {
  auto *f = (fixture *)aligned_alloc(256, sizeof(fixture));
  assert_non_null(f);
  assert_ok(hv_runtime_open(nullptr, &f->runtime));
  assert_ok(hv_queue_open(f->runtime, &f->queue));
  assert_ok(hv_matmul_open(f->runtime, &f->matmul));
  return f;
}

static void close_fixture(fixture *f) {
  hv_matmul_close(f->matmul);
  hv_queue_close(f->runtime, f->queue);
  hv_runtime_close(f->runtime);
  free(f);
}

/* `col` may be in the gap after a row. */
static void *element(const hv_tensor *t, int64_t row, int64_t col) {
  return hv_tensor_cols(hv_tensor_rows(*t, row, 1), col, 1).data;
}

static double get(const hv_tensor *t, int64_t row, int64_t col) {
  double value;
  hv_dtype_convert(HV_F64, &value, t->dtype, element(t, row, col), 1);
  return value;
}

/* Fills with multiples of 1/8, so that sums of products are exact in float. */
static void fill(matrix *m, hv_dtype dtype, int64_t rows, int64_t cols, int seed) {
  memset(m->bytes, POISON, sizeof m->bytes);
  m->t = hv_tensor_make(m->bytes, dtype, rows, cols);
  m->t.row_stride = cols + GAP;
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) {
      double value = (double)((i * 31 + j * 17 + (int64_t)seed * 7) % 23 - 11) / 8;
      hv_dtype_convert(dtype, element(&m->t, i, j), HV_F64, &value, 1);
    }
  }
}

enum sum { NO_SUM, SUM, SUM_IN_PLACE };

struct kind {
  hv_dtype dtype, dtype_d;
  bool transpose_a, transpose_b, bias, gelu;
  sum c;
};

static void operands_of(const kind *k, int64_t m, int64_t n, int64_t inner, matrix operand[5], hv_matmul_args *args) {
  *args = hv_matmul_args{};
  args->transpose_a = k->transpose_a;
  args->transpose_b = k->transpose_b;
  args->gelu_tanh = k->gelu;
  fill(&operand[0], k->dtype, k->transpose_a ? inner : m, k->transpose_a ? m : inner, 1);
  fill(&operand[1], k->dtype, k->transpose_b ? n : inner, k->transpose_b ? inner : n, 2);
  fill(&operand[2], k->dtype_d, m, n, 3);
  fill(&operand[3], k->dtype_d, 1, n, 4);
  fill(&operand[4], k->dtype_d, m, n, 5);
  args->a = operand[0].t;
  args->b = operand[1].t;
  args->d = operand[4].t;
  if (k->c == SUM) args->c = operand[2].t;
  if (k->c == SUM_IN_PLACE) args->c = args->d;
  if (k->bias) args->bias = operand[3].t;
}

static double expected(const hv_matmul_args *p, int64_t i, int64_t j, int64_t inner) {
  double sum = hv_present(p->c) ? get(&p->c, i, j) : 0;
  for (int64_t l = 0; l < inner; l++) {
    sum +=
        (p->transpose_a ? get(&p->a, l, i) : get(&p->a, i, l)) * (p->transpose_b ? get(&p->b, j, l) : get(&p->b, l, j));
  }
  if (hv_present(p->bias)) sum += get(&p->bias, 0, j);
  return p->gelu_tanh ? 0.5 * sum * (1 + tanh(0.79788456080286536 * (sum + 0.044715 * sum * sum * sum))) : sum;
}

static void check_multiplied(fixture *f, const hv_matmul_args &args) {
  static double wanted[MOST * MOST];
  int64_t m = args.d.rows, n = args.d.cols, inner = args.transpose_a ? args.a.rows : args.a.cols;
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) wanted[i * n + j] = expected(&args, i, j, inner);
  }
  assert_true(hv_matmul_takes(f->matmul, &args));
  assert_ok(hv_matmul_run(f->matmul, f->queue, &args, f->workspace));
  double most = args.d.dtype == HV_BF16 ? 1.0 / 256 : 1e-6;
  for (int64_t i = 0; i < m; i++) {
    for (int64_t j = 0; j < n; j++) {
      double found = get(&args.d, i, j), off = fabs(found - wanted[i * n + j]);
      if (!(off <= most * fabs(wanted[i * n + j]) + 1e-6)) {
        fail_msg("[%d, %d] of %d × %d × %d is %g, not %g", (int)i, (int)j, (int)m, (int)n, (int)inner, found,
                 wanted[i * n + j]);
      }
    }
    const auto *gap = (const unsigned char *)element(&args.d, i, n);
    for (size_t b = 0; b < GAP * hv_dtype_size(args.d.dtype); b++) assert_int_equal(gap[b], POISON);
  }
}

static void check_product(fixture *f, const kind *k, int64_t m, int64_t n, int64_t inner) {
  static matrix operand[5];
  hv_matmul_args args;
  operands_of(k, m, n, inner, operand, &args);
  check_multiplied(f, args);
}

/* Every kind of product that matmul.h allows, with three different sizes, and with one row. */
static void products_are_as_described(void **) {
  static const hv_dtype dtypes[][2] = {{HV_F32, HV_F32}, {HV_BF16, HV_BF16}, {HV_BF16, HV_F32}};
  fixture *f = open_fixture();
  int kinds = 0;
  for (const auto &dtype : dtypes) {
    for (int bits = 0; bits < 16; bits++) {
      for (int c = NO_SUM; c <= SUM_IN_PLACE; c++) {
        kind k = {dtype[0], dtype[1], (bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, (sum)c};
        if ((k.bias || k.gelu) && k.dtype != k.dtype_d) continue;
        if (k.gelu && c != NO_SUM) continue;
        check_product(f, &k, 13, 40, 7);
        check_product(f, &k, 1, 8, 40);
        kinds++;
      }
    }
  }
  assert_int_equal(kinds, 2 * (8 * 3 + 8) + 4 * 3);
  close_fixture(f);
}

/* Each operand in turn is less aligned than the others. An algorithm must not rely on more than its actual alignment.
 */
static void operands_lie_anywhere(void **) {
  static const kind k = {HV_F32, HV_F32, false, true, true, false, SUM};
  static matrix operand[5], moved;
  fixture *f = open_fixture();
  for (int which = -1; which < 5; which++) {
    hv_matmul_args args;
    operands_of(&k, 6, 10, 9, operand, &args);
    hv_tensor *const tensors[] = {&args.a, &args.b, &args.c, &args.bias, &args.d};
    if (which >= 0) {
      memcpy(moved.bytes + 16, operand[which].bytes, sizeof moved.bytes - 16);
      tensors[which]->data = moved.bytes + 16;
    }
    check_multiplied(f, args);
  }
  assert_int_equal(hv_matmul_shapes(f->matmul), 6);
  close_fixture(f);
}

/* Only the shape of a product is remembered, not the addresses of its operands. */
static void a_shape_comes_with_other_operands(void **) {
  static const kind k = {HV_BF16, HV_BF16, false, false, true, true, NO_SUM};
  static matrix operand[5], other[5];
  hv_matmul_args first, second;
  fixture *f = open_fixture();
  operands_of(&k, 3, 12, 5, operand, &first);
  operands_of(&k, 3, 12, 5, other, &second);
  fill(&other[0], k.dtype, 3, 5, 8);
  fill(&other[1], k.dtype, 5, 12, 9);
  fill(&other[3], k.dtype_d, 1, 12, 10);
  check_multiplied(f, first);
  check_multiplied(f, second);
  assert_int_equal(hv_matmul_shapes(f->matmul), 1);
  close_fixture(f);
}

/* From now on the library notes its calls in a file in the folder. */
static void count_calls_in(const void *folder, char path[CALLS_PATH]) {
  snprintf(path, CALLS_PATH, "%s/calls", (const char *)folder);
  assert_int_equal(setenv("STAND_IN_CALLS", path, 1), 0);
}

/* How often a function of the library was called. */
static int calls_of(const char *path, const char *name) {
  char line[64];
  int count = 0;
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  while (fgets(line, sizeof line, file)) count += strncmp(line, name, strlen(name)) == 0;
  assert_int_equal(fclose(file), 0);
  return count;
}

static void algorithms_are_chosen_once_and_kept(void **state) {
  static const kind k = {HV_BF16, HV_BF16, false, true, true, false, NO_SUM};
  static matrix operand[5];
  char calls[CALLS_PATH];
  hv_matmul_args args;
  hv_text choices = {};
  bool fits;
  count_calls_in(*state, calls);
  operands_of(&k, 5, 8, 6, operand, &args);
  fixture *f = open_fixture();
  for (int i = 0; i < 3; i++) assert_ok(hv_matmul_run(f->matmul, f->queue, &args, f->workspace));
  assert_int_equal(calls_of(calls, "heuristic"), 1);
  assert_int_equal(hv_matmul_shapes(f->matmul), 1);
  args.bias.data = (char *)args.bias.data + 64; /* less aligned than before, which an algorithm may not allow */
  assert_ok(hv_matmul_run(f->matmul, f->queue, &args, f->workspace));
  assert_int_equal(calls_of(calls, "heuristic"), 2);
  hv_matmul_write_choices(f->matmul, &choices);
  close_fixture(f);

  f = open_fixture();
  assert_ok(hv_matmul_read_choices(f->matmul, choices.data, &fits));
  assert_true(fits);
  assert_ok(hv_matmul_run(f->matmul, f->queue, &args, f->workspace));
  assert_int_equal(calls_of(calls, "heuristic"), 2);
  assert_int_equal(calls_of(calls, "check"), 1);
  assert_int_equal(hv_matmul_shapes(f->matmul), 2);
  close_fixture(f);
  assert_int_equal(unsetenv("STAND_IN_CALLS"), 0);
  hv_text_free(&choices);
}

/* The first result of the heuristics is a failure, and products by the second one fail: the choice must be among the
 * others. */
static void what_is_measured_can_be_multiplied(void **state) {
  static const kind k = {HV_F32, HV_F32, true, false, false, false, SUM_IN_PLACE};
  char calls[CALLS_PATH];
  count_calls_in(*state, calls);
  fixture *f = open_fixture();
  assert_true(hv_matmul_measure_choices(f->matmul, true));
  static matrix operand[5];
  hv_matmul_args args;
  operands_of(&k, 9, 11, 13, operand, &args);
  for (int i = 0; i < 2; i++) assert_ok(hv_matmul_run(f->matmul, f->queue, &args, f->workspace));
  assert_int_equal(calls_of(calls, "heuristic"), 2); /* the first choice, and what to measure */
  assert_int_equal(unsetenv("STAND_IN_CALLS"), 0);
  assert_true(hv_matmul_measure_choices(f->matmul, false));
  check_product(f, &k, 9, 11, 13);
  assert_int_equal(hv_matmul_shapes(f->matmul), 1);
  close_fixture(f);
}

/* Redirects standard error to the file; returns a descriptor of the old one. */
static int say_into(const char *path) {
  int before = dup(STDERR_FILENO), file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  assert_true(before >= 0 && file >= 0 && dup2(file, STDERR_FILENO) >= 0);
  close(file);
  return before;
}

static void what_the_library_refuses_is_not_taken(void **state) {
  static const kind k = {HV_BF16, HV_BF16, false, false, false, false, NO_SUM};
  static matrix operand[5];
  char said[CALLS_PATH], line[512], more[512];
  hv_matmul_args args;
  snprintf(said, sizeof said, "%s/said", (const char *)*state);
  fixture *f = open_fixture();
  operands_of(&k, 4, 4, 4, operand, &args);
  args.a.data = (char *)args.a.data + 2;
  int before = say_into(said);
  bool taken = hv_matmul_takes(f->matmul, &args), again = hv_matmul_takes(f->matmul, &args);
  assert_true(dup2(before, STDERR_FILENO) >= 0);
  close(before);
  assert_false(taken || again);
  FILE *file = fopen(said, "re");
  assert_non_null(file);
  assert_non_null(fgets(line, sizeof line, file));
  assert_non_null(strstr(line, "no algorithm for a product of [4, 4] and [4, 4] in bf16, its operands aligned to 2, "));
  assert_null(fgets(more, sizeof more, file)); /* the message comes once */
  assert_int_equal(fclose(file), 0);
  close_fixture(f);
}

/* Run as a program of its own, with another library in the loader's path: prints the error of opening it. */
static int tell_of_library(void) {
  hv_runtime *runtime;
  hv_matmul *matmul;
  hv_status status = hv_runtime_open(nullptr, &runtime);
  if (!status) status = hv_matmul_open(runtime, &matmul);
  printf("%s\n", status ? hv_status_message(status) : "opened");
  return 0;
}

static const char *program; /* the path of this program */

static void expect_told(const char *folder, const char *words, const char *more) {
  char *output;
  assert_int_equal(run_shell(&output, nullptr, "LD_LIBRARY_PATH='%s' '%s' tell", folder, program), 0);
  if (!strstr(output, words) || !strstr(output, more)) fail_msg("expected \"%s\", the message is: %s", words, output);
  free(output);
}

/* A file of the library's name that is no library, as an interrupted copy leaves, and a library without the functions.
 * (With no file at all, the loader's error takes the same way as in the first case.) */
static void a_library_that_cannot_be_used_is_told(void **state) {
  const char *folder = (const char *)*state;
  char name[64];
  snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
  const char *library = in_folder(folder, name);
  assert_ok(hv_write_file_atomic(library, "no library", 10));
  expect_told(folder, "the device \"cuda\" needs cuBLASLt (", "); --device cpu runs everything without it");
  must_shell("ln -sf \"$(ldd '%s' | awk '$1 ~ /^libm[.]/ { print $3 }')\" '%s'", program, library);
  expect_told(folder, name, " lacks cublasLtCreate: another version is installed");
}

int main(int argc, char **argv) {
  program = argv[0];
  if (argc > 1) return tell_of_library();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(products_are_as_described),
      cmocka_unit_test(operands_lie_anywhere),
      cmocka_unit_test(a_shape_comes_with_other_operands),
      cmocka_unit_test_setup_teardown(algorithms_are_chosen_once_and_kept, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_is_measured_can_be_multiplied, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(what_the_library_refuses_is_not_taken, make_folder, remove_folder),
      cmocka_unit_test_setup_teardown(a_library_that_cannot_be_used_is_told, make_folder, remove_folder),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
