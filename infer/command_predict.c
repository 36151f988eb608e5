/* hvla-infer predict: a thin client of the library (hvla.h). */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"
#include "infer/commands.h"
#include "infer/hvla.h"

typedef struct predict_options {
  char *model, *instruction;
  hv_string_list images;               /* "camera=file" */
  char *state, *unnorm_key, *noise;    /* NULL: not given */
  int32_t mode, sampler, ar_condition; /* hvla_mode, hvla_sampler, hvla_ar_condition */
  int64_t ddim_steps, seed, threads, max_prompt;
  double theta;
  char *device;
  int32_t dtype; /* index into hv_dtype_choices */
  bool json;
} predict_options;

static const hv_option options[] = {
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(predict_options, model),
     .unit = "DIR",
     .doc = "Model directory, such as hvla-train writes to RUN/model."},
    {.key = "image",
     .type = HV_OPTION_STRING_LIST,
     .offset = offsetof(predict_options, images),
     .fallback = "[]",
     .unit = "CAMERA=FILE",
     .doc = "A camera's picture, PNG or JPEG of any size; once for every camera of the model."},
    {.key = "instruction",
     .type = HV_OPTION_STRING,
     .offset = offsetof(predict_options, instruction),
     .unit = "TEXT",
     .doc = "What the robot should do."},
    {.key = "state",
     .type = HV_OPTION_STRING,
     .offset = offsetof(predict_options, state),
     .fallback = "null",
     .unit = "V1,V2,...",
     .doc = "The robot's state, in its own units. Leave it out for a model without state."},
    {.key = "unnorm-key",
     .type = HV_OPTION_STRING,
     .offset = offsetof(predict_options, unnorm_key),
     .fallback = "null",
     .unit = "KEY",
     .doc = "The data set whose statistics scale state and action. Not needed if the model has only one."},
    HV_MODE_OPTION(predict_options, "Which head acts. ensemble: the mean of both if the tokens' mean probability is "
                                    "above --theta, else the diffusion head. auto: ensemble, or the only head that "
                                    "the model has."),
    HV_SAMPLER_OPTION(predict_options),
    HV_DDIM_STEPS_OPTION(predict_options),
    {.key = "theta",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(predict_options, theta),
     .fallback = "0.96",
     .unit = "C",
     .doc = "Threshold of the mode ensemble, for the mean probability of the action tokens."},
    HV_AR_CONDITION_OPTION(predict_options),
    {.key = "seed",
     .type = HV_OPTION_INT,
     .offset = offsetof(predict_options, seed),
     .fallback = "0",
     .max = 9e15,
     .unit = "N",
     .doc = "Seed of the random draws; the same seed gives the same action."},
    {.key = "noise",
     .type = HV_OPTION_PATH,
     .offset = offsetof(predict_options, noise),
     .fallback = "null",
     .unit = "FILE",
     .doc = "Read the random draws from this safetensors file: noise F32 [H, A], ar_noise F32 [H, A], ar_timestep I32 "
            "[1], step_noise F32 [T, H, A] (H action steps, A action dimensions, T diffusion steps). Those that it "
            "lacks are drawn from the seed."},
    HV_DEVICE_OPTION(predict_options),
    HV_DTYPE_OPTION(predict_options),
    HV_THREADS_OPTION(predict_options),
    {.key = "max-prompt",
     .type = HV_OPTION_INT,
     .offset = offsetof(predict_options, max_prompt),
     .fallback = "512",
     .min = 1,
     .max = 65536,
     .unit = "N",
     .doc = "Maximum number of tokens of the prompt with the instruction in it."},
    HV_JSON_OPTION(predict_options),
};

const char *const hv_mode_choices[] = {"auto", "ensemble", "diffusion", "autoregressive", NULL};
const char *const hv_sampler_choices[] = {"ddim", "ddpm", NULL};
const char *const hv_ar_condition_choices[] = {"auto", "noise", "random", "denoised", NULL};
const char *const hv_dtype_choices[] = {"auto", "fp32", "bf16", NULL};

/* Everything that the command allocates. */
typedef struct inputs {
  hv_mapping *files; /* [images] */
  char **cameras;    /* [images] */
  hvla_image *images;
  size_t count;
  double *state;
  float *noise, *ar_noise, *step_noise;
  int32_t ar_timestep;
  hvla_model *model;
  hvla_error error;
} inputs;

