/* Predictions of the policy on the CPU: decoding with a cache equals whole sequences in one pass (computed by the
 * training model), denoising and decoding in lockstep equal each alone, draws are functions of seed and step, a
 * repeated prediction allocates nothing, threads change nothing, and wrong input is refused. */
#include <math.h>
#include <omp.h>

#include "core/base/random.h"
#include "core/hybridvla/action_tokens.h"
#include "core/hybridvla/policy.h"
#include "core/hybridvla/schedule.h"
#include "tests/allocations.h"
#include "tests/check.h"
#include "tests/hybridvla/tiny_model.h"

enum { PROMPT = 6, VALUES = 6 /* H A of the tiny model */ };

typedef struct scene {
  hv_config config;
  tiny_batch batch;
  tiny_run run;
  hv_observation observation;
} scene;

static scene scene_open(hv_config config, hv_dtype dtype) {
  scene s = {.config = config};
  s.batch = tiny_batch_make(&config, 1, 1, 21);
  s.run = tiny_run_open(&config, dtype, 1, 1, NULL, 0);
  s.observation = (hv_observation){
      .images = s.batch.images, .prompt_ids = s.batch.prompt_ids, .prompt_count = PROMPT, .state = s.batch.state};
  return s;
}

static void scene_close(scene *s) {
  tiny_run_close(&s->run);
  tiny_batch_free(&s->batch);
}

static hv_policy *open_policy(const scene *s, const hv_policy_options *options) {
  hv_policy *policy;
  assert_ok(hv_policy_open(s->run.model, options, &policy));
  return policy;
}

typedef struct outcome {
  bool diffusion, tokens;
  float x[VALUES], confidences[VALUES], actions[VALUES];
  int32_t ids[VALUES];
  double confidence;
} outcome;

static outcome keep(const hv_policy_result *result) {
  outcome kept = {.diffusion = result->diffusion, .tokens = result->tokens, .confidence = result->confidence};
  if (result->diffusion) memcpy(kept.x, result->diffusion, sizeof kept.x);
  if (!result->tokens) return kept;
  memcpy(kept.ids, result->tokens, sizeof kept.ids);
  memcpy(kept.confidences, result->confidences, sizeof kept.confidences);
  memcpy(kept.actions, result->autoregressive, sizeof kept.actions);
  return kept;
}

static outcome predict_as_given(scene *s, hv_policy_options options, hv_policy_draws draws) {
  hv_policy_result result;
  hv_policy *policy = open_policy(s, &options);
  assert_ok(hv_policy_predict(policy, &s->observation, &draws, &result));
  outcome kept = keep(&result);
  hv_policy_close(policy);
  return kept;
}

static outcome predict(scene *s, hv_policy_options options, hv_policy_draws draws) {
  options.max_prompt = PROMPT + 3;
  return predict_as_given(s, options, draws);
}

static void assert_near(const float *a, const float *b, double tolerance) {
  double difference = 0, size = 0;
  for (int i = 0; i < VALUES; i++) {
    difference += pow((double)a[i] - b[i], 2);
    size += pow(b[i], 2);
  }
  if (!(sqrt(difference) <= tolerance * sqrt(size))) fail_msg("relative error %g", sqrt(difference / size));
}

static void normals(float *out, uint64_t sample) {
  for (uint32_t i = 0; i < VALUES; i++) out[i] = hv_random_normal(31, HV_RANDOM_NOISE, 0, sample, 0, i);
}

/* Chooses the batch's noise such that the training model sees `x` as the noised action at timestep t, while the labels
 * are `actions`. */
static void set_branch(scene *s, const float *x, int32_t t, const float *actions) {
  double alpha_bar[HV_MAX_DIFFUSION_STEPS];
  hv_schedule_alpha_bar(s->config.diffusion_steps, alpha_bar);
  s->batch.timesteps[0] = t;
  for (int i = 0; i < VALUES; i++) {
    s->batch.actions[i] = actions[i];
    s->batch.noise[i] = (float)((x[i] - sqrt(alpha_bar[t]) * actions[i]) / sqrt(1 - alpha_bar[t]));
  }
}

