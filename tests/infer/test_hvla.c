/* The library as another program uses it: only through hvla.h and libhvla.so. Predictions are compared with those that
 * are put together from the inner parts; and wrong requests and directories are refused. */
#include "infer/hvla.h"

#include <math.h>
#include <pthread.h>

#include "core/base/clock.h"
#include "core/cpu/cpu.h"
#include "core/hybridvla/policy.h"
#include "core/image/image.h"
#include "core/image/resize.h"
#include "core/io/dataset_statistics.h"
#include "core/io/json.h"
#include "core/io/model_directory.h"
#include "core/text/prompt.h"
#include "tests/check.h"
#include "tests/infer/tiny_directory.h"

#define INSTRUCTION "Pick up the Red cube"

static const double robot_state[TINY_STATE] = {0.3, -1.5, 0.2, 0.9, 2.5};
static char *folder;
static hvla_error error;

static hvla_model *load(const char *name) {
  hvla_model *model;
  if (hvla_load(in_folder(folder, name), NULL, &model, &error)) fail_msg("%s", error.message);
  return model;
}

static void setup_directory(const char *name, tiny_directory_options options) {
  write_tiny_directory(in_folder(folder, name), &options);
}

static int enter(void **state) {
  if (make_folder(state)) return -1;
  folder = *state;
  setup_directory("hybrid", (tiny_directory_options){.keys = 1});
  setup_directory("diffusion", (tiny_directory_options){.objective = "diffusion", .keys = 1, .no_state = 1});
  setup_directory("autoregressive", (tiny_directory_options){.objective = "autoregressive", .keys = 2});
  setup_directory("broken", (tiny_directory_options){.keys = 1, .not_finite = 1});
  return 0;
}

/* Makes a picture of waves. */
static hv_image picture(int32_t width, int32_t height, double phase) {
  hv_image image;
  assert_ok(hv_image_allocate(width, height, &image));
  for (int32_t row = 0; row < height; row++)
    for (int32_t i = 0; i < 3 * width; i++)
      image.rgb[row * 3 * width + i] = (uint8_t)(127 + 100 * sin(phase + 0.05 * i + 0.2 * row));
  return image;
}

typedef struct view {
  hv_image pictures[2];
  hvla_image images[2];
} view;

static view view_open(void) {
  view v = {.pictures = {picture(64, 48, 0.0), picture(31, 57, 1.0)}};
  static const char *const cameras[] = {"wrist", "front"}; /* not the model's order */
  for (int i = 0; i < 2; i++)
    v.images[i] = (hvla_image){
        .camera = cameras[i], .data = v.pictures[i].rgb, .width = v.pictures[i].width, .height = v.pictures[i].height};
  return v;
}

static void view_close(view *v) {
  hv_image_free(&v->pictures[0]);
  hv_image_free(&v->pictures[1]);
}

static hvla_request make_request(const view *v) {
  hvla_request request = hvla_default_request();
  request.images = v->images;
  request.num_images = 2;
  request.instruction = INSTRUCTION;
  request.state = robot_state;
  request.state_dim = TINY_STATE;
  return request;
}

static hvla_result predict(hvla_model *model, const hvla_request *request) {
  hvla_result result;
  if (hvla_predict(model, request, &result, &error)) fail_msg("%s", error.message);
  assert_int_equal(error.code, HVLA_OK);
  return result;
}

static void tells_what_the_model_is(void **state) {
  (void)state;
  hvla_model *model = load("hybrid");
  assert_int_equal(hvla_action_dim(model), TINY_ACTIONS);
  assert_int_equal(hvla_action_chunk(model), TINY_CHUNK);
  assert_int_equal(hvla_state_dim(model), TINY_STATE);
  assert_int_equal(hvla_num_cameras(model), 2);
  assert_string_equal(hvla_camera(model, 0), "front");
  assert_string_equal(hvla_camera(model, 1), "wrist");
  assert_null(hvla_camera(model, 2));
  assert_null(hvla_camera(model, -1));
  assert_int_equal(hvla_image_size(model), TINY_IMAGE);
  assert_int_equal(hvla_diffusion_steps(model), 100);
  assert_string_equal(hvla_objective(model), "hybrid");
  assert_int_equal(hvla_num_unnorm_keys(model), 1);
  assert_string_equal(hvla_unnorm_key(model, 0), "lift");
  assert_null(hvla_unnorm_key(model, 1));
  hvla_free(model);
  model = load("autoregressive");
  assert_int_equal(hvla_num_unnorm_keys(model), 2);
  assert_string_equal(hvla_unnorm_key(model, 1), "drawer");
  hvla_free(model);
  hvla_free(NULL);
}