static void inputs_free(inputs *in) {
  for (size_t i = 0; i < in->count; i++) {
    hv_unmap(&in->files[i]);
    free(in->cameras[i]);
  }
  free(in->files);
  free(in->cameras);
  free(in->images);
  free(in->state);
  free(in->noise);
  free(in->ar_noise);
  free(in->step_noise);
  hvla_free(in->model);
}

/* Turns the library's error into an hv_status. */
static hv_status from_library(const inputs *in, hvla_code code) {
  return code ? hv_error((hv_code)code, "%s", in->error.message) : HV_OK;
}

static hv_status read_images(const hv_string_list *list, inputs *in) {
  in->files = calloc(list->count + 1, sizeof *in->files);
  in->cameras = calloc(list->count + 1, sizeof *in->cameras);
  in->images = calloc(list->count + 1, sizeof *in->images);
  if (!in->files || !in->cameras || !in->images) return hv_error_memory("the pictures");
  for (size_t i = 0; i < list->count; i++) {
    const char *text = list->items[i], *equals = strchr(text, '=');
    if (!equals || equals == text || !equals[1])
      return hv_error(HV_ERR_INPUT, "--image %s: CAMERA=FILE is expected, such as --image front=picture.png", text);
    in->cameras[i] = strndup(text, (size_t)(equals - text));
    if (!in->cameras[i]) return hv_error_memory("the pictures");
    in->count = i + 1;
    HV_TRY(hv_error_context(hv_map_file(equals + 1, &in->files[i]), "--image %s", in->cameras[i]));
    if (!in->files[i].size) return hv_error(HV_ERR_INPUT, "--image %s: %s is empty", in->cameras[i], equals + 1);
    in->images[i] = (hvla_image){
        .camera = in->cameras[i], .data = in->files[i].data, .size = in->files[i].size, .source = equals + 1};
  }
  return HV_OK;
}

/* "0.1, -2, 3e-1" */
static hv_status read_state(const char *text, inputs *in, size_t *count) {
  size_t values = 1;
  for (const char *c = text; *c; c++) values += *c == ',';
  in->state = calloc(values, sizeof *in->state);
  if (!in->state) return hv_error_memory("the state");
  const char *at = text;
  for (size_t i = 0; i < values; i++) {
    char *end;
    in->state[i] = strtod(at, &end);
    bool read = end != at && isfinite(in->state[i]);
    end += strspn(end, " \t");
    if (!read || *end != (i + 1 < values ? ',' : '\0'))
      return hv_error(
          HV_ERR_INPUT,
          "--state \"%s\": value %zu is no number (the first is value 0); numbers separated by commas are expected",
          text, i);
    at = end + 1;
  }
  *count = values;
  return HV_OK;
}

/* A draw of the file as floats on the heap; *out stays NULL if the file lacks it. */
static hv_status read_draw(const hv_safetensors *file, const char *name, int rank, const int64_t *shape, float **out) {
  const hv_file_tensor *tensor = hv_safetensors_find(file, name);
  if (!tensor) return HV_OK;
  char found[128], wanted[128];
  bool fits = tensor->known && tensor->dtype == HV_F32 && tensor->rank == rank;
  for (int i = 0; fits && i < rank; i++) fits = tensor->shape[i] == shape[i];
  if (!fits) {
    hv_format_shape(tensor->dtype_name, tensor->shape, tensor->rank, found, sizeof found);
    hv_format_shape("F32", shape, rank, wanted, sizeof wanted);
    return hv_error(HV_ERR_INPUT, "%s: %s is %s; %s is expected", tensor->file, name, found, wanted);
  }
  *out = malloc((size_t)tensor->count * sizeof **out);
  if (!*out) return hv_error_memory(name);
  hv_file_tensor_read_f32(tensor, 0, tensor->count, *out);
  return HV_OK;
}

static hv_status read_timestep(const hv_safetensors *file, inputs *in, hvla_request *request) {
  const hv_file_tensor *tensor = hv_safetensors_find(file, "ar_timestep");
  if (!tensor) return HV_OK;
  if (!tensor->known || tensor->dtype != HV_I32 || tensor->rank != 1 || tensor->shape[0] != 1) {
    char found[128];
    hv_format_shape(tensor->dtype_name, tensor->shape, tensor->rank, found, sizeof found);
    return hv_error(HV_ERR_INPUT, "%s: ar_timestep is %s; I32 [1] is expected", tensor->file, found);
  }
  memcpy(&in->ar_timestep, tensor->data, sizeof in->ar_timestep);
  request->ar_timestep = &in->ar_timestep;
  return HV_OK;
}