static double *download(scene *s, hv_tensor tensor) {
  int64_t count = hv_tensor_count(tensor);
  char *raw = malloc((size_t)count * 8);
  double *values = malloc((size_t)count * sizeof *values);
  assert_non_null(raw);
  assert_non_null(values);
  hv_download(s->run.stream, raw, tensor.data, (size_t)count * hv_dtype_size(tensor.dtype));
  assert_ok(hv_stream_synchronize(s->run.stream));
  hv_dtype_convert(HV_F64, values, tensor.dtype, raw, count);
  free(raw);
  return values;
}

/* The denoising chain, where every step runs the whole sequence in one pass. */
static void whole_denoising(scene *s, const hv_sampler_stage *stages, int32_t count, const float *noise,
                            const float *step_noise, float *x) {
  static const float nothing[VALUES];
  memcpy(x, noise, VALUES * sizeof *x);
  for (int32_t i = 0; i < count; i++) {
    set_branch(s, x, stages[i].timestep, nothing);
    tiny_run_step(&s->run, &s->batch.batch, false, false);
    double *eps = download(s, s->run.activations.noise_pred);
    for (int v = 0; v < VALUES; v++) {
      double added = step_noise ? stages[i].noise_factor * step_noise[stages[i].timestep * VALUES + v] : 0;
      x[v] = (float)(stages[i].x_factor * x[v] + stages[i].eps_factor * eps[v] + added);
    }
    free(eps);
  }
}

/* Runs the whole sequence in one pass; every token of the outcome must be the best of its row, with its probability. */
static void check_tokens(scene *s, const outcome *found, const float *x, int32_t t, double tolerance) {
  const hv_config *config = &s->config;
  set_branch(s, x, t, found->actions);
  tiny_run_step(&s->run, &s->batch.batch, false, false);
  double *logits = download(s, s->run.activations.logits), mean = 0;
  for (int i = 0; i < VALUES; i++) {
    const double *row = logits + (ptrdiff_t)i * config->llm.vocab_size;
    int32_t best = config->action_base - config->action_bins;
    double sum = 0;
    for (int32_t id = best; id < config->action_base; id++)
      if (row[id] > row[best]) best = id;
    for (int32_t id = 0; id < config->llm.vocab_size; id++) sum += exp(row[id] - row[best]);
    assert_int_equal(found->ids[i], best);
    assert_true(fabs(found->confidences[i] - 1 / sum) < tolerance);
    assert_true(found->actions[i] == (float)hv_action_from_token(best, config->action_base, config->action_bins));
    mean += found->confidences[i] / (double)VALUES;
  }
  assert_true(fabs(found->confidence - mean) < 1e-9);
  free(logits);
}

static void cached_denoising_equals_whole_sequences(void **state) {
  (void)state;
  for (int clip = 0; clip < 2; clip++)
    for (hv_objective objective = HV_HYBRID; objective <= HV_DIFFUSION; objective++) {
      scene s = scene_open(tiny_config(objective, clip), HV_F32);
      float noise[VALUES], expected[VALUES], step_noise[100 * VALUES];
      hv_sampler_stage stages[100];
      normals(noise, 0);
      for (uint64_t t = 0; t < 100; t++) normals(step_noise + t * VALUES, 100 + t);
      hv_policy_options options = hv_policy_default_options(&s.config);
      hv_policy_draws draws = {.noise = noise, .step_noise = step_noise};
      options.mode = HV_MODE_DIFFUSION;
      for (options.ddim_steps = 1; options.ddim_steps <= 5; options.ddim_steps++) {
        outcome found = predict(&s, options, draws);
        assert_true(found.diffusion && !found.tokens);
        assert_ok(hv_schedule_ddim(100, options.ddim_steps, stages));
        whole_denoising(&s, stages, options.ddim_steps, noise, NULL, expected);
        assert_near(found.x, expected, 1e-5);
      }
      options.sampler = HV_SAMPLER_DDPM;
      outcome found = predict(&s, options, draws);
      hv_schedule_ddpm(100, stages);
      whole_denoising(&s, stages, 100, noise, step_noise, expected);
      assert_near(found.x, expected, 1e-4);
      scene_close(&s);
    }
}

