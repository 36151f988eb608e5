#include "tests/hybridvla/tiny_model.h"

#include "core/base/random.h"
#include "core/cpu/cpu.h"
#include "tests/check.h"

enum { PROMPT = 6 };

hv_config tiny_config(hv_objective objective, bool clip) {
  hv_config config = {
      .action_dim = 3,
      .action_chunk = 2,
      .state_dim = 4,
      .num_cameras = 2,
      .cameras = {"front", "wrist"},
      .objective = objective,
      .final_norm = HV_NORM_VARIANCE,
      .projector = clip ? HV_PROJECTOR_GELU_MLP : HV_PROJECTOR_FUSED_GELU_MLP,
      .num_towers = 2,
      .llm = {.hidden_size = 24,
              .intermediate_size = 20,
              .num_hidden_layers = 2,
              .num_attention_heads = 4,
              .num_key_value_heads = 2,
              .vocab_size = 300,
              .rms_norm_eps = 1e-5,
              .rope_theta = 10000},
      .diffusion_steps = 100,
      .action_base = 290,
      .action_bins = 256,
      .token_bos = 1,
      .token_eos = 2,
      .token_pad = 297,
      .token_bod = 298,
      .token_eod = 299,
      .token_empty = 5,
  };
  for (int32_t i = 0; i < 2; i++) {
    hv_vision_config *tower = &config.vision[i];
    *tower = (hv_vision_config){.width = i ? 10 : 16,
                                .depth = 3,
                                .num_heads = 2,
                                .mlp_width = 12,
                                .patch_size = 7,
                                .image_size = 14,
                                .layer_norm_eps = 1e-6,
                                .class_token = i == 0,
                                .layer_scale = i == 0,
                                .register_tokens = i == 0 ? 2 : 0,
                                .activation = HV_ACT_GELU,
                                .image_mean = {0.4, 0.5, 0.6},
                                .image_std = {0.3, 0.2, 0.25},
                                .patch_bias = true};
    snprintf(tower->prefix, sizeof tower->prefix, "vision_backbone.%s_featurizer", i ? "siglip" : "dino");
  }
  if (clip) {
    hv_vision_config *tower = &config.vision[0];
    tower->pre_norm = tower->class_position = true;
    tower->patch_bias = tower->layer_scale = false;
    tower->register_tokens = 0;
    tower->activation = HV_ACT_QUICK_GELU;
  }
  return config;
}

static uint32_t draw(uint64_t seed, uint32_t what, uint64_t i, uint32_t limit) {
  return hv_random_below(seed, HV_RANDOM_INIT, what, i, 0, 0, limit);
}

static float normal(uint64_t seed, uint32_t what, uint64_t i) {
  return hv_random_normal(seed, HV_RANDOM_INIT, what, i, 0, 0);
}

static void *allocate(int64_t count, size_t size) {
  void *memory = calloc((size_t)(count > 0 ? count : 1), size);
  assert_non_null(memory);
  return memory;
}

typedef struct sizes {
  int64_t image, values;
} sizes;

static sizes sample_sizes(const hv_config *config) {
  int64_t side = config->vision[0].image_size;
  return (sizes){.image = config->num_cameras * side * side * 3,
                 .values = (int64_t)config->action_chunk * config->action_dim};
}

static tiny_batch allocate_batch(const hv_config *config, int32_t samples, int32_t branches) {
  sizes size = sample_sizes(config);
  tiny_batch b = {
      .images = allocate(samples * size.image, 1),
      .mask = allocate((int64_t)samples * config->action_chunk, 1),
      .prompt_ids = allocate((int64_t)samples * PROMPT, 4),
      .timesteps = allocate((int64_t)samples * branches, 4),
      .state = allocate((int64_t)samples * config->state_dim, 4),
      .actions = allocate(samples * size.values, 4),
      .noise = allocate(samples * branches * size.values, 4),
      .sample_ids = allocate(samples, 8),
  };
  b.batch = (hv_batch){.samples = samples,
                       .images = b.images,
                       .prompt_ids = b.prompt_ids,
                       .prompt_stride = PROMPT,
                       .state = b.state,
                       .actions = b.actions,
                       .action_mask = b.mask,
                       .noise = b.noise,
                       .timesteps = b.timesteps,
                       .sample_ids = b.sample_ids};
  return b;
}

