#include "infer/verify.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "infer/hvla.h"
#include "infer/model_card.h"

enum { PIECE = 1 << 16, MAX_NAMED = 10, OBSERVATIONS = 3, WIDTH = 64, HEIGHT = 48, MODES = 3 };

/* Whether `after` holds the values of `before`, converted to its dtype; `buffer` has room for PIECE elements. */
static hv_status same_values(const hv_file_tensor *before, const hv_file_tensor *after, void *buffer, bool *same) {
  size_t width = hv_dtype_size(after->dtype);
  *same = true;
  for (int64_t first = 0; first < before->count && *same; first += PIECE) {
    int64_t count = before->count - first < PIECE ? before->count - first : PIECE;
    HV_TRY(hv_file_tensor_convert(before, first, count, after->dtype, buffer));
    *same = memcmp(buffer, (const char *)after->data + (size_t)first * width, (size_t)count * width) == 0;
  }
  return HV_OK;
}

static bool same_form(const hv_file_tensor *before, const hv_file_tensor *after, const hv_dtype *to) {
  return after->known && after->dtype == hv_export_dtype(before, to) && after->rank == before->rank &&
         memcmp(after->shape, before->shape, (size_t)before->rank * sizeof *before->shape) == 0;
}

hv_status hv_verify_tensors(const hv_safetensors *before, const hv_safetensors *after, const hv_dtype *to) {
  hv_status status = HV_OK;
  hv_text wrong = {0};
  int differ = 0;
  void *buffer = malloc(PIECE * sizeof(double));
  if (!buffer) return hv_error_memory("a piece of a tensor");
  for (int32_t i = 0; i < hv_safetensors_count(before); i++) {
    const hv_file_tensor *a = hv_safetensors_get(before, i), *b = hv_safetensors_find(after, a->name);
    bool same = false;
    if (b && same_form(a, b, to)) HV_CHECK(same_values(a, b, buffer, &same));
    if (same) continue;
    const char *what = !b ? "is missing" : same_form(a, b, to) ? "has other values" : "has another dtype or shape";
    if (differ++ < MAX_NAMED) hv_text_add(&wrong, "\n  %s %s", a->name, what);
  }
  if (differ > 0) {
    status = hv_error(HV_ERR_NO, "%d of %d tensors differ from the source's:%s%s", differ, hv_safetensors_count(before),
                      hv_text_string(&wrong), differ > MAX_NAMED ? "\n  …" : "");
  } else if (hv_safetensors_count(after) != hv_safetensors_count(before)) {
    status = hv_error(HV_ERR_NO, "%s holds %d tensors; the source has %d", hv_safetensors_path(after),
                      hv_safetensors_count(after), hv_safetensors_count(before));
  }
done:
  hv_text_free(&wrong);
  free(buffer);
  return status;
}

hv_status hv_verify_as_no(hv_status problem) {
  if (!problem || hv_status_code(problem) != HV_ERR_INPUT) return problem;
  hv_status no = hv_error(HV_ERR_NO, "%s", hv_status_message(problem));
  hv_status_free(problem);
  return no;
}

hv_status hv_verify_copy(const char *before, const char *after) {
  hv_file_digest expected, found;
  HV_TRY(hv_digest_file(before, &expected));
  HV_TRY(hv_verify_as_no(hv_digest_file(after, &found)));
  if (expected.size == found.size && expected.xxh3 == found.xxh3) return HV_OK;
  return hv_error(HV_ERR_NO, "%s differs from %s, of which it should be a copy", after, before);
}

double hv_verify_tolerance(hv_dtype to) {
  return to == HV_BF16 ? 0.1 : to == HV_F16 ? 0.02 : 0;
}

/* One prediction; arrays [values], 0 for a head that did not run. */
typedef struct answer {
  bool has_diffusion, has_words;
  double *action;
  float *diffusion, *confidences;
  int32_t *tokens;
} answer;

/* All predictions of one model. */
typedef struct answers {
  int values; /* of a predicted chunk */
  int num_modes;
  hvla_mode modes[MODES];
  answer each[OBSERVATIONS * MODES]; /* [observation][mode] */
} answers;

static void answers_free(answers *all) {
  for (int i = 0; i < OBSERVATIONS * MODES; i++) {
    free(all->each[i].action);
    free(all->each[i].diffusion);
    free(all->each[i].confidences);
    free(all->each[i].tokens);
  }
}