/* The chunk has more steps than any device handles at once. */
static void a_long_chunk_is_denoised_as_in_whole_sequences(void **state) {
  (void)state;
  enum { CHUNK = 66 };
  hv_config config = tiny_config(HV_DIFFUSION, false);
  config.action_chunk = CHUNK;
  config.action_dim = 1;
  scene s = scene_open(config, HV_F32);
  double alpha_bar[HV_MAX_DIFFUSION_STEPS], difference = 0, size = 0;
  float noise[CHUNK];
  hv_sampler_stage stage;
  hv_policy_result result;
  hv_policy_options options = hv_policy_default_options(&config);
  options.ddim_steps = 1;
  options.max_prompt = PROMPT;
  assert_ok(hv_schedule_ddim(config.diffusion_steps, 1, &stage));
  hv_schedule_alpha_bar(config.diffusion_steps, alpha_bar);
  s.batch.timesteps[0] = stage.timestep;
  for (uint32_t i = 0; i < CHUNK; i++) {
    noise[i] = hv_random_normal(31, HV_RANDOM_NOISE, 0, 0, 0, i);
    s.batch.actions[i] = 0;
    s.batch.noise[i] = noise[i] / (float)sqrt(1 - alpha_bar[stage.timestep]); /* so that x_t is the given noise */
  }
  tiny_run_step(&s.run, &s.batch.batch, false, false);
  double *eps = download(&s, s.run.activations.noise_pred);
  hv_policy *policy = open_policy(&s, &options);
  assert_ok(hv_policy_predict(policy, &s.observation, &(hv_policy_draws){.noise = noise}, &result));
  for (int i = 0; i < CHUNK; i++) {
    double expected = stage.x_factor * noise[i] + stage.eps_factor * eps[i];
    difference += pow(result.diffusion[i] - expected, 2);
    size += pow(expected, 2);
  }
  assert_true(sqrt(difference) <= 1e-5 * sqrt(size));
  hv_policy_close(policy);
  free(eps);
  scene_close(&s);
}

static void cached_tokens_equal_whole_sequences(void **state) {
  (void)state;
  for (int empty = 0; empty < 2; empty++) {
    hv_config config = tiny_config(HV_HYBRID, false);
    if (!empty) config.token_empty = -1;
    scene s = scene_open(config, HV_F32);
    float noise[VALUES], ar_noise[VALUES];
    int32_t timestep = 37;
    normals(noise, 0);
    normals(ar_noise, 1);
    hv_policy_options options = hv_policy_default_options(&config);
    hv_policy_draws draws = {.noise = noise, .ar_noise = ar_noise};
    options.mode = HV_MODE_AUTOREGRESSIVE;
    outcome found = predict(&s, options, draws);
    assert_true(!found.diffusion && found.tokens);
    check_tokens(&s, &found, ar_noise, 99, 1e-5);

    options.ar_condition = HV_AR_RANDOM;
    draws.ar_timestep = &timestep;
    found = predict(&s, options, draws);
    check_tokens(&s, &found, ar_noise, 37, 1e-5);

    options.ar_condition = HV_AR_DENOISED;
    found = predict(&s, options, draws);
    assert_true(found.diffusion && found.tokens);
    float chain[VALUES];
    hv_sampler_stage stages[4];
    assert_ok(hv_schedule_ddim(100, 4, stages));
    whole_denoising(&s, stages, 4, noise, NULL, chain);
    assert_near(found.x, chain, 1e-5);
    check_tokens(&s, &found, found.x, 0, 1e-4);
    scene_close(&s);
  }
  scene s = scene_open(tiny_config(HV_AUTOREGRESSIVE, false), HV_F32);
  outcome found = predict(&s, hv_policy_default_options(&s.config), (hv_policy_draws){0});
  assert_true(!found.diffusion && found.tokens);
  memcpy(s.batch.actions, found.actions, sizeof found.actions);
  static const float nothing[VALUES];
  check_tokens(&s, &found, nothing, 1, 1e-5);
  scene_close(&s);
}

