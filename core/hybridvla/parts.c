#include "core/hybridvla/parts.h"

#include <stdlib.h>

#include "core/hybridvla/schedule.h"

static const char projector_prefix[] = "projector.projector";

static void declare_projector(hv_model_parts *parts) {
  const hv_config *config = &parts->config;
  static const char *const names[] = {"0", "2", "4"};
  static const hv_init inits[] = {HV_INIT_XAVIER, HV_INIT_XAVIER, HV_INIT_XAVIER};
  int32_t vision = hv_config_vision_width(config), hidden = config->llm.hidden_size;
  parts->projector_group = hv_params_begin_group(parts->params, "projector");
  switch (config->projector) {
  case HV_PROJECTOR_FUSED_GELU_MLP:
    parts->projector = (hv_mlp){.layers = 3, .widths = {vision, 4 * vision, hidden, hidden}};
    break;
  case HV_PROJECTOR_GELU_MLP: parts->projector = (hv_mlp){.layers = 2, .widths = {vision, hidden, hidden}}; break;
  case HV_PROJECTOR_LINEAR: parts->projector = (hv_mlp){.layers = 1, .widths = {vision, hidden}}; break;
  }
  parts->projector.activation = HV_ACT_GELU;
  if (config->projector == HV_PROJECTOR_LINEAR) {
    /* A single layer has no index: projector.projector.weight. */
    static const char *const linear[] = {"projector"};
    hv_mlp_declare(&parts->projector, parts->params, "projector", linear, inits);
  } else {
    hv_mlp_declare(&parts->projector, parts->params, projector_prefix, names, inits);
  }
}

static hv_status declare_llm(hv_model_parts *parts) {
  const hv_llm_config *llm = &parts->config.llm;
  parts->layers = calloc((size_t)llm->num_hidden_layers, sizeof *parts->layers);
  if (!parts->layers) return hv_error_memory("the decoder's layers");
  parts->embed_group = hv_params_begin_group(parts->params, "llm_backbone.llm.model.embed_tokens");
  parts->embed_tokens =
      hv_params_declare(parts->params, &(hv_param_spec){.name = "llm_backbone.llm.model.embed_tokens.weight",
                                                        .shape = {llm->vocab_size, llm->hidden_size},
                                                        .init = HV_INIT_NORMAL,
                                                        .decay = true,
                                                        .lookup = true});
  for (int32_t i = 0; i < llm->num_hidden_layers; i++) {
    hv_decoder_layer_declare(llm, parts->params, i, &parts->layers[i]);
  }
  parts->head_group = hv_params_begin_group(parts->params, "llm_backbone.llm.lm_head");
  parts->llm_norm = hv_params_declare_vector(parts->params, NULL, "llm_backbone.llm.model.norm.weight",
                                             llm->hidden_size, HV_INIT_ONE);
  parts->lm_head = hv_params_declare_matrix(parts->params, NULL, "llm_backbone.llm.lm_head.weight", llm->vocab_size,
                                            llm->hidden_size);
  return HV_OK;
}

/* An embedder of two layers: of state, action or timestep. */
static void declare_embedder(hv_model_parts *parts, hv_mlp *mlp, const char *prefix, int32_t width,
                             hv_activation activation, const char *const names[]) {
  static const hv_init inits[] = {HV_INIT_NORMAL, HV_INIT_NORMAL};
  int32_t hidden = parts->config.llm.hidden_size;
  *mlp = (hv_mlp){.layers = 2, .widths = {width, hidden, hidden}, .activation = activation};
  hv_mlp_declare(mlp, parts->params, prefix, names, inits);
}

static void declare_embedders(hv_model_parts *parts) {
  const hv_config *config = &parts->config;
  static const char *const fc[] = {"fc1", "fc2"}, *const indexed[] = {"0", "2"};
  parts->embedder_group = hv_params_begin_group(parts->params, "embedders");
  if (config->state_dim > 0) {
    declare_embedder(parts, &parts->state_embedder, "proprio_embedder.mlp", config->state_dim, HV_ACT_GELU_TANH, fc);
  }
  if (!hv_config_has_diffusion(config)) return;
  declare_embedder(parts, &parts->x_embedder, "x_embedder.mlp", config->action_dim, HV_ACT_GELU_TANH, fc);
  declare_embedder(parts, &parts->timestep_embedder, "t_embedder.mlp", HV_TIMESTEP_FEATURES, HV_ACT_SILU, indexed);

  static const hv_init inits[] = {HV_INIT_XAVIER, HV_INIT_ZERO};
  int32_t hidden = config->llm.hidden_size;
  parts->final_group = hv_params_begin_group(parts->params, "final_layer");
  parts->final_norm =
      hv_params_declare_vector(parts->params, NULL, "final_layer.norm_final.weight", hidden, HV_INIT_ONE);
  parts->final_mlp =
      (hv_mlp){.layers = 2, .widths = {hidden, hidden, config->action_dim}, .activation = HV_ACT_GELU_TANH};
  hv_mlp_declare(&parts->final_mlp, parts->params, "final_layer.mlp", fc, inits);
}