static void the_version_is_the_projects(void **state) {
  (void)state;
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", HVLA_VERSION_MAJOR, HVLA_VERSION_MINOR, HVLA_VERSION_PATCH);
  assert_string_equal(version, HVLA_VERSION);
  assert_int_equal(hvla_version(), HVLA_VERSION_NUMBER);
}

/* The same prediction, put together from the inner parts. */
static void predict_inside(const view *v, hv_policy_result *result, hv_policy **policy, hv_model **model,
                           hv_device **device) {
  hv_stream *stream;
  hv_model_directory directory;
  hv_tokenizer *tokenizer;
  hv_token_list prompt;
  hv_dataset_statistics statistics;
  static uint8_t images[2 * TINY_IMAGE * TINY_IMAGE * 3];
  float normalized[TINY_STATE];
  assert_ok(hv_cpu_device_open(NULL, device));
  assert_ok(hv_stream_open(*device, &stream));
  assert_ok(hv_model_directory_open(in_folder(folder, "hybrid"), &directory));
  const hv_config config = directory.model.config;
  assert_ok(hv_model_open(&config, *device, HV_F32, model));
  assert_ok(hv_params_allocate(hv_model_params(*model)));
  assert_ok(hv_model_directory_fill(&directory, hv_model_params(*model), stream, NULL));
  hv_model_directory_close(&directory);
  assert_ok(hv_tokenizer_open(TINY_TOKENIZER, &tokenizer));
  assert_ok(hv_prompt_encode(tokenizer, &config, INSTRUCTION, &prompt));
  hv_tokenizer_close(tokenizer);
  assert_ok(hv_dataset_statistics_load(in_folder(folder, "hybrid/dataset_statistics.json"), NULL, &statistics));
  hv_normalize(&statistics.proprio, robot_state, normalized);
  hv_dataset_statistics_free(&statistics);
  for (int i = 0; i < 2; i++) { /* the first picture of the request is for the model's second camera */
    hv_resizer *resizer;
    assert_ok(hv_resizer_open_frame(v->pictures[i].width, v->pictures[i].height, TINY_IMAGE, config.image_resize,
                                    config.vision[0].image_mean, &resizer));
    hv_resizer_run(resizer, v->pictures[i].rgb, images + (1 - i) * TINY_IMAGE * TINY_IMAGE * 3);
    hv_resizer_close(resizer);
  }
  hv_policy_options options = hv_policy_default_options(&config);
  hv_observation observation = {
      .images = images, .prompt_ids = prompt.ids, .prompt_count = (int32_t)prompt.count, .state = normalized};
  assert_ok(hv_policy_open(*model, &options, policy));
  assert_ok(hv_policy_predict(*policy, &observation, &(hv_policy_draws){.seed = 3, .step = 4}, result));
  hv_token_list_free(&prompt);
  hv_stream_close(stream);
}

static void a_prediction_is_the_policys(void **state) {
  (void)state;
  view v = view_open();
  hvla_model *model = load("hybrid");
  hvla_request request = make_request(&v);
  request.seed = 3;
  request.step = 4;
  hvla_result result = predict(model, &request);

  hv_policy *policy;
  hv_model *inside;
  hv_device *device;
  hv_policy_result expected;
  predict_inside(&v, &expected, &policy, &inside, &device);
  assert_memory_equal(result.diffusion_normalized, expected.diffusion, TINY_VALUES * sizeof(float));
  assert_memory_equal(result.tokens, expected.tokens, TINY_VALUES * sizeof(int32_t));
  assert_memory_equal(result.confidences, expected.confidences, TINY_VALUES * sizeof(float));
  assert_true(result.confidence == expected.confidence);

  hv_dataset_statistics statistics;
  double robot[TINY_ACTIONS];
  assert_ok(hv_dataset_statistics_load(in_folder(folder, "hybrid/dataset_statistics.json"), NULL, &statistics));
  for (int h = 0; h < TINY_CHUNK; h++) {
    hv_unnormalize(&statistics.action, expected.diffusion + h * TINY_ACTIONS, robot);
    assert_memory_equal(result.diffusion + h * TINY_ACTIONS, robot, sizeof robot);
    hv_unnormalize(&statistics.action, expected.autoregressive + h * TINY_ACTIONS, robot);
    assert_memory_equal(result.autoregressive + h * TINY_ACTIONS, robot, sizeof robot);
  }
  hv_dataset_statistics_free(&statistics);
  hv_policy_close(policy);
  hv_model_close(inside);
  hv_device_close(device);
  hvla_free(model);
  view_close(&v);
}

