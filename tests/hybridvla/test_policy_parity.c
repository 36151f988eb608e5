/* Predictions of a device against PyTorch's, in tests/fixtures/parity/<case>/predict.safetensors (the README there says
 * what is in it); and that replaying recorded predictions and measuring algorithms do not change them.
 * test_policy_parity [DEVICE], by default cpu; skipped if DEVICE is cuda and there is no card. */
#include <math.h>

#include "core/hybridvla/action_tokens.h"
#include "core/hybridvla/policy_state.h"
#include "core/io/dataset_statistics.h"
#include "core/io/model_directory.h"
#include "tests/device.h"

static const double TOLERANCE = 1e-4;

static const char *device_name = "cpu";

typedef struct parity {
  char folder[512];
  hv_device *device;
  hv_stream *stream;
  hv_model *model;
  hv_config config;
  hv_safetensors *file;
  int32_t values;
  hv_observation observation;
  hv_policy_draws draws; /* all draws of the file except ar_timestep */
  const int32_t *ar_timestep;
} parity;

static const void *data(const parity *p, const char *name) {
  const hv_file_tensor *tensor = hv_safetensors_find(p->file, name);
  return tensor ? tensor->data : NULL;
}

/* `diffusion_steps` replaces the number of the model, to save time; 0 keeps it. */
static parity parity_open_with(const char *name, int32_t diffusion_steps) {
  parity p = {0};
  hv_model_directory directory;
  char path[600];
  snprintf(p.folder, sizeof p.folder, "%s/tests/fixtures/parity/%s", HVLA_SOURCE_DIR, name);
  assert_ok(open_device(device_name, 0, &p.device));
  assert_ok(hv_stream_open(p.device, &p.stream));
  assert_ok(hv_model_directory_open(p.folder, &directory));
  p.config = directory.model.config;
  if (diffusion_steps > 0) p.config.diffusion_steps = diffusion_steps;
  assert_ok(hv_model_open(&p.config, p.device, HV_F32, &p.model));
  assert_ok(hv_params_allocate(hv_model_params(p.model)));
  assert_ok(hv_model_directory_fill(&directory, hv_model_params(p.model), p.stream, NULL));
  hv_model_directory_close(&directory);
  snprintf(path, sizeof path, "%s/predict.safetensors", p.folder);
  assert_ok(hv_safetensors_open(path, &p.file));
  p.values = p.config.action_chunk * p.config.action_dim;
  p.observation = (hv_observation){.images = data(&p, "images"),
                                   .prompt_ids = data(&p, "prompt_ids"),
                                   .prompt_count = (int32_t)hv_safetensors_find(p.file, "prompt_ids")->count,
                                   .state = data(&p, "state")};
  p.draws = (hv_policy_draws){
      .noise = data(&p, "noise"), .ar_noise = data(&p, "ar_noise"), .step_noise = data(&p, "step_noise")};
  p.ar_timestep = data(&p, "ar_timestep");
  return p;
}

static parity parity_open(const char *name) {
  return parity_open_with(name, 0);
}

static void parity_close(parity *p) {
  hv_safetensors_close(p->file);
  hv_model_close(p->model);
  hv_stream_close(p->stream);
  hv_device_close(p->device);
}

static void assert_near(const parity *p, const char *name, const float *found) {
  const float *expected = data(p, name);
  double difference = 0, size = 0;
  if (!expected || !found) {
    fail_msg("%s: %s is missing", p->folder, name);
    return;
  }
  for (int32_t i = 0; i < p->values; i++) {
    difference += pow((double)found[i] - expected[i], 2);
    size += pow(expected[i], 2);
  }
  double error = sqrt(difference / size);
  if (!(error <= TOLERANCE)) fail_msg("%s: %s differs by %g", p->folder, name, error);
}