tiny_batch tiny_batch_make(const hv_config *config, int32_t samples, int32_t branches, uint64_t seed) {
  sizes size = sample_sizes(config);
  tiny_batch b = allocate_batch(config, samples, branches);
  for (int64_t i = 0; i < samples * size.image; i++) b.images[i] = (uint8_t)draw(seed, 1, (uint64_t)i, 256);
  memset(b.mask, 1, (size_t)samples * (size_t)config->action_chunk);
  b.mask[samples * config->action_chunk - 1] = 0;
  for (int32_t s = 0; s < samples; s++) {
    int32_t length = PROMPT - s % 3;
    for (int32_t i = 0; i < PROMPT; i++) {
      int32_t id = i == 0 ? config->token_bos : (int32_t)draw(seed, 2, (uint64_t)s * PROMPT + (uint64_t)i, 200);
      b.prompt_ids[s * PROMPT + i] = i < length ? id : -1;
    }
    b.sample_ids[s] = 100 + s;
  }
  for (int32_t i = 0; i < samples * branches; i++) b.timesteps[i] = (int32_t)draw(seed, 3, (uint64_t)i, 100);
  for (int32_t i = 0; i < samples * config->state_dim; i++) b.state[i] = normal(seed, 4, (uint64_t)i);
  for (int64_t i = 0; i < samples * size.values; i++) {
    float value = 0.5f * normal(seed, 5, (uint64_t)i);
    b.actions[i] = value > 1 ? 1 : value < -1 ? -1 : value;
  }
  for (int64_t i = 0; i < samples * branches * size.values; i++) b.noise[i] = normal(seed, 6, (uint64_t)i);
  return b;
}

tiny_batch tiny_batch_repeat(const hv_config *config, const tiny_batch *from, int32_t branches) {
  sizes size = sample_sizes(config);
  tiny_batch b = allocate_batch(config, from->batch.samples * branches, 1);
  for (int32_t i = 0; i < b.batch.samples; i++) {
    int32_t s = i / branches;
    memcpy(b.images + i * size.image, from->images + s * size.image, (size_t)size.image);
    memcpy(b.mask + i * config->action_chunk, from->mask + s * config->action_chunk, (size_t)config->action_chunk);
    memcpy(b.prompt_ids + (ptrdiff_t)i * PROMPT, from->prompt_ids + (ptrdiff_t)s * PROMPT, PROMPT * sizeof(int32_t));
    memcpy(b.state + (ptrdiff_t)i * config->state_dim, from->state + (ptrdiff_t)s * config->state_dim,
           (size_t)config->state_dim * 4);
    memcpy(b.actions + i * size.values, from->actions + s * size.values, (size_t)size.values * 4);
    b.sample_ids[i] = from->sample_ids[s];
  }
  memcpy(b.noise, from->noise, (size_t)(b.batch.samples * size.values) * 4);
  memcpy(b.timesteps, from->timesteps, (size_t)b.batch.samples * 4);
  return b;
}

hv_batch tiny_batch_part(const hv_config *config, const tiny_batch *from, int32_t branches, int32_t first,
                         int32_t count) {
  sizes size = sample_sizes(config);
  hv_batch part = from->batch;
  part.samples = count;
  part.images += first * size.image;
  part.action_mask += first * config->action_chunk;
  part.prompt_ids += (ptrdiff_t)first * PROMPT;
  part.state += (ptrdiff_t)first * config->state_dim;
  part.actions += first * size.values;
  part.noise += first * branches * size.values;
  part.timesteps += (ptrdiff_t)first * branches;
  part.sample_ids += first;
  hv_batch_count(config, &from->batch, branches, &part.diffusion_divisor, &part.label_divisor);
  return part;
}

void tiny_batch_free(tiny_batch *b) {
  free(b->images);
  free(b->mask);
  free(b->prompt_ids);
  free(b->timesteps);
  free(b->state);
  free(b->actions);
  free(b->noise);
  free(b->sample_ids);
}

