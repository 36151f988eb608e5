#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/hybridvla/action_tokens.h"
#include "core/hybridvla/policy_state.h"
#include "core/tensor/plan.h"

enum { ALIGNMENT = 256 };

static int32_t prefix_rows(const hv_config *config, int32_t prompt) {
  return prompt + hv_policy_image_rows(config) + 1 + (config->state_dim ? 1 : 0);
}

hv_policy_options hv_policy_default_options(const hv_config *config) {
  hv_mode mode = HV_MODE_ENSEMBLE;
  if (!hv_config_has_autoregression(config)) mode = HV_MODE_DIFFUSION;
  if (!hv_config_has_diffusion(config)) mode = HV_MODE_AUTOREGRESSIVE;
  return (hv_policy_options){
      .mode = mode, .sampler = HV_SAMPLER_DDIM, .ddim_steps = 4, .ar_condition = HV_AR_NOISE, .max_prompt = 512};
}

int64_t hv_policy_positions(const hv_config *config, int32_t max_prompt) {
  int64_t branch = 1 + config->action_chunk + 2 + (int64_t)config->action_chunk * config->action_dim;
  return prefix_rows(config, max_prompt) + branch;
}

static hv_status check_options(const hv_config *config, const hv_policy_options *options) {
  bool diffusion = hv_config_has_diffusion(config), autoregression = hv_config_has_autoregression(config);
  if (!diffusion && options->mode != HV_MODE_AUTOREGRESSIVE)
    return hv_error(HV_ERR_INPUT, "the model was trained with the objective autoregressive: it has no noise head, and "
                                  "the mode autoregressive alone");
  if (!autoregression && options->mode != HV_MODE_DIFFUSION)
    return hv_error(HV_ERR_INPUT, "the model was trained with the objective diffusion: it gives no action tokens, and "
                                  "has the mode diffusion alone");
  if (!diffusion && options->ar_condition != HV_AR_NOISE)
    return hv_error(HV_ERR_INPUT, "the model was trained with the objective autoregressive: its action tokens attend "
                                  "to the prefix alone, and a condition cannot be chosen");
  if (options->max_prompt < 1) return hv_error(HV_ERR_INPUT, "max_prompt is %d, below 1", options->max_prompt);
  if (diffusion && (config->diffusion_steps < 1 || config->diffusion_steps > HV_MAX_DIFFUSION_STEPS))
    return hv_error(HV_ERR_INPUT, "diffusion.steps is %d: 1 … %d are possible", config->diffusion_steps,
                    HV_MAX_DIFFUSION_STEPS);
  return HV_OK;
}

static hv_status make_stages(hv_policy *policy) {
  int32_t steps = policy->parts->config.diffusion_steps;
  policy->stages = calloc((size_t)steps, sizeof *policy->stages);
  if (!policy->stages) return hv_error_memory("sampler steps");
  if (policy->options.sampler == HV_SAMPLER_DDPM) {
    policy->num_stages = steps;
    hv_schedule_ddpm(steps, policy->stages);
    return HV_OK;
  }
  policy->num_stages = policy->options.ddim_steps;
  return hv_schedule_ddim(steps, policy->num_stages, policy->stages);
}

static size_t reserve(hv_policy_block *at, size_t bytes) {
  size_t start = at->bytes;
  at->bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  return start;
}