hv_status hv_model_parts_open(const hv_config *config, hv_device *device, hv_dtype dtype, hv_model_parts *parts) {
  *parts = (hv_model_parts){.config = *config,
                            .device = device,
                            .dtype = dtype,
                            .real = dtype == HV_F64 ? HV_F64 : HV_F32,
                            .final_norm = -1,
                            .final_group = -1};
  HV_TRY(hv_params_open(device, dtype, &parts->params));
  for (int32_t i = 0; i < config->num_towers; i++) {
    HV_TRY(hv_vit_open(&config->vision[i], parts->params, &parts->towers[i]));
  }
  declare_projector(parts);
  HV_TRY(declare_llm(parts));
  declare_embedders(parts);
  HV_TRY(hv_params_declared(parts->params));
  if (hv_config_has_autoregression(config)) return HV_OK;
  /* Files hold the vocabulary head whatever the objective; without a cross-entropy nothing trains it. */
  static const char *const head[] = {"llm_backbone.llm.lm_head.weight"};
  return hv_params_freeze(parts->params, head, 1);
}

void hv_model_parts_close(hv_model_parts *parts) {
  for (int32_t i = 0; i < HV_MAX_TOWERS; i++) hv_vit_close(&parts->towers[i]);
  free(parts->layers);
  hv_params_close(parts->params);
  hv_arena_close(&parts->constants);
}

static void take_constants(hv_model_parts *parts, hv_arena *arena) {
  const hv_config *config = &parts->config;
  int64_t images = parts->max_images;
  parts->cos_sin = hv_arena_take(arena, parts->real, parts->max_positions, hv_llm_head_dim(&config->llm));
  parts->alpha_bar = hv_arena_take(arena, parts->real, 1, config->diffusion_steps);
  for (int32_t i = 0; i < config->num_towers; i++) {
    parts->vit_tables[i] = (hv_vit_tables){
        .segments = hv_arena_take(arena, HV_I32, images, 6),
        .key_groups = hv_arena_take(arena, HV_I32, images, 4),
        .patch_rows = hv_arena_take(arena, HV_I32, 1, images * hv_vit_patches(&parts->towers[i])),
    };
  }
}

/* Bytes of the largest constant: one host buffer serves for all, one after the other. */
static size_t largest_constant(const hv_model_parts *parts) {
  size_t largest = (size_t)hv_tensor_count(parts->cos_sin) * hv_dtype_size(parts->real);
  size_t alpha = HV_MAX_DIFFUSION_STEPS * sizeof(double);
  if (alpha > largest) largest = alpha;
  for (int32_t i = 0; i < parts->config.num_towers; i++) {
    size_t tables = (size_t)parts->max_images *
                    (sizeof(hv_segment) + sizeof(hv_key_group) + (size_t)hv_vit_patches(&parts->towers[i]) * 4);
    if (tables > largest) largest = tables;
  }
  return largest;
}

static hv_status upload_constant(hv_tensor to, const void *values, hv_stream *stream) {
  hv_upload(stream, to.data, values, (size_t)hv_tensor_count(to) * hv_dtype_size(to.dtype));
  return hv_stream_synchronize(stream);
}

static hv_status upload_vit_tables(const hv_vit *vit, const hv_vit_tables *tables, int64_t images, char *host,
                                   hv_stream *stream) {
  hv_segment *segments = (hv_segment *)host;
  hv_key_group *groups = (hv_key_group *)(segments + images);
  int32_t *rows = (int32_t *)(groups + images);
  hv_vit_segments(vit, images, segments, groups);
  int64_t tokens = hv_vit_tokens(vit), patches = hv_vit_patches(vit);
  for (int64_t i = 0; i < images * patches; i++) {
    rows[i] = (int32_t)(i / patches * tokens + (tokens - patches) + i % patches);
  }
  HV_TRY(upload_constant(tables->segments, segments, stream));
  HV_TRY(upload_constant(tables->key_groups, groups, stream));
  return upload_constant(tables->patch_rows, rows, stream);
}