/* The gripper was trained on as 1 open, 0 closed; the robot itself uses -1 open, 1 closed. */
static void a_converted_gripper_is_given_back(void **state) {
  (void)state;
  json_t *statistics;
  const char *path = in_folder(folder, "converted/dataset_statistics.json");
  setup_directory("converted", (tiny_directory_options){.keys = 1});
  assert_ok(hv_json_load(path, &statistics));
  json_object_set_new(json_object_get(statistics, "lift"), "gripper",
                      json_pack("{s:[i], s:i, s:i}", "dims", TINY_ACTIONS - 1, "open", -1, "closed", 1));
  assert_ok(hv_json_save(path, statistics));
  json_decref(statistics);

  view v = view_open();
  hvla_model *plain = load("hybrid"), *converted = load("converted");
  for (int mode = 0; mode < 3; mode++) {
    hvla_request request = make_request(&v);
    request.mode = (hvla_mode[]){HVLA_MODE_ENSEMBLE, HVLA_MODE_DIFFUSION, HVLA_MODE_AUTOREGRESSIVE}[mode];
    request.theta = 0;
    hvla_result own = predict(plain, &request), other = predict(converted, &request);
    const double *given[] = {own.action, own.diffusion, own.autoregressive};
    const double *robot[] = {other.action, other.diffusion, other.autoregressive};
    for (int part = 0; part < 3; part++) {
      for (int i = 0; i < TINY_VALUES && given[part]; i++) {
        bool gripper = i % TINY_ACTIONS == TINY_ACTIONS - 1;
        assert_true(robot[part][i] == (gripper ? 1 - 2 * given[part][i] : given[part][i]));
      }
    }
  }
  hvla_free(plain);
  hvla_free(converted);
  view_close(&v);
}

static void files_of_pictures_are_their_pixels(void **state) {
  (void)state;
  static const char *const names[] = {"rgb8.png", "yuv420_q75.jpg"};
  hv_safetensors *file;
  assert_ok(hv_safetensors_open(HVLA_SOURCE_DIR "/tests/fixtures/image/pictures.safetensors", &file));
  hvla_model *model = load("hybrid");
  double actions[2][TINY_VALUES];
  for (int encoded = 0; encoded < 2; encoded++) {
    hvla_image images[2];
    for (int i = 0; i < 2; i++) {
      char name[64];
      snprintf(name, sizeof name, "rgb.%s", names[i]);
      const hv_file_tensor *pixels = hv_safetensors_find(file, name);
      snprintf(name, sizeof name, "file.%s", names[i]);
      const hv_file_tensor *bytes = hv_safetensors_find(file, name);
      assert_true(pixels && bytes);
      images[i] = (hvla_image){.camera = i ? "wrist" : "front", .data = bytes->data, .size = bytes->size};
      if (encoded) continue;
      images[i].data = pixels->data;
      images[i].size = pixels->size;
      images[i].width = (int)pixels->shape[1];
      images[i].height = (int)pixels->shape[0];
    }
    view v = view_open();
    hvla_request request = make_request(&v);
    request.images = images;
    memcpy(actions[encoded], predict(model, &request).action, sizeof actions[encoded]);
    view_close(&v);
  }
  assert_memory_equal(actions[0], actions[1], sizeof actions[0]);
  hvla_free(model);
  hv_safetensors_close(file);
}