/* The passes, and the block with their tables. */
static hv_status make_passes(hv_policy *policy) {
  const hv_config *config = &policy->parts->config;
  const hv_policy_options *options = &policy->options;
  bool conditioned = hv_config_has_diffusion(config);
  int32_t tokens = config->action_chunk * config->action_dim;
  bool after = policy->decodes && conditioned && options->ar_condition == HV_AR_DENOISED;
  policy->shape = (hv_branch_shape){.prefix_capacity = prefix_rows(config, options->max_prompt),
                                    .horizon = config->action_chunk,
                                    .tokens = tokens,
                                    .condition_rows = conditioned ? 1 + config->action_chunk : 0,
                                    .marker_rows = config->token_empty >= 0 ? 2 : 1};
  int32_t wanted = policy->decodes ? tokens : 0;
  policy->num_passes = hv_passes_count(policy->num_stages, wanted, after);
  policy->passes = calloc((size_t)policy->num_passes, sizeof *policy->passes);
  policy->work = calloc((size_t)policy->num_passes + 1, sizeof *policy->work);
  policy->decoded = calloc((size_t)tokens, sizeof *policy->decoded);
  if (!policy->passes || !policy->work || !policy->decoded) return hv_error_memory("the passes of a prediction");
  int32_t table_values = hv_passes_make(&policy->shape, policy->num_stages, wanted, after, policy->passes);

  hv_policy_block *at = &policy->at;
  size_t side = (size_t)config->vision[0].image_size, text = (size_t)options->max_prompt + 1;
  size_t steps = (size_t)config->diffusion_steps, action = (size_t)tokens * sizeof(float);
  at->images = reserve(at, (size_t)config->num_cameras * side * side * 3);
  at->state = reserve(at, (size_t)config->state_dim * sizeof(float));
  at->text_ids = reserve(at, text * sizeof(int32_t));
  at->text_rows = reserve(at, text * sizeof(int32_t));
  at->markers = reserve(at, 2 * sizeof(int32_t));
  at->ar_noise = reserve(at, action);
  at->ar_timestep = reserve(at, sizeof(int32_t));
  at->step_noise = reserve(at, options->sampler == HV_SAMPLER_DDPM ? steps * action : 0);
  at->seed_step = reserve(at, 2 * sizeof(int64_t));
  at->sample = reserve(at, sizeof(int64_t));
  at->all_timesteps = reserve(at, steps * sizeof(int32_t));
  at->coefficients = reserve(at, (size_t)policy->num_stages * 3 * sizeof(float));
  at->tables = reserve(at, (size_t)table_values * sizeof(int32_t));
  at->x = reserve(at, action);
  at->ids = reserve(at, (size_t)tokens * sizeof(int32_t));
  at->probabilities = reserve(at, action);
  return HV_OK;
}

/* Takes what lives as long as the policy. */
static void take_memory(hv_policy *policy, hv_arena *memory) {
  const hv_model_parts *parts = policy->parts;
  const hv_config *config = &parts->config;
  const hv_llm_config *llm = &config->llm;
  int64_t key_width = (int64_t)llm->num_key_value_heads * hv_llm_head_dim(llm);
  policy->block = hv_arena_take(memory, HV_U8, 1, (int64_t)policy->at.bytes);
  for (int32_t i = 0; i < llm->num_hidden_layers; i++) {
    policy->cache[i].k = hv_arena_take(memory, parts->dtype, hv_branch_cache_rows(&policy->shape), key_width);
    policy->cache[i].v = hv_arena_take(memory, parts->dtype, hv_branch_cache_rows(&policy->shape), key_width);
  }
  if (hv_config_has_diffusion(config)) {
    policy->timestep_table = hv_arena_take(memory, parts->dtype, config->diffusion_steps, llm->hidden_size);
    policy->x_cast = hv_arena_take(memory, parts->dtype, config->action_chunk, config->action_dim);
  }
  int64_t rows = policy->passes[0].rows; /* no later pass has as many */
  for (int32_t i = 1; i < policy->num_passes; i++)
    if (policy->passes[i].rows > rows) rows = policy->passes[i].rows;
  policy->rows_a = hv_arena_take(memory, parts->dtype, rows, llm->hidden_size);
  policy->rows_b = hv_arena_take(memory, parts->dtype, rows, llm->hidden_size);
  if (policy->decodes) {
    policy->token_states = hv_arena_take(memory, parts->dtype, policy->shape.tokens, llm->hidden_size);
  }
}

static void fill_constants(hv_policy *policy) {
  const hv_config *config = &policy->parts->config;
  int32_t *timesteps = (int32_t *)(policy->host + policy->at.all_timesteps);
  float *coefficients = (float *)(policy->host + policy->at.coefficients);
  int32_t *markers = (int32_t *)(policy->host + policy->at.markers);
  for (int32_t t = 0; t < config->diffusion_steps; t++) timesteps[t] = t;
  for (int32_t i = 0; i < policy->num_stages; i++) {
    coefficients[3 * i] = (float)policy->stages[i].x_factor;
    coefficients[3 * i + 1] = (float)policy->stages[i].eps_factor;
    coefficients[3 * i + 2] = (float)policy->stages[i].noise_factor;
  }
  markers[0] = config->token_eod;
  markers[1] = config->token_empty;
}