static void check_tokens(const parity *p, const char *condition, const hv_policy_result *result) {
  char name[64];
  snprintf(name, sizeof name, "confidences.%s", condition);
  assert_near(p, name, result->confidences);
  snprintf(name, sizeof name, "tokens.%s", condition);
  assert_memory_equal(result->tokens, data(p, name), (size_t)p->values * sizeof(int32_t));
}

/* A chunk in robot units, un-normalised as a caller does it. */
static void unnormalize(const parity *p, const hv_dataset_statistics *statistics, const float *values, double *out) {
  int32_t dim = p->config.action_dim;
  for (int32_t h = 0; h < p->config.action_chunk; h++)
    hv_unnormalize(&statistics->action, values + h * dim, out + h * dim);
}

static void check_action(const parity *p, const char *name, const double *action) {
  float found[64];
  assert_true(p->values <= 64);
  for (int32_t i = 0; i < p->values; i++) found[i] = (float)action[i];
  assert_near(p, name, found);
}

static void check_robot_units(const parity *p, const hv_policy_result *result) {
  hv_dataset_statistics statistics;
  char path[600];
  double diffusion[64] = {0}, tokens[64] = {0}, ensemble[64] = {0};
  bool gripper[64];
  snprintf(path, sizeof path, "%s/dataset_statistics.json", p->folder);
  assert_ok(hv_dataset_statistics_load(path, NULL, &statistics));
  for (int32_t d = 0; d < p->config.action_dim; d++) gripper[d] = !statistics.action.mask[d];
  if (result->diffusion) {
    unnormalize(p, &statistics, result->diffusion, diffusion);
    check_action(p, "action.diffusion", diffusion);
  }
  if (result->autoregressive) {
    unnormalize(p, &statistics, result->autoregressive, tokens);
    check_action(p, "action.autoregressive", tokens);
  }
  if (result->diffusion && result->autoregressive) {
    double theta = *(const float *)data(p, "theta");
    assert_true(hv_ensemble(diffusion, tokens, result->confidence, theta, p->config.action_chunk, p->config.action_dim,
                            gripper, ensemble));
    check_action(p, "action.ensemble", ensemble);
    assert_false(hv_ensemble(diffusion, tokens, result->confidence, 0.96, p->config.action_chunk, p->config.action_dim,
                             gripper, ensemble));
    check_action(p, "action.diffusion", ensemble);
  }
  hv_dataset_statistics_free(&statistics);
}

/* Later predictions, which a device may replay from a recording, give the same bytes as the first, also after one with
 * other draws. */
static void check_repetition(const parity *p, hv_policy *policy, const hv_policy_draws *draws,
                             const hv_policy_result *first) {
  float diffusion[64] = {0}, confidences[64] = {0};
  size_t bytes = (size_t)p->values * sizeof(float);
  assert_true(p->values <= 64);
  if (first->diffusion) memcpy(diffusion, first->diffusion, bytes);
  if (first->confidences) memcpy(confidences, first->confidences, bytes);
  for (int i = 0; i < 4; i++) {
    hv_policy_result result;
    hv_policy_draws none = {.seed = 3};
    assert_ok(hv_policy_predict(policy, &p->observation, i == 1 ? &none : draws, &result));
    if (i == 1) continue;
    if (first->diffusion) assert_memory_equal(diffusion, result.diffusion, bytes);
    if (first->confidences) assert_memory_equal(confidences, result.confidences, bytes);
  }
}

/* Opens a policy, predicts with the file's draws and compares the results with those that are named. */
static void with_policy(const parity *p, const hv_policy_options *options, const int32_t *ar_timestep,
                        const char *sampled, const char *condition) {
  hv_policy *policy;
  hv_policy_result result;
  hv_policy_draws draws = p->draws;
  draws.ar_timestep = ar_timestep;
  assert_ok(hv_policy_open(p->model, options, &policy));
  assert_ok(hv_policy_predict(policy, &p->observation, &draws, &result));
  assert_true((result.diffusion != NULL) == (sampled != NULL));
  assert_true((result.tokens != NULL) == (condition != NULL));
  if (sampled) assert_near(p, sampled, result.diffusion);
  if (condition) check_tokens(p, condition, &result);
  bool first_condition = !condition || !strcmp(condition, "noise") || !strcmp(condition, "prefix");
  if ((!sampled || !strcmp(sampled, "ddim4")) && first_condition) check_robot_units(p, &result);
  if (options->sampler == HV_SAMPLER_DDIM) check_repetition(p, policy, &draws, &result);
  hv_policy_close(policy);
}