static void lockstep_equals_one_after_the_other(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  float noise[VALUES], ar_noise[VALUES];
  normals(noise, 0);
  normals(ar_noise, 1);
  hv_policy_draws draws = {.noise = noise, .ar_noise = ar_noise};
  /* Fewer denoising steps than the six tokens, as many, and more. */
  static const int32_t steps[] = {1, 4, 6, 10};
  for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
    hv_policy_options options = hv_policy_default_options(&s.config);
    options.ddim_steps = steps[i];
    outcome both = predict(&s, options, draws);
    options.mode = HV_MODE_DIFFUSION;
    outcome diffusion = predict(&s, options, draws);
    options.mode = HV_MODE_AUTOREGRESSIVE;
    outcome tokens = predict(&s, options, draws);
    assert_near(both.x, diffusion.x, 1e-6);
    assert_near(both.confidences, tokens.confidences, 1e-6);
    assert_memory_equal(both.ids, tokens.ids, sizeof both.ids);
  }
  scene_close(&s);
}

/* Prompts of different lengths, all shorter than the cache allows, one after another on the same policy. */
static void one_policy_serves_prompts_of_all_lengths(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  hv_policy_options options = hv_policy_default_options(&s.config);
  options.max_prompt = 40;
  hv_policy *policy = open_policy(&s, &options);
  hv_policy_draws draws = {.seed = 5};
  static const int32_t lengths[] = {PROMPT, 1, 3, PROMPT, 2};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    hv_policy_result result;
    s.observation.prompt_count = lengths[i];
    assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
    outcome found = keep(&result), fresh = predict(&s, options, draws);
    assert_near(found.x, fresh.x, 1e-6);
    assert_memory_equal(found.ids, fresh.ids, sizeof found.ids);
  }
  hv_policy_close(policy);
  scene_close(&s);
}

/* The prompt has as many tokens as max_prompt allows, and fills 256 bytes exactly: one token more would overwrite what
 * lies behind it. */
static void the_longest_prompt_fits(void **state) {
  (void)state;
  enum { LONGEST = 64 };
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  int32_t ids[LONGEST];
  for (int32_t i = 0; i < LONGEST; i++) ids[i] = 1 + 3 * i % s.config.llm.vocab_size;
  s.observation.prompt_ids = ids;
  s.observation.prompt_count = LONGEST;
  hv_policy_options options = hv_policy_default_options(&s.config);
  options.max_prompt = LONGEST;
  outcome tight = predict_as_given(&s, options, (hv_policy_draws){.seed = 5});
  options.max_prompt = 4 * LONGEST;
  outcome roomy = predict_as_given(&s, options, (hv_policy_draws){.seed = 5});
  assert_near(tight.x, roomy.x, 1e-6);
  assert_near(tight.confidences, roomy.confidences, 1e-6);
  assert_memory_equal(tight.ids, roomy.ids, sizeof tight.ids);
  scene_close(&s);
}