/* `scratch_bytes` are what a policy of the same options took on a plan device; 0: this is that one. */
static hv_status construct(hv_model *model, const hv_policy_options *options, size_t scratch_bytes, hv_policy **out) {
  hv_status status = HV_OK;
  hv_policy *policy = calloc(1, sizeof *policy);
  if (!policy) return hv_error_memory("a policy");
  hv_device *device = hv_model_device(model);
  policy->parts = hv_model_get_parts(model);
  policy->options = *options;
  policy->planning = scratch_bytes == 0;
  const hv_config *config = &policy->parts->config;
  policy->decodes = options->mode != HV_MODE_DIFFUSION;
  policy->denoises = options->mode != HV_MODE_AUTOREGRESSIVE ||
                     (hv_config_has_diffusion(config) && options->ar_condition == HV_AR_DENOISED);
  if (policy->denoises) HV_CHECK(make_stages(policy));
  HV_CHECK(make_passes(policy));
  policy->cache = calloc((size_t)config->llm.num_hidden_layers, sizeof *policy->cache);
  if (!policy->cache) {
    status = hv_error_memory("a key-value cache");
    goto done;
  }
  hv_arena measure = hv_arena_for_plan(device);
  take_memory(policy, &measure);
  HV_CHECK(hv_arena_open(device, HV_MEMORY_ACTIVATIONS, measure.peak, "the key-value cache and tables of a policy",
                         &policy->memory));
  take_memory(policy, &policy->memory);
  HV_CHECK(hv_arena_status(&policy->memory));
  if (policy->planning) {
    policy->scratch = hv_arena_for_plan(device);
  } else {
    HV_CHECK(hv_arena_open(device, HV_MEMORY_ACTIVATIONS, scratch_bytes, "the activations of a prediction",
                           &policy->scratch));
  }
  HV_CHECK(hv_stream_open(device, &policy->stream));
  void *host;
  HV_CHECK(hv_device_allocate_host(device, policy->at.bytes, "the inputs of a prediction", &host));
  policy->host = host;
  memset(policy->host, 0, policy->at.bytes);
  fill_constants(policy);
  HV_CHECK(
      hv_model_prepare(model, hv_policy_positions(config, options->max_prompt), config->num_cameras, policy->stream));
  HV_CHECK(hv_policy_refresh(policy));
done:
  if (status) {
    hv_policy_close(policy);
    return status;
  }
  *out = policy;
  return HV_OK;
}

void hv_policy_close(hv_policy *policy) {
  if (!policy) return;
  hv_device *device = policy->parts->device;
  for (int i = 0; i < HV_POLICY_RECORDINGS; i++) hv_recording_close(device, policy->recordings[i].recording);
  hv_stream_close(policy->stream);
  hv_device_release_host(device, policy->host);
  if (!policy->planning) hv_arena_close(&policy->scratch);
  hv_arena_close(&policy->memory);
  free(policy->cache);
  free(policy->decoded);
  free(policy->work);
  free(policy->passes);
  free(policy->stages);
  free(policy);
}

hv_status hv_policy_refresh(hv_policy *policy) {
  if (!hv_config_has_diffusion(&policy->parts->config)) return HV_OK;
  hv_upload(policy->stream, policy->block.data, policy->host, policy->at.bytes);
  hv_policy_embed_timesteps(policy);
  return hv_stream_synchronize(policy->stream);
}

static hv_status check_finite(const float *values, int64_t count, const char *what) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return hv_error(HV_ERR_INPUT, "%s holds %g at %lld", what, values[i], (long long)i);
  return HV_OK;
}

static hv_status check_inputs(const hv_policy *policy, const hv_observation *observation,
                              const hv_policy_draws *draws) {
  const hv_config *config = &policy->parts->config;
  int64_t tokens = policy->shape.tokens;
  if (observation->prompt_count < 1 || observation->prompt_count > policy->options.max_prompt)
    return hv_error(HV_ERR_INPUT, "the prompt has %d tokens: 1 … %d are possible", observation->prompt_count,
                    policy->options.max_prompt);
  for (int32_t i = 0; i < observation->prompt_count; i++) {
    int32_t id = observation->prompt_ids[i];
    if (id < 0 || id >= config->llm.vocab_size)
      return hv_error(HV_ERR_INPUT, "token %d of the prompt is %d: the vocabulary has 0 … %d", i, id,
                      config->llm.vocab_size - 1);
  }
  if (config->state_dim) HV_TRY(check_finite(observation->state, config->state_dim, "the state"));
  if (draws->noise) HV_TRY(check_finite(draws->noise, tokens, "noise"));
  if (draws->ar_noise) HV_TRY(check_finite(draws->ar_noise, tokens, "ar_noise"));
  if (draws->step_noise && policy->options.sampler == HV_SAMPLER_DDPM)
    HV_TRY(check_finite(draws->step_noise, config->diffusion_steps * tokens, "step_noise"));
  if (draws->ar_timestep && (*draws->ar_timestep < 0 || *draws->ar_timestep >= config->diffusion_steps))
    return hv_error(HV_ERR_INPUT, "ar_timestep is %d: 0 … %d are possible", *draws->ar_timestep,
                    config->diffusion_steps - 1);
  return HV_OK;
}