/* No matrix stays zero and no norm exactly 1, so that mistakes in their use show. */
static void randomize(tiny_run *run) {
  hv_params *params = hv_model_params(run->model);
  for (hv_param_id id = 0; id < hv_params_count(params); id++) {
    const hv_param *param = hv_params_get(params, id);
    int64_t count = param->rows * param->cols;
    double *values = allocate(count, sizeof *values);
    for (int64_t i = 0; i < count; i++) {
      values[i] = (param->init == HV_INIT_ONE ? 1.0 : 0.0) + 0.15 * (double)normal(7, (uint32_t)id, (uint64_t)i);
    }
    assert_ok(hv_param_write(params, id, HV_F64, values, run->stream));
    free(values);
  }
}

tiny_run tiny_run_open(const hv_config *config, hv_dtype dtype, int32_t max_samples, int32_t branches,
                       const char *const *frozen, int frozen_count) {
  tiny_run run = {0};
  hv_sequence_limits limits = {.samples = max_samples, .branches = branches, .prompt = PROMPT};
  size_t arena_bytes = 0;
  hv_model_step step = {.config = config,
                        .dtype = dtype,
                        .limits = limits,
                        .frozen = frozen,
                        .frozen_count = frozen_count,
                        .training = true};
  assert_ok(hv_model_plan_step(&step, &arena_bytes, NULL));
  assert_ok(hv_cpu_device_open(NULL, &run.device));
  assert_ok(hv_stream_open(run.device, &run.stream));
  assert_ok(hv_model_open(config, run.device, dtype, &run.model));
  hv_params *params = hv_model_params(run.model);
  assert_ok(hv_params_freeze(params, frozen, frozen_count));
  assert_ok(hv_params_allocate(params));
  assert_ok(hv_params_allocate_gradients(params, dtype == HV_F64 ? HV_F64 : HV_F32));
  randomize(&run);
  assert_ok(hv_sequence_open(config, run.device, &limits, &run.sequence));
  const hv_sequence_counts *largest = hv_sequence_get_counts(run.sequence);
  assert_ok(hv_model_prepare(run.model, largest->max_key_rows, largest->images, run.stream));
  assert_ok(hv_arena_open(run.device, HV_MEMORY_ACTIVATIONS, arena_bytes, "the step", &run.arena));
  return run;
}

void tiny_run_close(tiny_run *run) {
  hv_arena_close(&run->arena);
  hv_sequence_close(run->sequence);
  hv_model_close(run->model);
  hv_stream_close(run->stream);
  hv_device_close(run->device);
}

static double read_loss(tiny_run *run, hv_tensor loss) {
  char bytes[8];
  double value;
  hv_download(run->stream, bytes, loss.data, hv_dtype_size(loss.dtype));
  assert_ok(hv_stream_synchronize(run->stream));
  hv_dtype_convert(HV_F64, &value, loss.dtype, bytes, 1);
  return value;
}

double tiny_run_step(tiny_run *run, const hv_batch *batch, bool training, bool accumulate) {
  hv_loss_weights weights = {.diffusion = 1, .ce = 1};
  hv_arena_release(&run->arena, 0);
  assert_ok(hv_sequence_build(run->sequence, batch, 3, 4));
  hv_sequence_upload(run->sequence, run->stream);
  hv_sequence_use(run->sequence, run->stream);
  hv_model_forward(run->model, run->sequence, &weights, training, &run->arena, run->stream, &run->activations);
  if (training) {
    if (!accumulate) hv_params_zero_gradients(hv_model_params(run->model), run->stream);
    hv_model_backward(run->model, run->sequence, &run->activations, &run->arena, run->stream);
  }
  hv_sequence_done(run->sequence, run->stream);
  assert_ok(hv_arena_status(&run->arena));
  run->loss_diffusion = read_loss(run, run->activations.loss_diffusion);
  run->loss_ce = read_loss(run, run->activations.loss_ce);
  return run->loss_diffusion + run->loss_ce;
}

double *tiny_run_values(tiny_run *run, hv_param_id id) {
  const hv_param *param = hv_params_get(hv_model_params(run->model), id);
  double *values = allocate(param->rows * param->cols, sizeof *values);
  assert_ok(hv_param_read(hv_model_params(run->model), id, HV_F64, values, run->stream));
  return values;
}

double *tiny_run_gradient(tiny_run *run, hv_param_id id) {
  const hv_param *param = hv_params_get(hv_model_params(run->model), id);
  double *values = allocate(param->rows * param->cols, sizeof *values);
  assert_ok(hv_param_read_gradient(hv_model_params(run->model), id, HV_F64, values, run->stream));
  return values;
}