static void draws_are_functions_of_seed_and_step(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  for (hv_sampler sampler = HV_SAMPLER_DDIM; sampler <= HV_SAMPLER_DDPM; sampler++) {
    hv_policy_options options = hv_policy_default_options(&s.config);
    options.sampler = sampler;
    options.ar_condition = HV_AR_RANDOM;
    outcome first = predict(&s, options, (hv_policy_draws){.seed = 3, .step = 9});
    outcome again = predict(&s, options, (hv_policy_draws){.seed = 3, .step = 9});
    outcome later = predict(&s, options, (hv_policy_draws){.seed = 3, .step = 10});
    outcome other = predict(&s, options, (hv_policy_draws){.seed = 4, .step = 9});
    assert_memory_equal(first.x, again.x, sizeof first.x);
    assert_memory_equal(first.confidences, again.confidences, sizeof first.confidences);
    assert_memory_not_equal(first.x, later.x, sizeof first.x);
    assert_memory_not_equal(first.x, other.x, sizeof first.x);
    assert_memory_not_equal(first.confidences, later.confidences, sizeof first.confidences);

    /* The same draws, now passed in. */
    float noise[VALUES], ar_noise[VALUES], step_noise[100 * VALUES];
    for (uint32_t i = 0; i < VALUES; i++) {
      noise[i] = hv_random_normal(3, HV_RANDOM_POLICY_NOISE, 9, 0, 0, i);
      ar_noise[i] = hv_random_normal(3, HV_RANDOM_POLICY_AR_NOISE, 9, 0, 0, i);
      for (uint32_t t = 0; t < 100; t++)
        step_noise[t * VALUES + i] = hv_random_normal(3, HV_RANDOM_POLICY_STEP_NOISE, 9, 0, t, i);
    }
    int32_t timestep = (int32_t)hv_random_below(3, HV_RANDOM_POLICY_AR_TIMESTEP, 9, 0, 0, 0, 100);
    hv_policy_draws given = {
        .noise = noise, .ar_noise = ar_noise, .ar_timestep = &timestep, .step_noise = step_noise, .seed = 77};
    outcome same = predict(&s, options, given);
    assert_memory_equal(first.x, same.x, sizeof first.x);
    assert_memory_equal(first.confidences, same.confidences, sizeof first.confidences);
  }
  scene_close(&s);
}

/* Large enough that the CPU device spreads its work over threads. */
static hv_config wide_config(void) {
  hv_config config = tiny_config(HV_HYBRID, false);
  config.llm.hidden_size = 256;
  config.llm.intermediate_size = 512;
  for (int i = 0; i < 2; i++) {
    config.vision[i].image_size = 56;
    config.vision[i].width = 128;
    config.vision[i].mlp_width = 256;
  }
  return config;
}

static void threads_do_not_change_a_byte(void **state) {
  (void)state;
  outcome found[2];
  for (int i = 0; i < 2; i++) {
    omp_set_num_threads(1 + i); /* the number that a CPU device takes when it is opened */
    scene s = scene_open(wide_config(), HV_F32);
    found[i] = predict(&s, hv_policy_default_options(&s.config), (hv_policy_draws){.seed = 3});
    scene_close(&s);
  }
  assert_memory_equal(found[0].x, found[1].x, sizeof found[0].x);
  assert_memory_equal(found[0].confidences, found[1].confidences, sizeof found[0].confidences);
}

static void bf16_stays_near_fp32(void **state) {
  (void)state;
  outcome found[2];
  static const hv_dtype dtypes[] = {HV_F32, HV_BF16};
  for (int i = 0; i < 2; i++) {
    scene s = scene_open(tiny_config(HV_HYBRID, false), dtypes[i]);
    found[i] = predict(&s, hv_policy_default_options(&s.config), (hv_policy_draws){.seed = 3});
    scene_close(&s);
  }
  assert_near(found[1].x, found[0].x, 0.03);
  assert_memory_not_equal(found[1].x, found[0].x, sizeof found[0].x);
}