static void the_mode_and_theta_choose_the_action(void **state) {
  (void)state;
  view v = view_open();
  hvla_model *model = load("hybrid");
  hvla_request request = make_request(&v);
  double diffusion[TINY_VALUES], tokens[TINY_VALUES];
  size_t bytes = sizeof diffusion;
  request.theta = 1;
  hvla_result result = predict(model, &request);
  assert_int_equal(result.used, HVLA_MODE_DIFFUSION);
  assert_memory_equal(result.action, result.diffusion, bytes);
  memcpy(diffusion, result.diffusion, bytes);
  memcpy(tokens, result.autoregressive, bytes);

  request.theta = 0;
  result = predict(model, &request);
  assert_int_equal(result.used, HVLA_MODE_ENSEMBLE);
  for (int i = 0; i < TINY_VALUES; i++) {
    double mean = (diffusion[i] + tokens[i]) / 2;
    assert_true(result.action[i] == (i % TINY_ACTIONS == TINY_ACTIONS - 1 ? mean > 0.5 : mean));
  }

  request.mode = HVLA_MODE_DIFFUSION;
  result = predict(model, &request);
  assert_int_equal(result.used, HVLA_MODE_DIFFUSION);
  assert_null(result.tokens);
  assert_null(result.autoregressive);
  for (int i = 0; i < TINY_VALUES; i++) assert_true(fabs(result.action[i] - diffusion[i]) < 1e-5);

  request.mode = HVLA_MODE_AUTOREGRESSIVE;
  result = predict(model, &request);
  assert_int_equal(result.used, HVLA_MODE_AUTOREGRESSIVE);
  assert_null(result.diffusion);
  assert_memory_equal(result.action, tokens, bytes);
  hvla_free(model);
  view_close(&v);
}

static void draws_follow_seed_and_step_or_the_caller(void **state) {
  (void)state;
  view v = view_open();
  hvla_model *model = load("hybrid");
  hvla_request request = make_request(&v);
  double first[TINY_VALUES];
  request.mode = HVLA_MODE_DIFFUSION;
  memcpy(first, predict(model, &request).action, sizeof first);
  assert_memory_equal(predict(model, &request).action, first, sizeof first);
  request.step = 1;
  assert_memory_not_equal(predict(model, &request).action, first, sizeof first);
  request.step = 0;
  request.sampler = HVLA_SAMPLER_DDPM;
  assert_memory_not_equal(predict(model, &request).action, first, sizeof first);
  request.sampler = HVLA_SAMPLER_DDIM;
  float noise[TINY_VALUES] = {0.5f, -0.5f};
  double given[TINY_VALUES];
  request.noise = noise;
  memcpy(given, predict(model, &request).action, sizeof given);
  request.seed = 99;
  assert_memory_equal(predict(model, &request).action, given, sizeof given);
  request.noise = NULL;
  request.seed = 0;
  assert_memory_equal(predict(model, &request).action, first, sizeof first);
  hvla_free(model);
  view_close(&v);
}

static void models_with_one_head_predict_with_it(void **state) {
  (void)state;
  view v = view_open();
  hvla_model *model = load("diffusion");
  hvla_request request = make_request(&v);
  request.state = NULL;
  request.state_dim = 0;
  assert_int_equal(predict(model, &request).used, HVLA_MODE_DIFFUSION);
  hvla_free(model);

  model = load("autoregressive");
  request = make_request(&v);
  request.unnorm_key = "lift";
  hvla_result result = predict(model, &request);
  assert_int_equal(result.used, HVLA_MODE_AUTOREGRESSIVE);
  double lift[TINY_VALUES];
  memcpy(lift, result.action, sizeof lift);
  request.unnorm_key = "drawer";
  assert_memory_not_equal(predict(model, &request).action, lift, sizeof lift);
  request.unnorm_key = "lift";
  assert_memory_equal(predict(model, &request).action, lift, sizeof lift);
  hvla_free(model);
  view_close(&v);
}

/* Fails unless the prediction fails with this code and a message that contains both strings. */
static void refuse(hvla_model *model, const hvla_request *request, hvla_code code, const char *first,
                   const char *second) {
  hvla_result result;
  assert_int_equal(hvla_predict(model, request, &result, &error), code);
  assert_int_equal(error.code, code);
  assert_null(result.action);
  if (!strstr(error.message, first) || !strstr(error.message, second))
    fail_msg("\"%s\" lacks \"%s\" or \"%s\"", error.message, first, second);
  assert_int_equal(hvla_predict(model, request, &result, NULL), code);
}