static hv_status keep(const hvla_result *result, int values, answer *out) {
  size_t count = (size_t)values;
  out->has_diffusion = result->diffusion_normalized != NULL;
  out->has_words = result->tokens != NULL;
  out->action = malloc(count * sizeof *out->action);
  out->diffusion = calloc(count, sizeof *out->diffusion);
  out->confidences = calloc(count, sizeof *out->confidences);
  out->tokens = calloc(count, sizeof *out->tokens);
  if (!out->action || !out->diffusion || !out->confidences || !out->tokens) return hv_error_memory("a prediction");
  memcpy(out->action, result->action, count * sizeof *out->action);
  if (out->has_diffusion) memcpy(out->diffusion, result->diffusion_normalized, count * sizeof *out->diffusion);
  if (!out->has_words) return HV_OK;
  memcpy(out->confidences, result->confidences, count * sizeof *out->confidences);
  memcpy(out->tokens, result->tokens, count * sizeof *out->tokens);
  return HV_OK;
}

/* Draws waves that differ between observations and cameras. */
static void draw_picture(int observation, int camera, uint8_t *rgb) {
  for (int i = 0; i < WIDTH * HEIGHT * 3; i++) {
    int row = i / (3 * WIDTH), column = i / 3 % WIDTH, colour = i % 3;
    double phase = 0.11 * column + 0.17 * row * (1 + camera) + 2.1 * colour + 1.3 * observation;
    rgb[i] = (uint8_t)(127.5 + 120 * sin(phase));
  }
}

/* A state like the data's: their mean, or one standard deviation below or above it. */
static void make_state(const json_t *statistics, const char *key, int observation, int dims, double *out) {
  const json_t *proprio = json_object_get(json_object_get(statistics, key), "proprio");
  for (int d = 0; d < dims; d++)
    out[d] = json_number_value(json_array_get(json_object_get(proprio, "mean"), (size_t)d)) +
             (observation - 1) * json_number_value(json_array_get(json_object_get(proprio, "std"), (size_t)d));
}

static void list_modes(const hvla_model *model, answers *out) {
  bool diffusion = strcmp(hvla_objective(model), "autoregressive") != 0;
  bool words = strcmp(hvla_objective(model), "diffusion") != 0;
  if (diffusion && words) out->modes[out->num_modes++] = HVLA_MODE_ENSEMBLE;
  if (diffusion) out->modes[out->num_modes++] = HVLA_MODE_DIFFUSION;
  if (words) out->modes[out->num_modes++] = HVLA_MODE_AUTOREGRESSIVE;
}

/* Turns the library's error into an hv_status. */
static hv_status from_library(hvla_code code, const char *directory, const hvla_error *error) {
  return code ? hv_error((hv_code)code, "%s cannot predict: %s", directory, error->message) : HV_OK;
}

/* Predicts from every observation in every mode; `rgb` and `state` have room for one observation. */
static hv_status ask(const hv_verification *what, const char *directory, hvla_model *model, uint8_t *rgb, double *state,
                     answers *out) {
  static const char *const instructions[OBSERVATIONS] = {"pick up the red block", "Open the top drawer.", "go"};
  hvla_error error;
  hvla_result result;
  hvla_image images[HV_MAX_CAMERAS];
  hvla_request request = hvla_default_request();
  request.images = images;
  request.num_images = (size_t)hvla_num_cameras(model);
  /* For a schedule of less than ten steps, DDIM may have no stride that gives the default number; one step at a time
   * always works. */
  if (hvla_diffusion_steps(model) < 10) request.ddim_steps = hvla_diffusion_steps(model);
  request.unnorm_key = hv_model_card_key(what->statistics, hvla_action_dim(model), hvla_state_dim(model));
  request.state_dim = (size_t)hvla_state_dim(model);
  request.state = request.state_dim > 0 ? state : NULL;
  out->values = hvla_action_chunk(model) * hvla_action_dim(model);
  list_modes(model, out);
  for (int i = 0; i < OBSERVATIONS; i++) {
    for (int c = 0; c < hvla_num_cameras(model); c++) {
      uint8_t *picture = rgb + (size_t)c * WIDTH * HEIGHT * 3;
      draw_picture(i, c, picture);
      images[c] = (hvla_image){.camera = hvla_camera(model, c), .data = picture, .width = WIDTH, .height = HEIGHT};
    }
    make_state(what->statistics, request.unnorm_key, i, hvla_state_dim(model), state);
    request.instruction = instructions[i];
    request.step = (uint64_t)i;
    for (int m = 0; m < out->num_modes; m++) {
      request.mode = out->modes[m];
      HV_TRY(from_library(hvla_predict(model, &request, &result, &error), directory, &error));
      HV_TRY(keep(&result, out->values, &out->each[i * MODES + m]));
    }
  }
  return HV_OK;
}