/* An unknown name is probably misspelt; the draw that was meant then comes from the seed. */
static void warn_of_others(const hv_safetensors *file, const char *path) {
  static const char *const known[] = {"noise", "ar_noise", "ar_timestep", "step_noise"};
  for (int32_t i = 0; i < hv_safetensors_count(file); i++) {
    const char *name = hv_safetensors_get(file, i)->name;
    bool read = false;
    for (size_t k = 0; k < sizeof known / sizeof *known && !read; k++) read = strcmp(name, known[k]) == 0;
    if (!read) hv_log_warning("%s: %s is none of noise, ar_noise, ar_timestep, step_noise: it is ignored", path, name);
  }
}

static hv_status read_draws(const char *path, inputs *in, hvla_request *request) {
  hv_safetensors *file;
  HV_TRY(hv_safetensors_open(path, &file));
  hv_status status = HV_OK;
  int64_t shape[] = {hvla_diffusion_steps(in->model), hvla_action_chunk(in->model), hvla_action_dim(in->model)};
  HV_CHECK(read_draw(file, "noise", 2, shape + 1, &in->noise));
  HV_CHECK(read_draw(file, "ar_noise", 2, shape + 1, &in->ar_noise));
  HV_CHECK(read_draw(file, "step_noise", 3, shape, &in->step_noise));
  HV_CHECK(read_timestep(file, in, request));
  request->noise = in->noise;
  request->ar_noise = in->ar_noise;
  request->step_noise = in->step_noise;
  if (!in->noise && !in->ar_noise && !in->step_noise && !request->ar_timestep)
    status = hv_error(HV_ERR_INPUT, "%s holds none of noise, ar_noise, ar_timestep, step_noise", path);
  if (!status) warn_of_others(file, path);
done:
  hv_safetensors_close(file);
  return status;
}

/* What the first prediction takes for memory, plans and graphs. */
static double set_up_ms(const hvla_result *result) {
  return result->total_ms -
         (result->input_ms + result->vision_ms + result->prefill_ms + result->denoise_ms + result->decode_ms);
}

/* [chunk][dim] as nested arrays; `wide`: of doubles, else of floats. */
static json_t *matrix(const hvla_result *result, const void *values, bool wide) {
  json_t *rows = json_array();
  for (int h = 0; h < result->action_chunk; h++) {
    json_t *row = json_array();
    for (int d = 0; d < result->action_dim; d++) {
      int i = h * result->action_dim + d;
      json_array_append_new(row, json_real(wide ? ((const double *)values)[i] : (double)((const float *)values)[i]));
    }
    json_array_append_new(rows, row);
  }
  return rows;
}

static hv_status print_json(const hvla_result *result, hv_text *out) {
  json_t *object = json_object();
  json_object_set_new(object, "action", matrix(result, result->action, true));
  if (result->diffusion) {
    json_object_set_new(object, "diffusion", matrix(result, result->diffusion, true));
    json_object_set_new(object, "diffusion_normalized", matrix(result, result->diffusion_normalized, false));
  }
  if (result->autoregressive) {
    json_t *tokens = json_array(), *confidences = json_array();
    for (int i = 0; i < result->action_chunk * result->action_dim; i++) {
      json_array_append_new(tokens, json_integer(result->tokens[i]));
      json_array_append_new(confidences, json_real((double)result->confidences[i]));
    }
    json_object_set_new(object, "autoregressive", matrix(result, result->autoregressive, true));
    json_object_set_new(object, "tokens", tokens);
    json_object_set_new(object, "confidences", confidences);
    json_object_set_new(object, "confidence", json_real(result->confidence));
  }
  json_object_set_new(object, "used", json_string(hv_mode_choices[result->used]));
  json_object_set_new(object, "timing_ms",
                      json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "total", result->total_ms, "set_up",
                                set_up_ms(result), "input", result->input_ms, "vision", result->vision_ms, "prefill",
                                result->prefill_ms, "denoise", result->denoise_ms, "decode", result->decode_ms));
  hv_status status = object ? hv_json_format_line(object, out) : hv_error_memory("the answer");
  hv_text_add(out, "\n");
  json_decref(object);
  return status;
}