static void wrong_requests_are_refused(void **state) {
  (void)state;
  view v = view_open();
  hvla_model *model = load("hybrid");
  const hvla_request good = make_request(&v);
  hvla_request bad = good;
  bad.num_images = 1;
  refuse(model, &bad, HVLA_ERROR_INPUT, "no picture is given for the camera front", "front, wrist");
  hvla_image images[3] = {v.images[0], v.images[1], v.images[0]};
  bad = good;
  bad.images = images;
  bad.num_images = 3;
  refuse(model, &bad, HVLA_ERROR_INPUT, "two pictures", "wrist");
  images[2].camera = "top";
  refuse(model, &bad, HVLA_ERROR_INPUT, "no camera top", "front, wrist");
  bad.num_images = 2;
  images[0].size = 5;
  refuse(model, &bad, HVLA_ERROR_INPUT, "wrist", "5 bytes");
  images[0] = (hvla_image){.camera = "wrist", .data = "no picture", .size = 10, .source = "wrist.png"};
  refuse(model, &bad, HVLA_ERROR_INPUT, "wrist.png", "");
  images[0] = (hvla_image){.camera = "wrist", .data = v.pictures[0].rgb, .width = -4, .height = 3};
  refuse(model, &bad, HVLA_ERROR_INPUT, "wrist", "-4");

  bad = good;
  bad.images = NULL;
  refuse(model, &bad, HVLA_ERROR_INPUT, "num_images is 2", "images is NULL");
  bad = good;
  bad.state = NULL;
  refuse(model, &bad, HVLA_ERROR_INPUT, "state_dim is 5", "state is NULL");
  refuse(model, NULL, HVLA_ERROR_INPUT, "no request", "");
  refuse(NULL, &good, HVLA_ERROR_INPUT, "no model", "");
  assert_int_equal(hvla_predict(model, &good, NULL, &error), HVLA_ERROR_INPUT);

  bad = good;
  bad.state_dim = 4;
  refuse(model, &bad, HVLA_ERROR_INPUT, "4 values", "takes 5");
  double infinite[TINY_STATE] = {0, 0, INFINITY};
  bad = good;
  bad.state = infinite;
  refuse(model, &bad, HVLA_ERROR_INPUT, "value 2 of the state", "inf");
  bad = good;
  bad.unnorm_key = "lifd";
  refuse(model, &bad, HVLA_ERROR_INPUT, "lifd", "lift");
  bad = good;
  bad.instruction = "\xff";
  refuse(model, &bad, HVLA_ERROR_INPUT, "UTF-8", "");
  bad.instruction = NULL;
  refuse(model, &bad, HVLA_ERROR_INPUT, "instruction", "");
  bad = good;
  bad.ddim_steps = 11;
  refuse(model, &bad, HVLA_ERROR_INPUT, "hybrid: DDIM with 11", "10 and 12");
  bad = good;
  bad.mode = (hvla_mode)9;
  refuse(model, &bad, HVLA_ERROR_INPUT, "mode is 9", "");
  bad = good;
  bad.theta = NAN;
  refuse(model, &bad, HVLA_ERROR_INPUT, "theta", "");
  int32_t timestep = -1;
  bad = good;
  bad.ar_timestep = &timestep;
  refuse(model, &bad, HVLA_ERROR_INPUT, "ar_timestep is -1", "99");
  predict(model, &good);
  hvla_free(model);
  view_close(&v);
}

/* Nothing of an earlier request stays for the next one. */
static void each_request_stands_for_itself(void **state) {
  (void)state;
  view v = view_open();
  hvla_request request = make_request(&v);
  hvla_model *model = load("autoregressive"), *fresh;
  request.unnorm_key = "lift";
  predict(model, &request);
  request.unnorm_key = NULL;
  refuse(model, &request, HVLA_ERROR_INPUT, "lift", "drawer");
  hvla_free(model);

  model = load("hybrid");
  request = make_request(&v);
  request.ar_condition = HVLA_AR_NOISE;
  double confidence = predict(model, &request).confidence;
  request.ar_condition = HVLA_AR_DENOISED;
  assert_true(predict(model, &request).confidence != confidence);
  request.timing = 1;
  assert_true(predict(model, &request).decode_ms > 0);
  request.timing = 0;
  assert_true(predict(model, &request).decode_ms == 0);
  hv_image taller = picture(v.pictures[0].width, 2 * v.pictures[0].height, 0.5);
  v.images[0].data = taller.rgb;
  v.images[0].height = taller.height;
  double action[TINY_VALUES];
  memcpy(action, predict(model, &request).action, sizeof action);
  fresh = load("hybrid");
  assert_memory_equal(predict(fresh, &request).action, action, sizeof action);
  hv_image_free(&taller);
  hvla_free(fresh);
  hvla_free(model);
  view_close(&v);
}