static void check_diffusion(const parity *p) {
  static const int32_t steps[] = {1, 4, 10};
  static const char *const names[] = {"ddim1", "ddim4", "ddim10"};
  hv_policy_options options = hv_policy_default_options(&p->config);
  options.mode = HV_MODE_DIFFUSION;
  for (int i = 0; i < 3; i++) {
    options.ddim_steps = steps[i];
    with_policy(p, &options, NULL, names[i], NULL);
  }
  options.sampler = HV_SAMPLER_DDPM;
  with_policy(p, &options, NULL, "ddpm", NULL);
}

static void check_hybrid(const parity *p) {
  static const char *const names[] = {"noise", "random", "denoised"};
  hv_policy_options options = hv_policy_default_options(&p->config);
  for (hv_ar_condition condition = HV_AR_NOISE; condition <= HV_AR_DENOISED; condition++) {
    const int32_t *timestep = condition == HV_AR_RANDOM ? p->ar_timestep : NULL;
    options.ar_condition = condition;
    options.mode = HV_MODE_ENSEMBLE;
    with_policy(p, &options, timestep, "ddim4", names[condition]);
    options.mode = HV_MODE_AUTOREGRESSIVE;
    with_policy(p, &options, timestep, condition == HV_AR_DENOISED ? "ddim4" : NULL, names[condition]);
  }
  /* A timestep that is passed in takes the place of that of the condition. */
  options.ar_condition = HV_AR_NOISE;
  with_policy(p, &options, p->ar_timestep, NULL, "random");
}

static void check_case(void **state) {
  parity p = parity_open(*state);
  if (p.config.objective == HV_AUTOREGRESSIVE) {
    hv_policy_options options = hv_policy_default_options(&p.config);
    with_policy(&p, &options, NULL, NULL, "prefix");
  } else {
    check_diffusion(&p);
  }
  if (p.config.objective == HV_HYBRID) check_hybrid(&p);
  parity_close(&p);
}

/* Makes `predictions` equal predictions while the emulator loses the first `lost` recordings; each must give the first
 * one's bytes. Returns how many recordings the policy has then. */
static int recordings_after(int predictions, const char *lost) {
  float first[64];
  int found = 0;
  assert_int_equal(setenv("HVLA_EMU_DISTURB", lost, 1), 0);
  parity p = parity_open("one_arm");
  assert_int_equal(unsetenv("HVLA_EMU_DISTURB"), 0);
  hv_policy_options options = hv_policy_default_options(&p.config);
  hv_policy *policy;
  assert_ok(hv_policy_open(p.model, &options, &policy));
  assert_true(p.values <= 64);
  for (int i = 0; i < predictions; i++) {
    hv_policy_result result;
    assert_ok(hv_policy_predict(policy, &p.observation, &p.draws, &result));
    if (i == 0) memcpy(first, result.diffusion, (size_t)p.values * sizeof(float));
    assert_memory_equal(first, result.diffusion, (size_t)p.values * sizeof(float));
  }
  for (int i = 0; i < HV_POLICY_RECORDINGS; i++) found += policy->recordings[i].recorded;
  hv_policy_close(policy);
  parity_close(&p);
  return found;
}

static void a_lost_recording_costs_no_prediction(void **state) {
  (void)state;
  if (strcmp(device_name, "emu") != 0) skip(); /* only the emulator can be told to lose recordings */
  assert_int_equal(recordings_after(2, "0"), 1);
  assert_int_equal(recordings_after(3, "2"), 0);
  assert_int_equal(recordings_after(4, "2"), 1);
  assert_int_equal(recordings_after(6, "3"), 0); /* it has given up recording */
}