/* Copies what was observed and given into the host block, and works out the tables. */
static hv_given_draws fill_block(hv_policy *policy, const hv_observation *observation, const hv_policy_draws *draws) {
  const hv_config *config = &policy->parts->config;
  const hv_policy_block *at = &policy->at;
  char *host = policy->host;
  size_t side = (size_t)config->vision[0].image_size, action = (size_t)policy->shape.tokens * sizeof(float);
  memcpy(host + at->images, observation->images, (size_t)config->num_cameras * side * side * 3);
  if (config->state_dim) memcpy(host + at->state, observation->state, (size_t)config->state_dim * sizeof(float));

  int32_t *ids = (int32_t *)(host + at->text_ids), *rows = (int32_t *)(host + at->text_rows);
  int32_t count = observation->prompt_count;
  for (int32_t i = 0; i <= count; i++) {
    ids[i] = i < count ? observation->prompt_ids[i] : config->token_bod;
    rows[i] = i == 0 ? 0 : hv_policy_image_rows(config) + i;
  }

  bool denoised = policy->options.ar_condition == HV_AR_DENOISED;
  hv_given_draws given = {.noise = draws->noise != NULL, .ar_noise = draws->ar_noise != NULL};
  given.step_noise = draws->step_noise != NULL;
  given.ar_timestep = draws->ar_timestep || policy->options.ar_condition != HV_AR_RANDOM;
  int32_t timestep = denoised ? 0 : config->diffusion_steps - 1;
  if (draws->ar_timestep && !denoised) timestep = *draws->ar_timestep;
  memcpy(host + at->ar_timestep, &timestep, sizeof timestep);
  if (given.noise) memcpy(host + at->x, draws->noise, action);
  if (given.ar_noise) memcpy(host + at->ar_noise, draws->ar_noise, action);
  if (given.step_noise && policy->options.sampler == HV_SAMPLER_DDPM)
    memcpy(host + at->step_noise, draws->step_noise, (size_t)config->diffusion_steps * action);
  uint64_t seed_step[2] = {draws->seed, draws->step};
  memcpy(host + at->seed_step, seed_step, sizeof seed_step);

  for (int32_t i = 0; i < policy->num_passes; i++) {
    hv_pass_count(&policy->shape, prefix_rows(config, count), &policy->passes[i]);
    hv_pass_fill(&policy->shape, &policy->passes[i], (int32_t *)(host + at->tables));
  }
  return given;
}

/* Draws what was not given. */
static void draw(hv_policy *policy, hv_given_draws given) {
  const hv_policy_block *at = &policy->at;
  int32_t tokens = policy->shape.tokens, steps = policy->parts->config.diffusion_steps;
  hv_tensor seed_step = hv_policy_in_block(policy, at->seed_step, HV_I64, 1, 2);
  hv_tensor sample = hv_policy_in_block(policy, at->sample, HV_I64, 1, 1);
  hv_draw_normal_args normal = {.seed_step = seed_step, .samples = sample, .branches = 1};
  if (policy->denoises && !given.noise) {
    normal.domain = HV_RANDOM_POLICY_NOISE;
    normal.y = hv_policy_in_block(policy, at->x, HV_F32, 1, tokens);
    hv_draw_normal(policy->stream, &normal);
  }
  if (policy->denoises && policy->options.sampler == HV_SAMPLER_DDPM && !given.step_noise) {
    normal.domain = HV_RANDOM_POLICY_STEP_NOISE;
    normal.branches = steps;
    normal.y = hv_policy_in_block(policy, at->step_noise, HV_F32, steps, tokens);
    hv_draw_normal(policy->stream, &normal);
    normal.branches = 1;
  }
  bool conditioned = policy->decodes && policy->shape.condition_rows;
  if (!conditioned || policy->options.ar_condition == HV_AR_DENOISED) return;
  if (!given.ar_noise) {
    normal.domain = HV_RANDOM_POLICY_AR_NOISE;
    normal.y = hv_policy_in_block(policy, at->ar_noise, HV_F32, 1, tokens);
    hv_draw_normal(policy->stream, &normal);
  }
  if (!given.ar_timestep)
    hv_draw_below(policy->stream,
                  &(hv_draw_below_args){.seed_step = seed_step,
                                        .samples = sample,
                                        .branches = 1,
                                        .domain = HV_RANDOM_POLICY_AR_TIMESTEP,
                                        .limit = steps,
                                        .y = hv_policy_in_block(policy, at->ar_timestep, HV_I32, 1, 1)});
}