/* Also if the call is of another kind than the one before, so that a policy must be opened first. */
static void the_time_is_that_of_the_whole_call(void **state) {
  (void)state;
  view v = view_open();
  hvla_model *model = load("hybrid");
  hvla_request request = make_request(&v);
  double untold = INFINITY;
  for (int i = 0; i < 8; i++) {
    request.mode = i % 2 ? HVLA_MODE_DIFFUSION : HVLA_MODE_AUTOREGRESSIVE;
    double start = 1e3 * hv_clock_seconds();
    hvla_result result = predict(model, &request);
    untold = fmin(untold, 1e3 * hv_clock_seconds() - start - result.total_ms);
  }
  assert_true(untold >= 0 && untold < 0.1);
  hvla_free(model);
  view_close(&v);
}

static void what_a_model_lacks_is_refused(void **state) {
  (void)state;
  view v = view_open();
  hvla_request request = make_request(&v);
  hvla_model *model = load("autoregressive");
  refuse(model, &request, HVLA_ERROR_INPUT, "lift", "drawer"); /* there are two keys and none is chosen */
  request.unnorm_key = "lift";
  request.mode = HVLA_MODE_ENSEMBLE;
  refuse(model, &request, HVLA_ERROR_INPUT, "autoregressive", "no noise head");
  request.mode = HVLA_MODE_DEFAULT;
  request.ar_condition = HVLA_AR_NOISE;
  refuse(model, &request, HVLA_ERROR_INPUT, "autoregressive", "no condition");
  hvla_free(model);

  model = load("diffusion");
  request = make_request(&v);
  refuse(model, &request, HVLA_ERROR_INPUT, "5 values", "no state");
  request.state_dim = 0;
  request.mode = HVLA_MODE_AUTOREGRESSIVE;
  refuse(model, &request, HVLA_ERROR_INPUT, "diffusion", "no action tokens");
  hvla_free(model);

  setup_directory("stateless", (tiny_directory_options){.keys = 1});
  const char *statistics = in_folder(folder, "stateless/dataset_statistics.json");
  json_t *document;
  assert_ok(hv_json_load(statistics, &document));
  json_object_del(json_object_get(document, "lift"), "proprio");
  assert_ok(hv_json_save(statistics, document));
  json_decref(document);
  model = load("stateless");
  request = make_request(&v);
  refuse(model, &request, HVLA_ERROR_INPUT, "lift: proprio has 0 dimensions", "a state of 5");
  hvla_free(model);

  model = load("broken");
  request = make_request(&v);
  refuse(model, &request, HVLA_ERROR_INPUT, "diffusion head", "not finite");
  hvla_free(model);
  view_close(&v);
}

static void wrong_directories_are_refused(void **state) {
  (void)state;
  hvla_model *model;
  hvla_options options = hvla_default_options();
  assert_int_not_equal(hvla_load(in_folder(folder, "nothing"), NULL, &model, &error), HVLA_OK);
  assert_non_null(strstr(error.message, "nothing"));
  assert_null(model);
  assert_int_equal(hvla_load(NULL, NULL, &model, &error), HVLA_ERROR_INPUT);
  assert_int_equal(hvla_load(in_folder(folder, "hybrid"), NULL, NULL, &error), HVLA_ERROR_INPUT);
  options.threads = 5000;
  assert_int_equal(hvla_load(in_folder(folder, "hybrid"), &options, &model, &error), HVLA_ERROR_INPUT);
  assert_non_null(strstr(error.message, "to 4096"));
  for (int i = 0; i < 2; i++) {
    options = hvla_default_options();
    options.max_prompt = i ? INT32_MAX : 0;
    assert_int_equal(hvla_load(in_folder(folder, "hybrid"), &options, &model, &error), HVLA_ERROR_INPUT);
    assert_non_null(strstr(error.message, "1 to 1048576 tokens"));
  }
  options = hvla_default_options();
  options.dtype = "fp8";
  assert_int_equal(hvla_load(in_folder(folder, "hybrid"), &options, &model, &error), HVLA_ERROR_INPUT);
  assert_non_null(strstr(error.message, "fp8"));
  options = hvla_default_options();
  options.device = "abacus";
  assert_int_equal(hvla_load(in_folder(folder, "hybrid"), &options, &model, &error), HVLA_ERROR_DEVICE);
  assert_non_null(strstr(error.message, "abacus"));

  setup_directory("bare", (tiny_directory_options){.keys = 1});
  assert_int_equal(unlink(in_folder(folder, "bare/tokenizer.model")), 0);
  model = load("bare");
  view v = view_open();
  hvla_request request = make_request(&v);
  refuse(model, &request, HVLA_ERROR_INPUT, "tokenizer.model", "missing");
  view_close(&v);
  hvla_free(model);
  assert_int_equal(unlink(in_folder(folder, "bare/dataset_statistics.json")), 0);
  assert_int_not_equal(hvla_load(in_folder(folder, "bare"), NULL, &model, &error), HVLA_OK);
  assert_non_null(strstr(error.message, "dataset_statistics.json"));
}