static void a_prediction_allocates_nothing(void **state) {
  (void)state;
  if (!allocations_counted()) skip();
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  for (int kind = 0; kind < 4; kind++) {
    hv_policy_options options = hv_policy_default_options(&s.config);
    options.timing = kind == 1;
    if (kind == 2) options.ar_condition = HV_AR_DENOISED;
    if (kind == 3) options.sampler = HV_SAMPLER_DDPM;
    hv_policy_result result;
    hv_policy_draws draws = {.seed = 1};
    hv_policy *policy = open_policy(&s, &options);
    assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
    long before = allocations_count();
    for (draws.step = 1; draws.step < 4; draws.step++) {
      assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
    }
    assert_int_equal(allocations_count() - before, 0);
    hv_policy_close(policy);
  }
  scene_close(&s);
}

static struct {
  hv_device_methods real;
  int uploads, downloads, waits;
} counted;

static void count_upload(hv_stream *stream, void *to, const void *from_host, size_t bytes) {
  counted.uploads++;
  counted.real.upload(stream, to, from_host, bytes);
}

static void count_download(hv_stream *stream, void *to_host, const void *from, size_t bytes) {
  counted.downloads++;
  counted.real.download(stream, to_host, from, bytes);
}

static hv_status count_wait(hv_stream *stream) {
  counted.waits++;
  return counted.real.stream_synchronize(stream);
}

/* A device can then record the whole prediction and replay it at once. */
static void a_prediction_copies_in_once_out_once_and_waits_once(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  const hv_device_methods *original = s.run.device->methods;
  counted.real = *original;
  hv_device_methods counting = *original;
  counting.upload = count_upload;
  counting.download = count_download;
  counting.stream_synchronize = count_wait;
  for (hv_ar_condition condition = HV_AR_NOISE; condition <= HV_AR_DENOISED; condition++) {
    hv_policy_options options = hv_policy_default_options(&s.config);
    hv_policy_result result;
    hv_policy_draws draws = {.seed = 1};
    options.ar_condition = condition;
    hv_policy *policy = open_policy(&s, &options);
    s.run.device->methods = &counting;
    counted.uploads = counted.downloads = counted.waits = 0;
    assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
    s.run.device->methods = original;
    assert_int_equal(counted.uploads, 1);
    assert_int_equal(counted.downloads, 1);
    assert_int_equal(counted.waits, 1);
    assert_true(result.vision_ms == 0 && result.decode_ms == 0);
    hv_policy_close(policy);
  }
  scene_close(&s);
}

static void a_refreshed_policy_sees_changed_parameters(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  hv_policy_options options = hv_policy_default_options(&s.config);
  hv_policy_draws draws = {.seed = 1};
  hv_policy_result result;
  hv_policy *policy = open_policy(&s, &options);
  hv_params *params = hv_model_params(s.run.model);
  hv_param_id bias = hv_params_find(params, "t_embedder.mlp.2.bias");
  assert_true(bias >= 0);
  int64_t width = s.config.llm.hidden_size;
  float *values = calloc((size_t)width, sizeof *values);
  assert_non_null(values);
  for (int64_t i = 0; i < width; i++) values[i] = 0.1f * (float)i;
  assert_ok(hv_param_write(params, bias, HV_F32, values, s.run.stream));
  free(values);
  assert_ok(hv_policy_refresh(policy));
  assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
  outcome refreshed = keep(&result), fresh = predict(&s, options, draws);
  assert_near(refreshed.x, fresh.x, 1e-6);
  hv_policy_close(policy);
  scene_close(&s);
}

