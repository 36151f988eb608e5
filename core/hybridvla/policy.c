#include <stdlib.h>
#include <string.h>

#include "core/hybridvla/policy_state.h"
#include "core/tensor/plan.h"

enum { ALIGNMENT = 256 };

/* Bytes of the activation arenas: of the main stream, and of the second tower's. */
typedef struct hv_policy_scratch {
  size_t main, side;
} hv_policy_scratch;

hv_policy_options hv_policy_default_options(const hv_config *config) {
  hv_mode mode = HV_MODE_ENSEMBLE;
  if (!hv_config_has_autoregression(config)) mode = HV_MODE_DIFFUSION;
  if (!hv_config_has_diffusion(config)) mode = HV_MODE_AUTOREGRESSIVE;
  return (hv_policy_options){
      .mode = mode, .sampler = HV_SAMPLER_DDIM, .ddim_steps = 4, .ar_condition = HV_AR_NOISE, .max_prompt = 512};
}

int64_t hv_policy_positions(const hv_config *config, int32_t max_prompt) {
  int64_t branch = 1 + config->action_chunk + 2 + (int64_t)config->action_chunk * config->action_dim;
  return hv_policy_prefix_rows(config, max_prompt) + branch;
}

static hv_status check_options(const hv_config *config, const hv_policy_options *options) {
  bool diffusion = hv_config_has_diffusion(config), autoregression = hv_config_has_autoregression(config);
  if (!diffusion && options->mode != HV_MODE_AUTOREGRESSIVE)
    return hv_error(HV_ERR_INPUT, "the model was trained with the objective autoregressive, so it has no noise head: "
                                  "the only mode possible is autoregressive");
  if (!autoregression && options->mode != HV_MODE_DIFFUSION)
    return hv_error(HV_ERR_INPUT, "the model was trained with the objective diffusion, so it gives no action tokens: "
                                  "the only mode possible is diffusion");
  if (!diffusion && options->ar_condition != HV_AR_NOISE)
    return hv_error(HV_ERR_INPUT,
                    "the model was trained with the objective autoregressive, so its action tokens attend "
                    "only to the prefix: leave ar_condition at its default");
  if (options->max_prompt < 1)
    return hv_error(HV_ERR_INPUT, "max_prompt must be at least 1, not %d", options->max_prompt);
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
  policy->shape = (hv_branch_shape){.prefix_capacity = hv_policy_prefix_rows(config, options->max_prompt),
                                    .horizon = config->action_chunk,
                                    .tokens = tokens,
                                    .condition_rows = conditioned ? 1 + config->action_chunk : 0,
                                    .marker_rows = config->token_empty >= 0 ? 2 : 1};
  int32_t wanted = policy->decodes ? tokens : 0;
  policy->num_passes = hv_passes_count(policy->num_stages, wanted, after);
  policy->passes = calloc((size_t)policy->num_passes, sizeof *policy->passes);
  policy->work = calloc((size_t)policy->num_passes + 1, sizeof *policy->work);
  policy->decoded = calloc((size_t)tokens, sizeof *policy->decoded);
  policy->met = calloc((size_t)options->max_prompt + 1, sizeof *policy->met);
  if (!policy->passes || !policy->work || !policy->decoded || !policy->met)
    return hv_error_memory("the passes of a prediction");
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

/* Takes the memory that lives as long as the policy. */
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
  policy->features = hv_arena_take(memory, parts->dtype, hv_policy_image_rows(config), hv_config_vision_width(config));
  int64_t rows = policy->passes[0].rows;
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

static hv_status open_streams(hv_policy *policy) {
  hv_device *device = policy->parts->device;
  HV_TRY(hv_stream_open(device, &policy->stream));
  if (!hv_policy_may_record(policy) || policy->parts->config.num_towers < 2) return HV_OK;
  HV_TRY(hv_stream_open(device, &policy->side));
  HV_TRY(hv_event_open(device, &policy->inputs_ready));
  return hv_event_open(device, &policy->tower_ready);
}

/* `bytes` NULL: planning arenas without a limit. */
static hv_status open_scratch(hv_policy *policy, const hv_policy_scratch *bytes) {
  hv_device *device = policy->parts->device;
  if (!bytes) {
    policy->scratch = policy->side_scratch = hv_arena_for_plan(device);
    return HV_OK;
  }
  HV_TRY(
      hv_arena_open(device, HV_MEMORY_ACTIVATIONS, bytes->main, "the activations of a prediction", &policy->scratch));
  if (bytes->side == 0) return HV_OK;
  return hv_arena_open(device, HV_MEMORY_ACTIVATIONS, bytes->side, "the activations of a prediction's second tower",
                       &policy->side_scratch);
}

/* `scratch`: the bytes that a policy of the same options took on the plan device; NULL: this is that one. */
static hv_status construct(hv_model *model, const hv_policy_options *options, const hv_policy_scratch *scratch,
                           hv_policy **out) {
  hv_status status = HV_OK;
  hv_policy *policy = calloc(1, sizeof *policy);
  if (!policy) return hv_error_memory("a policy");
  hv_device *device = hv_model_device(model);
  policy->parts = hv_model_get_parts(model);
  policy->options = *options;
  policy->planning = scratch == NULL;
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
  HV_CHECK(open_scratch(policy, scratch));
  HV_CHECK(open_streams(policy));
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
  hv_policy_forget_recordings(policy);
  hv_stream_close(policy->stream);
  hv_stream_close(policy->side);
  hv_event_close(device, policy->inputs_ready);
  hv_event_close(device, policy->tower_ready);
  hv_device_release_host(device, policy->host);
  if (!policy->planning) hv_arena_close(&policy->scratch);
  if (!policy->planning) hv_arena_close(&policy->side_scratch);
  hv_arena_close(&policy->memory);
  free(policy->cache);
  free(policy->decoded);
  free(policy->met);
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

/* Runs a policy of these options on a plan device: the bytes of its activations, and the work of each step. */
static hv_status plan(hv_model *model, const hv_policy_options *options, hv_policy_scratch *scratch,
                      hv_policy_work **work) {
  const hv_model_parts *parts = hv_model_get_parts(model);
  hv_status status;
  hv_device *device = NULL;
  hv_model *twin = NULL;
  hv_policy *policy = NULL;
  HV_CHECK(hv_plan_device_open(&device));
  HV_CHECK(hv_model_open(&parts->config, device, parts->dtype, &twin));
  HV_CHECK(hv_params_allocate(hv_model_params(twin)));
  HV_CHECK(construct(twin, options, NULL, &policy));
  hv_plan_device_reset(device);
  hv_policy_result result = {0};
  HV_CHECK(hv_policy_run(policy, options->max_prompt, (hv_given_draws){0}, &result));
  *scratch = (hv_policy_scratch){.main = policy->scratch.peak, .side = policy->side_scratch.peak};
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
  hv_policy_scratch scratch;
  hv_policy_work *work = NULL;
  hv_policy *policy = NULL;
  HV_TRY(plan(model, options, &scratch, &work));
  hv_status status = construct(model, options, &scratch, &policy);
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