/* It is refused before memory is allocated: this model would take 20 TB. */
static void a_model_of_another_size_than_its_file_is_refused(void **state) {
  (void)state;
  hvla_model *model;
  json_t *config;
  const char *path = in_folder(folder, "vast/config.json");
  setup_directory("vast", (tiny_directory_options){.keys = 1});
  assert_ok(hv_json_load(path, &config));
  json_t *llm = json_object_get(config, "llm");
  json_object_set_new(llm, "vocab_size", json_integer(1 << 24));
  json_object_set_new(llm, "hidden_size", json_integer(1 << 17));
  json_object_set_new(llm, "num_attention_heads", json_integer(1 << 10));
  json_object_set_new(llm, "num_key_value_heads", json_integer(1 << 10));
  assert_ok(hv_json_save(path, config));
  json_decref(config);
  assert_int_equal(hvla_load(in_folder(folder, "vast"), NULL, &model, &error), HVLA_ERROR_INPUT);
  assert_non_null(strstr(error.message, "do not fit config.json"));
  assert_non_null(strstr(error.message, "[16777216, 131072] is expected"));
}

typedef struct worker {
  hvla_model *model;
  uint64_t seed;
  double actions[4][TINY_VALUES];
} worker;

static void *work(void *argument) {
  worker *w = argument;
  view v = view_open();
  hvla_request request = make_request(&v);
  request.seed = w->seed;
  for (request.step = 0; request.step < 4; request.step++) {
    hvla_result result;
    if (hvla_predict(w->model, &request, &result, NULL) == HVLA_OK)
      memcpy(w->actions[request.step], result.action, sizeof w->actions[0]);
  }
  view_close(&v);
  return NULL;
}

static void models_work_side_by_side(void **state) {
  (void)state;
  worker alone = {.model = load("hybrid"), .seed = 1}, pair[2] = {{.seed = 1}, {.seed = 2}};
  work(&alone);
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) {
    pair[i].model = load("hybrid");
    assert_int_equal(pthread_create(&threads[i], NULL, work, &pair[i]), 0);
  }
  for (int i = 0; i < 2; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
  assert_memory_equal(pair[0].actions, alone.actions, sizeof alone.actions);
  assert_memory_not_equal(pair[1].actions, alone.actions, sizeof alone.actions);
  for (int i = 0; i < 2; i++) hvla_free(pair[i].model);
  hvla_free(alone.model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tells_what_the_model_is),
      cmocka_unit_test(the_version_is_the_projects),
      cmocka_unit_test(a_prediction_is_the_policys),
      cmocka_unit_test(a_converted_gripper_is_given_back),
      cmocka_unit_test(files_of_pictures_are_their_pixels),
      cmocka_unit_test(the_mode_and_theta_choose_the_action),
      cmocka_unit_test(draws_follow_seed_and_step_or_the_caller),
      cmocka_unit_test(models_with_one_head_predict_with_it),
      cmocka_unit_test(wrong_requests_are_refused),
      cmocka_unit_test(each_request_stands_for_itself),
      cmocka_unit_test(the_time_is_that_of_the_whole_call),
      cmocka_unit_test(what_a_model_lacks_is_refused),
      cmocka_unit_test(wrong_directories_are_refused),
      cmocka_unit_test(a_model_of_another_size_than_its_file_is_refused),
      cmocka_unit_test(models_work_side_by_side),
  };
  return cmocka_run_group_tests(tests, enter, remove_folder);
}
