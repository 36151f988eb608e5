#include "cuda/matmul_choices.h"

#include <stdlib.h>
#include <string.h>

static const char HEADER[] = "algorithms of matrix products, 2";

struct hv_choice {
  hv_choice *next;
  hv_product_shape shape;
  hv_algorithm algorithm;
};

/* The largest power of two, at most 256, that divides an address. */
static uint32_t alignment(const void *data) {
  uint32_t align = 256;
  while ((uintptr_t)data % align != 0) align /= 2;
  return align;
}

hv_product_shape hv_product_shape_of(const hv_matmul_args *args) {
  hv_product_shape s;
  memset(&s, 0, sizeof s);
  s.m = args->d.rows;
  s.n = args->d.cols;
  s.k = args->transpose_a ? args->a.rows : args->a.cols;
  s.stride_a = args->a.row_stride;
  s.stride_b = args->b.row_stride;
  s.stride_d = args->d.row_stride;
  s.dtype = args->a.dtype;
  s.dtype_d = args->d.dtype;
  s.align_a = alignment(args->a.data);
  s.align_b = alignment(args->b.data);
  s.align_d = alignment(args->d.data);
  s.transpose_a = args->transpose_a;
  s.transpose_b = args->transpose_b;
  s.has_c = hv_present(args->c);
  s.stride_c = s.has_c ? args->c.row_stride : s.stride_d;
  s.align_c = s.has_c ? alignment(args->c.data) : s.align_d;
  s.has_bias = hv_present(args->bias);
  if (s.has_bias) s.align_bias = alignment(args->bias.data);
  s.gelu_tanh = args->gelu_tanh;
  return s;
}

void hv_choices_free(hv_choices *choices) {
  while (choices->first) {
    hv_choice *next = choices->first->next;
    free(choices->first);
    choices->first = next;
  }
  choices->count = 0;
}

static hv_choice *choice_of(const hv_choices *choices, const hv_product_shape *shape) {
  hv_choice *c = choices->first;
  while (c && memcmp(&c->shape, shape, sizeof *shape) != 0) c = c->next;
  return c;
}

const hv_algorithm *hv_choices_find(const hv_choices *choices, const hv_product_shape *shape) {
  const hv_choice *c = choice_of(choices, shape);
  return c ? &c->algorithm : nullptr;
}

hv_status hv_choices_set(hv_choices *choices, const hv_product_shape *shape, const hv_algorithm *algorithm) {
  hv_choice *known = choice_of(choices, shape);
  if (known) {
    known->algorithm = *algorithm;
    return HV_OK;
  }
  hv_choice *choice = (hv_choice *)calloc(1, sizeof *choice);
  if (!choice) return hv_error_memory("the algorithms of matrix products");
  choice->next = choices->first;
  choice->shape = *shape;
  choice->algorithm = *algorithm;
  choices->first = choice;
  choices->count++;
  return HV_OK;
}

static void add_hex(hv_text *out, const void *data, size_t size) {
  const unsigned char *bytes = (const unsigned char *)data;
  for (size_t i = 0; i < size; i++) hv_text_add(out, "%02x", bytes[i]);
}

void hv_choices_write(const hv_choices *choices, const char *made_by, hv_text *out) {
  hv_text_add(out, "%s\n%s\n", HEADER, made_by);
  for (const hv_choice *c = choices->first; c; c = c->next) {
    add_hex(out, &c->shape, sizeof c->shape);
    hv_text_add(out, " ");
    if (c->algorithm.taken) {
      add_hex(out, c->algorithm.bytes, sizeof c->algorithm.bytes);
    } else {
      hv_text_add(out, "-");
    }
    hv_text_add(out, "\n");
  }
}

static int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads `size` bytes in hexadecimal and moves *at behind them. */
static bool read_hex(const char **at, void *out, size_t size) {
  unsigned char *bytes = (unsigned char *)out;
  for (size_t i = 0; i < size; i++, *at += 2) {
    int high = digit_of((*at)[0]), low = high < 0 ? -1 : digit_of((*at)[1]);
    if (low < 0) return false;
    bytes[i] = (unsigned char)(16 * high + low);
  }
  return true;
}

/* Moves *at behind a line that equals `line`; false if there is another. */
static bool skip_line(const char **at, const char *line) {
  size_t length = strlen(line);
  if (strncmp(*at, line, length) != 0 || (*at)[length] != '\n') return false;
  *at += length + 1;
  return true;
}

static bool read_choice(const char **at, hv_product_shape *shape, hv_algorithm *algorithm) {
  memset(algorithm, 0, sizeof *algorithm);
  if (!read_hex(at, shape, sizeof *shape) || *(*at)++ != ' ') return false;
  if (**at == '-') {
    ++*at;
  } else {
    algorithm->taken = read_hex(at, algorithm->bytes, sizeof algorithm->bytes);
    if (!algorithm->taken) return false;
  }
  return *(*at)++ == '\n';
}

hv_status hv_choices_read(hv_choices *choices, const char *made_by, const char *text, bool *fits) {
  const char *at = text;
  *fits = skip_line(&at, HEADER) && skip_line(&at, made_by);
  if (!*fits) return HV_OK;
  for (int line = 3; *at; line++) {
    hv_product_shape shape;
    hv_algorithm algorithm;
    if (!read_choice(&at, &shape, &algorithm)) {
      return hv_error(HV_ERR_INPUT, "line %d is damaged: it does not hold the algorithm of a matrix product", line);
    }
    HV_TRY(hv_choices_set(choices, &shape, &algorithm));
  }
  return HV_OK;
}