static void the_work_of_each_step_is_known(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  hv_policy_options options = hv_policy_default_options(&s.config);
  options.max_prompt = PROMPT;
  int32_t count;
  hv_policy *policy = open_policy(&s, &options);
  const hv_policy_work *work = hv_policy_get_work(policy, &count);
  assert_int_equal(count, 1 + VALUES); /* vision, then six tokens with four denoising steps beside them */
  const hv_llm_config *llm = &s.config.llm;
  double layer = llm->hidden_size * (2.0 * llm->hidden_size + 2.0 * 12 + 3.0 * llm->intermediate_size);
  double decoder = llm->num_hidden_layers * layer, head = (double)llm->hidden_size * llm->vocab_size;
  double choice = (double)llm->hidden_size * s.config.action_bins;
  /* The last passes run one token: all layers, and the action tokens' rows of the vocabulary. The last one reads the
   * whole vocabulary, for the probabilities of all tokens. */
  assert_true(work[VALUES - 1].weight_bytes == 4 * (decoder + choice));
  assert_true(work[VALUES].weight_bytes == 4 * (decoder + choice + head));
  assert_true(work[VALUES].matrix_flops >= 2 * (decoder + choice + VALUES * head));
  /* The first one: prefix, t | x and the branch's first rows through all layers but the last. */
  double rows = (PROMPT + 8 + 2) + 3 + 5;
  assert_true(work[1].matrix_flops >= 2 * (rows * (decoder - layer) + choice));
  assert_true(work[0].matrix_flops > 0);
  hv_policy_close(policy);
  scene_close(&s);
}

static void what_a_model_lacks_is_refused(void **state) {
  (void)state;
  hv_policy *policy;
  scene s = scene_open(tiny_config(HV_DIFFUSION, false), HV_F32);
  hv_policy_options options = hv_policy_default_options(&s.config);
  assert_int_equal(options.mode, HV_MODE_DIFFUSION);
  options.mode = HV_MODE_ENSEMBLE;
  assert_error(hv_policy_open(s.run.model, &options, &policy), "diffusion", "no action tokens");
  options.mode = HV_MODE_DIFFUSION;
  options.ddim_steps = 11;
  assert_error(hv_policy_open(s.run.model, &options, &policy), "11", "10 and 12");
  scene_close(&s);
  s = scene_open(tiny_config(HV_AUTOREGRESSIVE, false), HV_F32);
  options = hv_policy_default_options(&s.config);
  assert_int_equal(options.mode, HV_MODE_AUTOREGRESSIVE);
  options.mode = HV_MODE_DIFFUSION;
  assert_error(hv_policy_open(s.run.model, &options, &policy), "autoregressive", "no noise head");
  options.mode = HV_MODE_AUTOREGRESSIVE;
  options.ar_condition = HV_AR_DENOISED;
  assert_error(hv_policy_open(s.run.model, &options, &policy), "condition");
  scene_close(&s);
}

static const hv_device_methods *usual;

static hv_status allocate_no_constants(hv_device *device, size_t bytes, const char *what, void **out) {
  if (strcmp(what, "the model's constants") != 0) return usual->allocate(device, bytes, what, out);
  *out = NULL;
  return hv_error(HV_ERR_MEMORY, "out of memory: %s need %zu bytes", what, bytes);
}

/* A longer prompt than any before needs larger tables. Without memory for them a policy cannot be opened; one that is
 * open keeps the tables that there are, and the next has to make larger ones. */
static void without_memory_a_policy_can_be_opened_later(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  hv_policy_options options = hv_policy_default_options(&s.config), shorter = options;
  hv_policy_draws draws = {.seed = 1};
  hv_policy_result result;
  shorter.max_prompt = PROMPT;
  hv_policy *open = open_policy(&s, &shorter);
  assert_ok(hv_policy_predict(open, &s.observation, &draws, &result));
  outcome before = keep(&result);
  usual = s.run.device->methods;
  hv_device_methods lacking = *usual;
  hv_policy *policy;
  lacking.allocate = allocate_no_constants;
  s.run.device->methods = &lacking;
  for (int i = 0; i < 2; i++) assert_error(hv_policy_open(s.run.model, &options, &policy), "the model's constants");
  s.run.device->methods = usual;
  for (int later = 0; later < 2; later++) {
    assert_ok(hv_policy_predict(open, &s.observation, &draws, &result));
    assert_memory_equal(before.x, result.diffusion, sizeof before.x);
    if (later) break;
    policy = open_policy(&s, &options);
    assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
    assert_memory_equal(before.x, result.diffusion, sizeof before.x);
  }
  hv_policy_close(policy);
  hv_policy_close(open);
  scene_close(&s);
}