/* A recording holds for prompts of one length. With prompts of several lengths in turn, each gives the same bytes as on
 * a policy of its own. */
static void each_length_of_a_prompt_is_its_own_prediction(void **state) {
  (void)state;
  static const int cuts[] = {0, 0, 1, 1, 0, 2};
  enum { PREDICTIONS = sizeof cuts / sizeof cuts[0], LENGTHS = 3 };
  float alone[LENGTHS][64];
  parity p = parity_open("one_arm");
  hv_policy_options options = hv_policy_default_options(&p.config);
  hv_policy *policy;
  size_t bytes = (size_t)p.values * sizeof(float);
  assert_true(p.values <= 64);
  for (int i = -LENGTHS; i < PREDICTIONS; i++) {
    int cut = i < 0 ? i + LENGTHS : cuts[i];
    hv_policy_result result;
    hv_observation observation = p.observation;
    observation.prompt_count -= cut;
    if (i <= 0) assert_ok(hv_policy_open(p.model, &options, &policy));
    assert_ok(hv_policy_predict(policy, &observation, &p.draws, &result));
    if (i < 0) memcpy(alone[cut], result.diffusion, bytes);
    assert_memory_equal(alone[cut], result.diffusion, bytes);
    if (cut > 0) assert_memory_not_equal(alone[0], result.diffusion, bytes);
    if (i < 0) hv_policy_close(policy);
  }
  hv_policy_close(policy);
  parity_close(&p);
}

/* A second policy for longer prompts makes the model's constants anew at another address, while the recordings of the
 * first policy use the old ones: its predictions must stay the same. */
static void a_second_policy_leaves_the_first_right(void **state) {
  (void)state;
  enum { OPENED = 3 };
  float first[64];
  parity p = parity_open("one_arm");
  hv_policy_options options = hv_policy_default_options(&p.config);
  hv_policy *policy, *later;
  size_t bytes = (size_t)p.values * sizeof(float);
  options.max_prompt = p.observation.prompt_count;
  assert_true(p.values <= 64);
  assert_ok(hv_policy_open(p.model, &options, &policy));
  for (int i = 0; i < 2 * OPENED; i++) {
    hv_policy_result result;
    if (i == OPENED) {
      options.max_prompt = 4 * p.observation.prompt_count;
      assert_ok(hv_policy_open(p.model, &options, &later));
    }
    assert_ok(hv_policy_predict(policy, &p.observation, &p.draws, &result));
    if (i == 0) memcpy(first, result.diffusion, bytes);
    assert_memory_equal(first, result.diffusion, bytes);
  }
  hv_policy_close(later);
  hv_policy_close(policy);
  parity_close(&p);
}

/* Predictions with and without given `step_noise` need two recordings: neither may use the noise of the other. Each
 * kind is first predicted on a policy of its own, then both in turn on one. */
static void given_and_made_draws_are_two_predictions(void **state) {
  (void)state;
  enum { PREDICTIONS = 6, KINDS = 2, STEPS = 5 };
  float alone[KINDS][64];
  parity p = parity_open_with("one_arm", STEPS);
  hv_policy_options options = hv_policy_default_options(&p.config);
  options.mode = HV_MODE_DIFFUSION;
  options.sampler = HV_SAMPLER_DDPM;
  hv_policy *policy;
  size_t bytes = (size_t)p.values * sizeof(float);
  assert_true(p.values <= 64);
  for (int i = -KINDS; i < PREDICTIONS; i++) {
    int made = i < 0 ? i + KINDS : i / 2 % 2;
    hv_policy_result result;
    hv_policy_draws draws = p.draws;
    if (made) draws.step_noise = NULL;
    if (i <= 0) assert_ok(hv_policy_open(p.model, &options, &policy));
    assert_ok(hv_policy_predict(policy, &p.observation, &draws, &result));
    if (i < 0) memcpy(alone[made], result.diffusion, bytes);
    assert_memory_equal(alone[made], result.diffusion, bytes);
    if (i < 0) hv_policy_close(policy);
  }
  assert_memory_not_equal(alone[0], alone[1], bytes);
  hv_policy_close(policy);
  parity_close(&p);
}