/* After a step: on a plan device, its work becomes entry `step`; with timing, its time is added. */
static hv_status finish_step(hv_policy *policy, int32_t step, double *ms, double *since) {
  if (policy->planning) {
    hv_plan_counts counts;
    hv_plan_device_counts(policy->parts->device, &counts);
    policy->work[step] = (hv_policy_work){.matrix_flops = counts.matrix_flops, .weight_bytes = counts.weight_bytes};
    hv_plan_device_reset(policy->parts->device);
  } else if (policy->options.timing) {
    HV_TRY(hv_stream_synchronize(policy->stream));
    double now = 1e3 * hv_clock_seconds();
    *ms += now - *since;
    *since = now;
  }
  return HV_OK;
}

/* Queues everything between the filled block and the results in it. */
static hv_status queue_prediction(hv_policy *policy, hv_given_draws given, hv_policy_result *out) {
  const hv_policy_block *at = &policy->at;
  double since = policy->options.timing ? 1e3 * hv_clock_seconds() : 0;
  hv_upload(policy->stream, policy->block.data, policy->host, at->bytes);
  draw(policy, given);
  if (policy->denoises)
    hv_convert(policy->stream, &(hv_convert_args){.src = hv_policy_action(policy, at->x), .dst = policy->x_cast});
  hv_policy_encode_images(policy);
  HV_TRY(finish_step(policy, 0, &out->vision_ms, &since));
  for (int32_t i = 0; i < policy->num_passes; i++) {
    const hv_pass *pass = &policy->passes[i];
    hv_policy_run_pass(policy, pass);
    double *ms = pass->prefill ? &out->prefill_ms : pass->stage >= 0 ? &out->denoise_ms : &out->decode_ms;
    HV_TRY(finish_step(policy, 1 + i, ms, &since));
  }
  hv_download(policy->stream, policy->host + at->x, (char *)policy->block.data + at->x, at->bytes - at->x);
  return HV_OK;
}

static bool same_draws(hv_given_draws a, hv_given_draws b) {
  return a.noise == b.noise && a.ar_noise == b.ar_noise && a.ar_timestep == b.ar_timestep &&
         a.step_noise == b.step_noise;
}

/* The entry of predictions like this one; a new one where there was none. */
static hv_policy_recording *find_recording(hv_policy *policy, int32_t prompt_count, hv_given_draws given) {
  hv_policy_recording *oldest = &policy->recordings[0];
  for (int i = 0; i < HV_POLICY_RECORDINGS; i++) {
    hv_policy_recording *entry = &policy->recordings[i];
    if (entry->prompt_count == prompt_count && same_draws(entry->given, given)) return entry;
    if (entry->last_use < oldest->last_use) oldest = entry;
  }
  hv_recording_close(policy->parts->device, oldest->recording);
  *oldest = (hv_policy_recording){.given = given};
  return oldest;
}

static hv_status record(hv_policy *policy, hv_given_draws given, hv_policy_result *out, hv_recording **recording) {
  HV_TRY(hv_stream_record_begin(policy->stream));
  hv_status status = queue_prediction(policy, given, out);
  return hv_status_first(status, hv_stream_record_end(policy->stream, recording));
}

/* What is shared among ranks comes by events of another stream, which have no place in a recording. */
static bool may_record(const hv_policy *policy) {
  return hv_device_records(policy->parts->device) && !policy->options.timing &&
         hv_params_sharding(policy->parts->params) == HV_SHARD_NOTHING;
}