static hv_status upload_constants(hv_model_parts *parts, hv_stream *stream) {
  hv_status status = HV_OK;
  char *host = malloc(largest_constant(parts));
  if (!host) return hv_error_memory("the model's constants");
  hv_decoder_fill_rotary(&parts->config.llm, parts->max_positions, parts->real, host);
  HV_CHECK(upload_constant(parts->cos_sin, host, stream));
  int32_t steps = parts->config.diffusion_steps;
  double alpha_bar[HV_MAX_DIFFUSION_STEPS];
  hv_schedule_alpha_bar(steps, alpha_bar);
  hv_dtype_convert(parts->real, host, HV_F64, alpha_bar, steps);
  HV_CHECK(upload_constant(parts->alpha_bar, host, stream));
  for (int32_t i = 0; i < parts->config.num_towers; i++) {
    HV_CHECK(upload_vit_tables(&parts->towers[i], &parts->vit_tables[i], parts->max_images, host, stream));
  }
done:
  free(host);
  return status;
}

hv_status hv_model_parts_prepare(hv_model_parts *parts, int64_t max_positions, int64_t max_images, hv_stream *stream) {
  if (max_positions <= parts->max_positions && max_images <= parts->max_images) return HV_OK;
  HV_TRY(hv_stream_synchronize(stream));
  hv_model_parts before = *parts; /* what stays if there is no memory for more */
  if (max_positions > parts->max_positions) parts->max_positions = max_positions;
  if (max_images > parts->max_images) parts->max_images = max_images;
  hv_arena measure = hv_arena_for_plan(parts->device);
  take_constants(parts, &measure);
  hv_status status =
      hv_arena_open(parts->device, HV_MEMORY_WORKSPACE, measure.peak, "the model's constants", &parts->constants);
  if (!status) {
    take_constants(parts, &parts->constants);
    status = upload_constants(parts, stream);
  }
  if (status) {
    hv_arena_close(&parts->constants);
    *parts = before;
    return status;
  }
  hv_arena_close(&before.constants);
  parts->preparations++;
  return HV_OK;
}

hv_vit_tables hv_model_vit_tables(const hv_model_parts *parts, int32_t tower, int64_t images) {
  hv_vit_tables tables = parts->vit_tables[tower];
  tables.segments.rows = images;
  tables.key_groups.rows = images;
  tables.patch_rows.cols = images * hv_vit_patches(&parts->towers[tower]);
  return tables;
}

void hv_model_run_tower(hv_model_parts *parts, int32_t tower, hv_tensor images, hv_tensor features, hv_vit_saved *saved,
                        hv_arena *arena, hv_stream *stream) {
  hv_vit_tables tables = hv_model_vit_tables(parts, tower, images.rows);
  int64_t column = 0;
  for (int32_t i = 0; i < tower; i++) column += parts->config.vision[i].width;
  hv_tensor own = hv_tensor_cols(features, column, parts->config.vision[tower].width);
  hv_vit_forward(&parts->towers[tower], parts->params, images, &tables, own, saved, arena, stream);
}

void hv_model_encode_images(hv_model_parts *parts, hv_tensor images, hv_tensor features, hv_vit_saved *saved,
                            hv_arena *arena, hv_stream *stream) {
  for (int32_t i = 0; i < parts->config.num_towers; i++) {
    hv_model_run_tower(parts, i, images, features, saved ? &saved[i] : NULL, arena, stream);
  }
}

void hv_model_embed_timesteps(hv_model_parts *parts, hv_tensor timesteps, hv_tensor sinusoid, hv_mlp_saved *saved,
                              hv_tensor out, hv_stream *stream) {
  hv_sinusoid(stream, &(hv_sinusoid_args){.timesteps = timesteps, .y = sinusoid});
  hv_mlp_forward(&parts->timestep_embedder, parts->params, sinusoid, saved, out, stream);
}

void hv_model_take_noise_head(const hv_model_parts *parts, hv_arena *arena, int64_t n, bool training,
                              hv_noise_head_saved *saved) {
  *saved = (hv_noise_head_saved){.norm = hv_arena_take(arena, parts->dtype, n, parts->config.llm.hidden_size)};
  if (training) saved->stats = hv_arena_take(arena, parts->real, n, 2);
  hv_mlp_take_saved(&parts->final_mlp, arena, parts->dtype, n, training, &saved->mlp);
}

void hv_model_noise_head(hv_model_parts *parts, hv_tensor hidden, hv_noise_head_saved *saved, hv_tensor pred,
                         hv_stream *stream) {
  hv_params_use(parts->params, parts->final_group, stream);
  hv_norm(stream, &(hv_norm_args){.kind = parts->config.final_norm,
                                  .eps = HV_FINAL_NORM_EPS,
                                  .x = hidden,
                                  .weight = hv_param_value(parts->params, parts->final_norm),
                                  .y = saved->norm,
                                  .stats = saved->stats});
  hv_mlp_forward(&parts->final_mlp, parts->params, saved->norm, &saved->mlp, pred, stream);
  hv_params_done(parts->params, parts->final_group, stream);
}