/* How many of the products that the emulated card has met use this algorithm; *all: how many it has met. */
static int products_that_take(const parity *p, int algorithm, int *all) {
  hv_text text = {0};
  int found = 0;
  hv_device_write_choices(p->device, &text);
  assert_false(text.failed);
  *all = -2; /* the first two lines say who has chosen */
  for (const char *line = text.data, *end; (end = strchr(line, '\n')); line = end + 1) {
    const char *last = end;
    while (last > line && last[-1] != ' ') last--;
    if (++*all > 0) found += last[1] == '0' + algorithm;
  }
  hv_text_free(&text);
  return found;
}

/* The first prediction with a prompt of its length runs once only to measure, which leaves wrong sums behind, and then
 * again: its result must be right all the same. */
static void measuring_costs_no_prediction(void **state) {
  (void)state;
  assert_int_equal(setenv("HVLA_EMU_TIMES", "4,3,2,1", 1), 0);
  parity p = parity_open("one_arm");
  hv_policy_options options = hv_policy_default_options(&p.config);
  options.measure_algorithms = true;
  with_policy(&p, &options, NULL, "ddim4", "noise");
  options.timing = true;
  with_policy(&p, &options, NULL, "ddim4", "noise");
  parity_close(&p);
  assert_int_equal(unsetenv("HVLA_EMU_TIMES"), 0);
}

static void each_length_of_a_prompt_is_measured(void **state) {
  (void)state;
  enum { SUPPOSED = 0, FASTEST = 3 };
  if (strcmp(device_name, "emu") != 0) skip(); /* only the emulator can be told which algorithm is fast */
  assert_int_equal(setenv("HVLA_EMU_TIMES", "4,3,2,1", 1), 0);
  for (int measure = 0; measure < 2; measure++) {
    int met = 0;
    parity p = parity_open("one_arm");
    hv_policy_options options = hv_policy_default_options(&p.config);
    options.measure_algorithms = measure;
    hv_policy *policy;
    assert_ok(hv_policy_open(p.model, &options, &policy));
    int opening = products_that_take(&p, SUPPOSED, &met); /* products of opening the policy, which embeds timesteps */
    for (int cut = 0; cut < 3; cut++) {
      hv_policy_result result;
      hv_observation observation = p.observation;
      observation.prompt_count -= cut;
      int earlier = met;
      assert_ok(hv_policy_predict(policy, &observation, &p.draws, &result));
      int found = products_that_take(&p, measure ? FASTEST : SUPPOSED, &met);
      assert_int_equal(found, measure ? met - opening : met);
      assert_true(met > earlier);
    }
    hv_policy_close(policy);
    parity_close(&p);
  }
  assert_int_equal(unsetenv("HVLA_EMU_TIMES"), 0);
}

int main(int argc, char **argv) {
  if (argc > 1) device_name = argv[1];
  need_card(device_name);
#define CASE(name)                                                                                                     \
  { #name, check_case, NULL, NULL, #name }
  const struct CMUnitTest tests[] = {
      CASE(one_arm),
      CASE(two_arms),
      CASE(chunk),
      CASE(clip),
      CASE(linear),
      CASE(diffusion),
      CASE(autoregressive),
      cmocka_unit_test(a_lost_recording_costs_no_prediction),
      cmocka_unit_test(each_length_of_a_prompt_is_its_own_prediction),
      cmocka_unit_test(a_second_policy_leaves_the_first_right),
      cmocka_unit_test(given_and_made_draws_are_two_predictions),
      cmocka_unit_test(measuring_costs_no_prediction),
      cmocka_unit_test(each_length_of_a_prompt_is_measured),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