static hv_status run(hv_policy *policy, int32_t prompt_count, hv_given_draws given, hv_policy_result *out) {
  if (!may_record(policy)) {
    HV_TRY(queue_prediction(policy, given, out));
  } else {
    hv_policy_recording *entry = find_recording(policy, prompt_count, given);
    bool repeated = entry->prompt_count == prompt_count;
    entry->prompt_count = prompt_count;
    entry->last_use = ++policy->predictions;
    if (repeated && !entry->recording) HV_TRY(record(policy, given, out, &entry->recording));
    if (entry->recording) {
      hv_stream_replay(policy->stream, entry->recording);
    } else {
      HV_TRY(queue_prediction(policy, given, out));
    }
  }
  HV_TRY(hv_stream_synchronize(policy->stream));
  return hv_arena_status(&policy->scratch);
}

static void read_results(hv_policy *policy, hv_policy_result *out) {
  const hv_config *config = &policy->parts->config;
  if (policy->denoises) out->diffusion = (const float *)(policy->host + policy->at.x);
  if (!policy->decodes) return;
  int32_t *tokens = (int32_t *)(policy->host + policy->at.ids);
  out->tokens = tokens;
  out->confidences = (const float *)(policy->host + policy->at.probabilities);
  out->autoregressive = policy->decoded;
  double sum = 0;
  for (int32_t i = 0; i < policy->shape.tokens; i++) {
    tokens[i] += config->action_base - config->action_bins;
    policy->decoded[i] = (float)hv_action_from_token(tokens[i], config->action_base, config->action_bins);
    sum += out->confidences[i];
  }
  out->confidence = sum / policy->shape.tokens;
}

hv_status hv_policy_predict(hv_policy *policy, const hv_observation *observation, const hv_policy_draws *draws,
                            hv_policy_result *out) {
  *out = (hv_policy_result){0};
  HV_TRY(check_inputs(policy, observation, draws));
  hv_given_draws given = fill_block(policy, observation, draws);
  HV_TRY(run(policy, observation->prompt_count, given, out));
  read_results(policy, out);
  return HV_OK;
}

/* Runs a policy of these options on a plan device: the bytes of its activations, and the work of each step. */
static hv_status plan(hv_model *model, const hv_policy_options *options, size_t *scratch_bytes, hv_policy_work **work) {
  const hv_model_parts *parts = hv_model_get_parts(model);
  hv_status status;
  hv_device *device = NULL;
  hv_model *twin = NULL;
  hv_policy *policy = NULL;
  HV_CHECK(hv_plan_device_open(&device));
  HV_CHECK(hv_model_open(&parts->config, device, parts->dtype, &twin));
  HV_CHECK(hv_params_allocate(hv_model_params(twin)));
  HV_CHECK(construct(twin, options, 0, &policy));
  hv_plan_device_reset(device);
  hv_policy_result result = {0};
  HV_CHECK(run(policy, options->max_prompt, (hv_given_draws){0}, &result));
  *scratch_bytes = policy->scratch.peak;
  *work = policy->work;
  policy->work = NULL;
done:
  hv_policy_close(policy);
  hv_model_close(twin);
  hv_device_close(device);
  return status;
}

hv_status hv_policy_open(hv_model *model, const hv_policy_options *options, hv_policy **out) {
  const hv_model_parts *parts = hv_model_get_parts(model);
  HV_TRY(check_options(&parts->config, options));
  size_t scratch_bytes = 0;
  hv_policy_work *work = NULL;
  hv_policy *policy = NULL;
  HV_TRY(plan(model, options, &scratch_bytes, &work));
  hv_status status = construct(model, options, scratch_bytes, &policy);
  if (status) {
    free(work);
    return status;
  }
  free(policy->work);
  policy->work = work;
  *out = policy;
  return HV_OK;
}

const hv_policy_work *hv_policy_get_work(const hv_policy *policy, int32_t *count) {
  *count = 1 + policy->num_passes;
  return policy->work;
}

size_t hv_policy_memory(const hv_policy *policy) {
  return policy->memory.capacity + policy->scratch.capacity;
}

bool hv_ensemble(const double *diffusion, const double *autoregressive, double confidence, double theta,
                 int32_t action_chunk, int32_t action_dim, const bool *gripper, double *out) {
  bool both = confidence > theta;
  for (int32_t h = 0; h < action_chunk; h++)
    for (int32_t d = 0; d < action_dim; d++) {
      int32_t i = h * action_dim + d;
      double mean = (diffusion[i] + autoregressive[i]) / 2;
      if (gripper[d]) mean = mean > 0.5 ? 1.0 : 0.0;
      out[i] = both ? mean : diffusion[i];
    }
  return both;
}