static void print_rows(const char *name, const double *values, const hvla_result *result, hv_text *out) {
  for (int h = 0; h < result->action_chunk; h++) {
    hv_text_add(out, "%-15s", h ? "" : name);
    for (int d = 0; d < result->action_dim; d++) hv_text_add(out, " %10.5f", values[h * result->action_dim + d]);
    hv_text_add(out, "\n");
  }
}

static void print_table(const hvla_result *result, const predict_options *given, hv_text *out) {
  print_rows("action", result->action, result, out);
  if (result->diffusion) print_rows("diffusion", result->diffusion, result, out);
  if (result->autoregressive) {
    print_rows("autoregressive", result->autoregressive, result, out);
    hv_text_add(out, "%-15s", "confidence");
    for (int i = 0; i < result->action_chunk * result->action_dim; i++)
      hv_text_add(out, "%s %10.5f", i && i % result->action_dim == 0 ? "\n               " : "",
                  result->confidences[i]);
    hv_text_add(out, "\n");
  }
  hv_text_add(out, "\nin the robot's units, one row for each action step");
  if (result->diffusion && result->autoregressive && given->mode <= HVLA_MODE_ENSEMBLE) {
    bool mean = result->used == HVLA_MODE_ENSEMBLE;
    hv_text_add(out, "; the action is %s, as the mean confidence %.4f is %s theta %g",
                mean ? "the mean of both heads" : "the diffusion head's", result->confidence,
                mean ? "above" : "not above", given->theta);
  }
  hv_text_add(out,
              "\n%.1f ms: set-up %.1f, preparing inputs %.1f, image encoders %.1f, prefill with first steps %.1f, "
              "denoising %.1f, decoding tokens %.1f\n",
              result->total_ms, set_up_ms(result), result->input_ms, result->vision_ms, result->prefill_ms,
              result->denoise_ms, result->decode_ms);
}

static hv_status predict(const predict_options *given, inputs *in, hv_text *out) {
  hvla_request request = hvla_default_request();
  hvla_options load = {.device = given->device,
                       .dtype = hv_dtype_choices[given->dtype],
                       .threads = (int)given->threads,
                       .max_prompt = (int)given->max_prompt};
  hvla_result result;
  HV_TRY(read_images(&given->images, in));
  if (given->state) HV_TRY(read_state(given->state, in, &request.state_dim));
  HV_TRY(from_library(in, hvla_load(given->model, &load, &in->model, &in->error)));
  if (given->noise) HV_TRY(read_draws(given->noise, in, &request));
  request.images = in->images;
  request.num_images = in->count;
  request.instruction = given->instruction;
  request.state = in->state;
  request.unnorm_key = given->unnorm_key;
  request.mode = (hvla_mode)given->mode;
  request.sampler = (hvla_sampler)given->sampler;
  request.ddim_steps = (int)given->ddim_steps;
  request.theta = given->theta;
  request.ar_condition = (hvla_ar_condition)given->ar_condition;
  request.seed = (uint64_t)given->seed;
  request.timing = 1;
  HV_TRY(from_library(in, hvla_predict(in->model, &request, &result, &in->error)));
  if (given->json) return print_json(&result, out);
  print_table(&result, given, out);
  return HV_OK;
}

static hv_status work(const void *values, hv_command_result *result) {
  const predict_options *given = values;
  hv_text *out = &result->text;
  inputs in = {0};
  hv_status status = predict(given, &in, out);
  inputs_free(&in);
  return status;
}

const hv_command hv_command_predict = {
    .name = "predict",
    .summary = "Predict an action from pictures, an instruction and the robot's state.",
    .help = "Prints the action in the robot's own units, one row for each action step, and the action of each head.\n"
            "The model fixes the names of the cameras, the width of the state and the keys of the statistics; input\n"
            "that does not fit is refused with a message that lists them. Exit code 0, or 2 for an error.\n"
            "\n"
            "  hvla-infer predict --model runs/lift/model --image front=front.png \\\n"
            "    --instruction \"lift the cube\" --state 0.1,0.2,0.9,0,0,0,1,0.02,-0.02\n"
            "  hvla-infer predict … --mode diffusion --ddim-steps 10 --seed 7\n"
            "  hvla-infer predict … --json | jq .action\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .values_size = sizeof(predict_options),
    .work = work,
};