static hv_status collect(const hv_verification *what, const char *directory, answers *out) {
  hvla_error error;
  hvla_model *model;
  hvla_options options = hvla_default_options();
  options.device = what->device;
  options.threads = what->threads;
  options.measure_algorithms = 0; /* both models must use the same algorithms */
  HV_TRY(from_library(hvla_load(directory, &options, &model, &error), directory, &error));
  uint8_t *rgb = malloc((size_t)HV_MAX_CAMERAS * WIDTH * HEIGHT * 3);
  double *state = calloc((size_t)hvla_state_dim(model) + 1, sizeof *state);
  hv_status status = rgb && state ? ask(what, directory, model, rgb, state, out) : hv_error_memory("an observation");
  free(rgb);
  free(state);
  hvla_free(model);
  return status;
}

static bool same_bits(const answer *a, const answer *b, int values) {
  size_t count = (size_t)values;
  return memcmp(a->action, b->action, count * sizeof *a->action) == 0 &&
         memcmp(a->diffusion, b->diffusion, count * sizeof *a->diffusion) == 0 &&
         memcmp(a->confidences, b->confidences, count * sizeof *a->confidences) == 0 &&
         memcmp(a->tokens, b->tokens, count * sizeof *a->tokens) == 0;
}

/* Clipped to the data's range, as an action is before the robot gets it. */
static double clipped(float value) {
  return value < -1 ? -1 : value > 1 ? 1 : value;
}

static double largest_difference(const answer *a, const answer *b, int values) {
  double largest = 0;
  for (int i = 0; i < values; i++) largest = fmax(largest, fabs(clipped(a->diffusion[i]) - clipped(b->diffusion[i])));
  for (int i = 0; i < values && a->has_words; i++) {
    largest = fmax(largest, fabs((double)a->confidences[i] - (double)b->confidences[i]));
    if (a->tokens[i] != b->tokens[i]) break;
  }
  return largest;
}

static hv_status compare(const hv_verification *what, const answers *before, const answers *after, hv_text *out) {
  static const char *const names[] = {[HVLA_MODE_ENSEMBLE] = "ensemble",
                                      [HVLA_MODE_DIFFUSION] = "diffusion",
                                      [HVLA_MODE_AUTOREGRESSIVE] = "autoregressive"};
  double largest = 0;
  int words = 0, same_words = 0;
  for (int i = 0; i < OBSERVATIONS; i++) {
    for (int m = 0; m < before->num_modes; m++) {
      const answer *a = &before->each[i * MODES + m], *b = &after->each[i * MODES + m];
      double difference = largest_difference(a, b, before->values);
      bool good = what->tolerance > 0 ? difference <= what->tolerance : same_bits(a, b, before->values);
      if (!good)
        return hv_error(HV_ERR_NO, "%s predicts differently from %s: observation %d, mode %s: by %g (allowed: %g)",
                        what->after, what->before, i, names[before->modes[m]], difference, what->tolerance);
      largest = fmax(largest, difference);
      for (int v = 0; v < before->values && a->has_words; v++) {
        words++;
        same_words += a->tokens[v] == b->tokens[v];
      }
    }
  }
  hv_text_add(out, "verified: %d predictions in %d modes ", OBSERVATIONS * before->num_modes, before->num_modes);
  if (what->tolerance == 0) {
    hv_text_add(out, "are equal to the bit\n");
  } else {
    hv_text_add(out, "differ by %.2g at most (allowed: %g)", largest, what->tolerance);
    if (words > 0) hv_text_add(out, ", %d of %d action tokens are the same", same_words, words);
    hv_text_add(out, "\n");
  }
  return HV_OK;
}

hv_status hv_verify_predictions(const hv_verification *what, hv_text *out) {
  answers before = {0}, after = {0};
  hv_status status;
  HV_CHECK(collect(what, what->before, &before));
  HV_CHECK(hv_verify_as_no(collect(what, what->after, &after)));
  if (before.values == after.values && before.num_modes == after.num_modes) {
    status = compare(what, &before, &after, out);
  } else {
    status = hv_error(HV_ERR_NO, "%s predicts actions of another size, or in other modes, than %s", what->after,
                      what->before);
  }
done:
  answers_free(&before);
  answers_free(&after);
  return status;
}