static void wrong_observations_are_refused(void **state) {
  (void)state;
  scene s = scene_open(tiny_config(HV_HYBRID, false), HV_F32);
  hv_policy_options options = hv_policy_default_options(&s.config);
  hv_policy_draws draws = {.seed = 1};
  hv_policy_result result;
  options.max_prompt = PROMPT;
  hv_policy *policy = open_policy(&s, &options);
  hv_observation wrong = s.observation;
  wrong.prompt_count = PROMPT + 1;
  assert_error(hv_policy_predict(policy, &wrong, &draws, &result), "7 tokens", "1 … 6");
  int32_t ids[PROMPT] = {1, 300};
  wrong = s.observation;
  wrong.prompt_ids = ids;
  assert_error(hv_policy_predict(policy, &wrong, &draws, &result), "token 1", "300", "299");
  float state_values[4] = {0, NAN};
  wrong = s.observation;
  wrong.state = state_values;
  assert_error(hv_policy_predict(policy, &wrong, &draws, &result), "state", "nan");
  int32_t timestep = 100;
  draws.ar_timestep = &timestep;
  assert_error(hv_policy_predict(policy, &s.observation, &draws, &result), "ar_timestep", "99");
  draws.ar_timestep = NULL;
  float noise[VALUES] = {INFINITY};
  draws.noise = noise;
  assert_error(hv_policy_predict(policy, &s.observation, &draws, &result), "noise", "inf");
  draws.noise = NULL;
  assert_ok(hv_policy_predict(policy, &s.observation, &draws, &result));
  hv_policy_close(policy);
  scene_close(&s);
}

static void an_ensemble_takes_the_mean_only_when_sure(void **state) {
  (void)state;
  const double diffusion[] = {1.0, -2.0, 1.0, 0.5, 0.0, 1.0}, tokens[] = {3.0, 0.0, 0.0, 0.0, 1.0, 1.0};
  const bool gripper[] = {false, false, true};
  double out[6];
  assert_true(hv_ensemble(diffusion, tokens, 0.97, 0.96, 2, 3, gripper, out));
  static const double mean[] = {2.0, -1.0, 0.0, 0.25, 0.5, 1.0};
  assert_memory_equal(out, mean, sizeof mean);
  assert_false(hv_ensemble(diffusion, tokens, 0.96, 0.96, 2, 3, gripper, out));
  assert_memory_equal(out, diffusion, sizeof diffusion);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(cached_denoising_equals_whole_sequences),
      cmocka_unit_test(a_long_chunk_is_denoised_as_in_whole_sequences),
      cmocka_unit_test(cached_tokens_equal_whole_sequences),
      cmocka_unit_test(lockstep_equals_one_after_the_other),
      cmocka_unit_test(one_policy_serves_prompts_of_all_lengths),
      cmocka_unit_test(the_longest_prompt_fits),
      cmocka_unit_test(draws_are_functions_of_seed_and_step),
      cmocka_unit_test(threads_do_not_change_a_byte),
      cmocka_unit_test(bf16_stays_near_fp32),
      cmocka_unit_test(a_prediction_allocates_nothing),
      cmocka_unit_test(a_prediction_copies_in_once_out_once_and_waits_once),
      cmocka_unit_test(a_refreshed_policy_sees_changed_parameters),
      cmocka_unit_test(the_work_of_each_step_is_known),
      cmocka_unit_test(what_a_model_lacks_is_refused),
      cmocka_unit_test(without_memory_a_policy_can_be_opened_later),
      cmocka_unit_test(wrong_observations_are_refused),
      cmocka_unit_test(an_ensemble_takes_the_mean_only_when_sure),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
