#include "core/hybridvla/model.h"

#include <stdlib.h>

#include "core/hybridvla/parts.h"
#include "core/nn/linear.h"
#include "core/tensor/nan_watch.h"

/* What a forward pass keeps for the backward pass, all in the caller's arena. */
struct hv_model_saved {
  hv_vit_saved towers[HV_MAX_TOWERS]; /* used if any tower is trained */
  bool towers_saved;
  hv_tensor features, image_tokens; /* T [B V P, vision width], [B V P, D] */
  hv_mlp_saved projector;
  hv_tensor state, noised, sinusoid; /* inputs of the three embedders, T */
  hv_mlp_saved state_mlp, x_mlp, timestep_mlp;
  hv_tensor *x;                             /* [layers]: what enters each decoder layer */
  hv_decoder_saved *layers;                 /* [layers] */
  hv_tensor last;                           /* T [branch rows, D]: what leaves the last one */
  hv_tensor heads, heads_norm, heads_stats; /* noise rows, then label rows, before and after the decoder's final norm */
  hv_noise_head_saved noise_head;
  hv_tensor dnoise_pred, dlogits; /* T */
};

struct hv_model {
  hv_model_parts parts;
  hv_recomputation recompute;
  struct hv_model_saved saved;
};

hv_status hv_model_open(const hv_config *config, hv_device *device, hv_dtype dtype, hv_model **out) {
  *out = NULL;
  hv_status status = HV_OK;
  hv_model *model = calloc(1, sizeof *model);
  if (!model) return hv_error_memory("the model");
  HV_CHECK(hv_model_parts_open(config, device, dtype, &model->parts));
  for (int32_t i = 0; i < config->num_towers; i++) {
    HV_CHECK(hv_vit_saved_open(&model->parts.towers[i], &model->saved.towers[i]));
  }
  size_t layers = (size_t)config->llm.num_hidden_layers;
  model->saved.x = calloc(layers, sizeof *model->saved.x);
  model->saved.layers = calloc(layers, sizeof *model->saved.layers);
  if (!model->saved.x || !model->saved.layers) {
    status = hv_error_memory("the model's activations");
    goto done;
  }
  *out = model;
  model = NULL;
done:
  hv_model_close(model);
  return status;
}

void hv_model_close(hv_model *model) {
  if (!model) return;
  for (int32_t i = 0; i < HV_MAX_TOWERS; i++) hv_vit_saved_close(&model->saved.towers[i]);
  free(model->saved.x);
  free(model->saved.layers);
  hv_model_parts_close(&model->parts);
  free(model);
}

const hv_config *hv_model_get_config(const hv_model *model) {
  return &model->parts.config;
}

hv_params *hv_model_params(hv_model *model) {
  return model->parts.params;
}

hv_device *hv_model_device(const hv_model *model) {
  return model->parts.device;
}

hv_model_parts *hv_model_get_parts(hv_model *model) {
  return &model->parts;
}

hv_status hv_model_prepare(hv_model *model, int64_t max_positions, int64_t max_images, hv_stream *stream) {
  return hv_model_parts_prepare(&model->parts, max_positions, max_images, stream);
}

void hv_model_set_recompute(hv_model *model, hv_recomputation recompute) {
  model->recompute = recompute;
}

static bool group_trainable(const hv_model_parts *parts, hv_group_id group) {
  return group >= 0 && hv_params_group(parts->params, group)->trainable;
}

static bool vision_trainable(const hv_model_parts *parts) {
  for (int32_t i = 0; i < parts->config.num_towers; i++) {
    const hv_vit *tower = &parts->towers[i];
    if (group_trainable(parts, tower->group)) return true;
    for (int32_t b = 0; b < tower->num_blocks; b++) {
      if (group_trainable(parts, tower->blocks[b].group)) return true;
    }
  }
  return false;
}

/* The first decoder layer that the backward pass must reach: 0 where anything in front of the decoder is trained. */
static int32_t first_trained_layer(const hv_model_parts *parts) {
  if (vision_trainable(parts) || group_trainable(parts, parts->projector_group) ||
      group_trainable(parts, parts->embed_group) || group_trainable(parts, parts->embedder_group)) {
    return 0;
  }
  int32_t i = 0;
  while (i < parts->config.llm.num_hidden_layers && !group_trainable(parts, parts->layers[i].group)) i++;
  return i;
}

static hv_tensor take(const hv_model_parts *parts, hv_arena *arena, int64_t rows, int64_t cols) {
  return hv_arena_take(arena, parts->dtype, rows, cols);
}

/* An F32 table of the batch in the dtype that an operation wants: itself, or a copy in the arena. */
static hv_tensor as_dtype(hv_tensor table, hv_dtype dtype, hv_arena *arena, hv_stream *stream) {
  if (table.dtype == dtype) return table;
  hv_tensor copy = hv_arena_take(arena, dtype, table.rows, table.cols);
  hv_convert(stream, &(hv_convert_args){.src = table, .dst = copy});
  return copy;
}

/* dst[dst_rows[i]] = src[i] */
static void place(hv_tensor src, hv_tensor dst, hv_tensor dst_rows, hv_stream *stream) {
  hv_gather_rows(stream, &(hv_gather_rows_args){.src = src, .dst = dst, .dst_rows = dst_rows, .count = dst_rows.cols});
}

/* dst[i] = src[src_rows[i]] */
static void pick(hv_tensor src, hv_tensor src_rows, hv_tensor dst, hv_stream *stream) {
  hv_gather_rows(stream, &(hv_gather_rows_args){.src = src, .src_rows = src_rows, .dst = dst, .count = src_rows.cols});
}

/* Pixels to tokens in the decoder's width. */
static void encode_vision(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_tables *tables,
                          bool training, hv_arena *arena, hv_stream *stream) {
  int64_t tokens = tables->image_rows.cols;
  saved->features = take(parts, arena, tokens, hv_config_vision_width(&parts->config));
  saved->image_tokens = take(parts, arena, tokens, parts->config.llm.hidden_size);
  saved->towers_saved = training && vision_trainable(parts);
  hv_model_encode_images(parts, tables->images, saved->features, saved->towers_saved ? saved->towers : NULL, arena,
                         stream);
  hv_params_use(parts->params, parts->projector_group, stream);
  hv_mlp_take_saved(&parts->projector, arena, parts->dtype, tokens, training, &saved->projector);
  hv_mlp_forward(&parts->projector, parts->params, saved->features, &saved->projector, saved->image_tokens, stream);
  hv_params_done(parts->params, parts->projector_group, stream);
}

/* The embedded state, noised actions and timesteps, each to its rows of x. */
static void embed_continuous(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_counts *counts,
                             const hv_sequence_tables *tables, bool training, hv_tensor x, hv_arena *arena,
                             hv_stream *stream) {
  const hv_config *config = &parts->config;
  int64_t hidden = config->llm.hidden_size;
  hv_params_use(parts->params, parts->embedder_group, stream);
  if (config->state_dim > 0) {
    saved->state = as_dtype(tables->state, parts->dtype, arena, stream);
    hv_tensor embedded = take(parts, arena, counts->samples, hidden);
    hv_mlp_take_saved(&parts->state_embedder, arena, parts->dtype, counts->samples, training, &saved->state_mlp);
    hv_mlp_forward(&parts->state_embedder, parts->params, saved->state, &saved->state_mlp, embedded, stream);
    place(embedded, x, tables->state_rows, stream);
  }
  if (hv_config_has_diffusion(config)) {
    int64_t draws = tables->timesteps.cols;
    saved->noised = take(parts, arena, draws, tables->noise.cols);
    hv_q_sample(stream, &(hv_q_sample_args){.actions = as_dtype(tables->actions, parts->real, arena, stream),
                                            .noise = as_dtype(tables->noise, parts->real, arena, stream),
                                            .timesteps = tables->timesteps,
                                            .alpha_bar = parts->alpha_bar,
                                            .branches = counts->branches,
                                            .y = saved->noised});
    saved->noised = hv_tensor_reshape(saved->noised, counts->noise_rows, config->action_dim);
    hv_tensor embedded = take(parts, arena, counts->noise_rows, hidden);
    hv_mlp_take_saved(&parts->x_embedder, arena, parts->dtype, counts->noise_rows, training, &saved->x_mlp);
    hv_mlp_forward(&parts->x_embedder, parts->params, saved->noised, &saved->x_mlp, embedded, stream);
    place(embedded, x, tables->x_rows, stream);

    saved->sinusoid = take(parts, arena, draws, HV_TIMESTEP_FEATURES);
    hv_tensor embedded_timesteps = take(parts, arena, draws, hidden);
    hv_mlp_take_saved(&parts->timestep_embedder, arena, parts->dtype, draws, training, &saved->timestep_mlp);
    hv_model_embed_timesteps(parts, tables->timesteps, saved->sinusoid, &saved->timestep_mlp, embedded_timesteps,
                             stream);
    place(embedded_timesteps, x, tables->timestep_rows, stream);
  }
  hv_params_done(parts->params, parts->embedder_group, stream);
}

/* The packed token rows [rows, D] that enter the decoder. */
static hv_tensor embed_sequence(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_counts *counts,
                                const hv_sequence_tables *tables, bool training, hv_arena *arena, hv_stream *stream) {
  hv_tensor x = take(parts, arena, counts->rows, parts->config.llm.hidden_size);
  hv_params_use(parts->params, parts->embed_group, stream);
  hv_gather_rows(stream, &(hv_gather_rows_args){.src = hv_param_value(parts->params, parts->embed_tokens),
                                                .src_rows = tables->text_ids,
                                                .dst = x,
                                                .dst_rows = tables->text_rows,
                                                .count = tables->text_ids.cols});
  hv_params_done(parts->params, parts->embed_group, stream);
  place(saved->image_tokens, x, tables->image_rows, stream);
  embed_continuous(parts, saved, counts, tables, training, x, arena, stream);
  return x;
}

/* The attention tables of a layer: in the last one, only branch tokens are queries. */
static hv_decoder_rows decoder_rows(const hv_model_parts *parts, const hv_sequence_counts *counts,
                                    const hv_sequence_tables *tables, bool last) {
  hv_decoder_rows rows = {
      .positions = tables->positions,
      .cos_sin = parts->cos_sin,
      .segments = tables->segments,
      .key_groups = tables->key_groups,
      .max_q_rows = counts->max_segment_rows,
      .max_key_rows = counts->max_key_rows,
      .max_group_rows = counts->max_segment_rows,
  };
  if (!last) return rows;
  rows.query_rows = tables->branch_rows;
  rows.query_positions = tables->branch_positions;
  rows.identity = tables->identity;
  rows.segments = tables->branch_segments;
  rows.key_groups = tables->branch_key_groups;
  rows.max_q_rows = counts->max_branch_rows;
  return rows;
}

/* How many rows leave a layer. */
static int64_t layer_rows(const hv_sequence_counts *counts, bool last) {
  return last ? counts->branch_rows : counts->rows;
}

static hv_recompute layer_recompute(const hv_model_parts *parts, hv_recomputation recompute, int32_t layer) {
  bool last = layer + 1 == parts->config.llm.num_hidden_layers;
  bool kept = last || (recompute.layers > 0 && layer >= recompute.layers);
  return kept ? HV_RECOMPUTE_NONE : recompute.level;
}

static void run_decoder(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_counts *counts,
                        const hv_sequence_tables *tables, bool training, hv_recomputation recompute, hv_tensor x,
                        hv_arena *arena, hv_stream *stream) {
  const hv_llm_config *llm = &parts->config.llm;
  saved->last = take(parts, arena, counts->branch_rows, llm->hidden_size);
  for (int32_t i = 0; i < llm->num_hidden_layers; i++) {
    bool last = i + 1 == llm->num_hidden_layers;
    hv_decoder_rows rows = decoder_rows(parts, counts, tables, last);
    hv_tensor y = saved->last;
    /* Without a backward pass all layers share one scratch, and each overwrites its input. */
    if (!last) y = training ? take(parts, arena, counts->rows, llm->hidden_size) : x;
    int64_t leaving = layer_rows(counts, last);
    hv_recompute level = layer_recompute(parts, recompute, i);
    hv_decoder_saved *layer = &saved->layers[i];
    if (training) hv_decoder_take_kept(llm, arena, parts->dtype, counts->rows, leaving, level, layer);
    size_t mark = hv_arena_mark(arena);
    if (training) {
      hv_decoder_take_rest(llm, arena, parts->dtype, counts->rows, leaving, level, layer);
    } else {
      hv_decoder_take_saved(llm, arena, parts->dtype, counts->rows, leaving, false, layer);
    }
    saved->x[i] = x;
    hv_decoder_layer_forward(llm, &parts->layers[i], parts->params, &rows, NULL, x, layer, y, stream);
    hv_arena_release(arena, mark);
    x = y;
  }
}

/* The decoder's final norm on the rows that a head reads: noise rows, then label rows. */
static void norm_head_rows(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_counts *counts,
                           const hv_sequence_tables *tables, bool training, hv_arena *arena, hv_stream *stream) {
  int64_t rows = counts->noise_rows + counts->label_rows, hidden = parts->config.llm.hidden_size;
  saved->heads = take(parts, arena, rows, hidden);
  saved->heads_norm = take(parts, arena, rows, hidden);
  saved->heads_stats = training ? hv_arena_take(arena, parts->real, rows, 2) : (hv_tensor){0};
  if (counts->noise_rows) {
    pick(saved->last, tables->noise_rows, hv_tensor_rows(saved->heads, 0, counts->noise_rows), stream);
  }
  if (counts->label_rows) {
    pick(saved->last, tables->label_rows, hv_tensor_rows(saved->heads, counts->noise_rows, counts->label_rows), stream);
  }
  hv_norm(stream, &(hv_norm_args){.kind = HV_NORM_RMS,
                                  .eps = parts->config.llm.rms_norm_eps,
                                  .x = saved->heads,
                                  .weight = hv_param_value(parts->params, parts->llm_norm),
                                  .y = saved->heads_norm,
                                  .stats = saved->heads_stats});
}

/* Memory for a loss's gradient, in T: the prediction's own, if `in_place` and if it is T. */
static hv_tensor gradient_of(const hv_model_parts *parts, hv_tensor prediction, bool in_place, hv_arena *arena) {
  if (in_place && prediction.dtype == parts->dtype) return prediction;
  return take(parts, arena, prediction.rows, prediction.cols);
}

/* Names the group for the NaN watch, for operations between use and done of another group. */
static void watch_as(const hv_model_parts *parts, hv_group_id group) {
  hv_nan_watch_layer(parts->device, hv_params_group(parts->params, group)->name);
}

static void diffusion_head(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_counts *counts,
                           const hv_sequence_tables *tables, const hv_loss_weights *weights, bool training,
                           hv_arena *arena, hv_stream *stream, hv_model_activations *out) {
  out->noise_pred = hv_arena_take(arena, parts->real, counts->noise_rows, parts->config.action_dim);
  hv_model_take_noise_head(parts, arena, counts->noise_rows, training, &saved->noise_head);
  hv_model_noise_head(parts, hv_tensor_rows(saved->heads_norm, 0, counts->noise_rows), &saved->noise_head,
                      out->noise_pred, stream);
  watch_as(parts, parts->final_group);
  if (training) saved->dnoise_pred = gradient_of(parts, out->noise_pred, false, arena);
  hv_tensor noise = as_dtype(tables->noise, parts->real, arena, stream);
  hv_diffusion_loss(
      stream, &(hv_diffusion_loss_args){.pred = out->noise_pred,
                                        .noise = hv_tensor_reshape(noise, counts->noise_rows, parts->config.action_dim),
                                        .mask = tables->noise_mask,
                                        .divisor = tables->diffusion_divisor,
                                        .weight = weights->diffusion,
                                        .loss = out->loss_diffusion,
                                        .dpred = saved->dnoise_pred});
  watch_as(parts, parts->head_group);
}

static void vocabulary_head(hv_model_parts *parts, struct hv_model_saved *saved, const hv_sequence_counts *counts,
                            const hv_sequence_tables *tables, const hv_loss_weights *weights, bool training,
                            hv_arena *arena, hv_stream *stream, hv_model_activations *out) {
  out->logits = hv_arena_take(arena, parts->real, counts->label_rows, parts->config.llm.vocab_size);
  hv_linear(stream, &(hv_linear_args){.x = hv_tensor_rows(saved->heads_norm, counts->noise_rows, counts->label_rows),
                                      .weight = hv_param_value(parts->params, parts->lm_head),
                                      .y = out->logits});
  if (training) saved->dlogits = gradient_of(parts, out->logits, true, arena);
  hv_cross_entropy(stream, &(hv_cross_entropy_args){.logits = out->logits,
                                                    .labels = tables->labels,
                                                    .divisor = tables->label_divisor,
                                                    .weight = weights->ce,
                                                    .loss = out->loss_ce,
                                                    .dlogits = saved->dlogits});
}

void hv_model_forward(hv_model *model, const hv_sequence *sequence, const hv_loss_weights *weights, bool training,
                      hv_arena *arena, hv_stream *stream, hv_model_activations *out) {
  hv_model_parts *parts = &model->parts;
  struct hv_model_saved *saved = &model->saved;
  const hv_sequence_counts *counts = hv_sequence_get_counts(sequence);
  const hv_sequence_tables *tables = hv_sequence_get_tables(sequence);
  hv_nan_watch_pass(parts->device, "forward");
  saved->dnoise_pred = saved->dlogits = (hv_tensor){0};

  hv_tensor losses = hv_arena_take(arena, parts->real, 1, 2);
  hv_fill(stream, &(hv_fill_args){.dst = losses});
  *out = (hv_model_activations){
      .loss_diffusion = hv_tensor_cols(losses, 0, 1), .loss_ce = hv_tensor_cols(losses, 1, 1), .saved = saved};

  encode_vision(parts, saved, tables, training, arena, stream);
  hv_tensor x = embed_sequence(parts, saved, counts, tables, training, arena, stream);
  run_decoder(parts, saved, counts, tables, training, model->recompute, x, arena, stream);
  hv_params_use(parts->params, parts->head_group, stream);
  norm_head_rows(parts, saved, counts, tables, training, arena, stream);
  if (counts->noise_rows) {
    diffusion_head(parts, saved, counts, tables, weights, training, arena, stream, out);
  }
  if (counts->label_rows) {
    vocabulary_head(parts, saved, counts, tables, weights, training, arena, stream, out);
  }
  hv_params_done(parts->params, parts->head_group, stream);
  out->vision_features = saved->features;
  out->image_tokens = saved->image_tokens;
}

/* dlast [branch rows, D] from the two losses' gradients, through the heads and the decoder's final norm. */
static void heads_backward(hv_model_parts *parts, const struct hv_model_saved *saved, const hv_sequence_counts *counts,
                           const hv_sequence_tables *tables, hv_tensor dlast, hv_arena *arena, hv_stream *stream) {
  hv_params *params = parts->params;
  size_t mark = hv_arena_mark(arena);
  int64_t hidden = parts->config.llm.hidden_size;
  hv_tensor dnorm = take(parts, arena, saved->heads.rows, hidden);
  if (counts->noise_rows) {
    hv_params_use(params, parts->final_group, stream);
    hv_tensor dfinal = take(parts, arena, counts->noise_rows, hidden);
    hv_mlp_backward(&parts->final_mlp, params, saved->noise_head.norm, &saved->noise_head.mlp, saved->dnoise_pred,
                    dfinal, arena, stream);
    hv_norm_backward(stream, &(hv_norm_backward_args){.kind = parts->config.final_norm,
                                                      .dy = dfinal,
                                                      .x = hv_tensor_rows(saved->heads_norm, 0, counts->noise_rows),
                                                      .weight = hv_param_value(params, parts->final_norm),
                                                      .stats = saved->noise_head.stats,
                                                      .dx = hv_tensor_rows(dnorm, 0, counts->noise_rows),
                                                      .dweight = hv_param_gradient(params, parts->final_norm)});
    hv_params_gradients_ready(params, parts->final_group, stream);
    hv_params_done(params, parts->final_group, stream);
  }
  hv_params_use(params, parts->head_group, stream);
  if (counts->label_rows) {
    hv_param_linear_gradients(params, parts->lm_head, 1, -1, saved->dlogits,
                              hv_tensor_rows(saved->heads_norm, counts->noise_rows, counts->label_rows), stream);
    hv_linear_backward_input(
        stream, &(hv_linear_backward_input_args){.dy = saved->dlogits,
                                                 .weight = hv_param_value(params, parts->lm_head),
                                                 .dx = hv_tensor_rows(dnorm, counts->noise_rows, counts->label_rows)});
  }
  hv_tensor dheads = take(parts, arena, saved->heads.rows, hidden);
  hv_norm_backward(stream, &(hv_norm_backward_args){.kind = HV_NORM_RMS,
                                                    .dy = dnorm,
                                                    .x = saved->heads,
                                                    .weight = hv_param_value(params, parts->llm_norm),
                                                    .stats = saved->heads_stats,
                                                    .dx = dheads,
                                                    .dweight = hv_param_gradient(params, parts->llm_norm)});
  hv_params_gradients_ready(params, parts->head_group, stream);
  hv_params_done(params, parts->head_group, stream);

  hv_fill(stream, &(hv_fill_args){.dst = dlast});
  if (counts->noise_rows) {
    place(hv_tensor_rows(dheads, 0, counts->noise_rows), dlast, tables->noise_rows, stream);
  }
  if (counts->label_rows) {
    place(hv_tensor_rows(dheads, counts->noise_rows, counts->label_rows), dlast, tables->label_rows, stream);
  }
  hv_arena_release(arena, mark);
}

/* Parameter gradients of the state, action and timestep embedders, from dx of the packed rows. */
static void embedders_backward(hv_model_parts *parts, const struct hv_model_saved *saved,
                               const hv_sequence_tables *tables, hv_tensor dx, hv_arena *arena, hv_stream *stream) {
  if (!group_trainable(parts, parts->embedder_group)) return;
  struct {
    const hv_mlp *mlp;
    hv_tensor input;
    const hv_mlp_saved *saved;
    hv_tensor rows;
  } const embedders[] = {
      {&parts->timestep_embedder, saved->sinusoid, &saved->timestep_mlp, tables->timestep_rows},
      {&parts->x_embedder, saved->noised, &saved->x_mlp, tables->x_rows},
      {&parts->state_embedder, saved->state, &saved->state_mlp, tables->state_rows},
  };
  hv_params_use(parts->params, parts->embedder_group, stream);
  for (size_t i = 0; i < sizeof embedders / sizeof embedders[0]; i++) {
    if (embedders[i].mlp->layers == 0) continue;
    size_t mark = hv_arena_mark(arena);
    hv_tensor dy = take(parts, arena, embedders[i].rows.cols, dx.cols);
    pick(dx, embedders[i].rows, dy, stream);
    hv_mlp_backward(embedders[i].mlp, parts->params, embedders[i].input, embedders[i].saved, dy, (hv_tensor){0}, arena,
                    stream);
    hv_arena_release(arena, mark);
  }
  hv_params_gradients_ready(parts->params, parts->embedder_group, stream);
  hv_params_done(parts->params, parts->embedder_group, stream);
}

static void embed_tokens_backward(hv_model_parts *parts, const hv_sequence_tables *tables, hv_tensor dx,
                                  hv_stream *stream) {
  if (!group_trainable(parts, parts->embed_group)) return;
  hv_params_use(parts->params, parts->embed_group, stream);
  hv_scatter_add_rows(stream,
                      &(hv_scatter_add_rows_args){.src = dx,
                                                  .src_rows = tables->text_sorted_rows,
                                                  .offsets = tables->text_offsets,
                                                  .dst_rows = tables->text_unique,
                                                  .dst = hv_param_gradient(parts->params, parts->embed_tokens)});
  hv_params_gradients_ready(parts->params, parts->embed_group, stream);
  hv_params_done(parts->params, parts->embed_group, stream);
}

static void vision_backward(hv_model_parts *parts, const struct hv_model_saved *saved, const hv_sequence_tables *tables,
                            hv_tensor dx, hv_arena *arena, hv_stream *stream) {
  if (!saved->towers_saved && !group_trainable(parts, parts->projector_group)) return;
  hv_params_use(parts->params, parts->projector_group, stream);
  size_t mark = hv_arena_mark(arena);
  hv_tensor dtokens = take(parts, arena, tables->image_rows.cols, dx.cols);
  pick(dx, tables->image_rows, dtokens, stream);
  hv_tensor dfeatures = {0};
  if (saved->towers_saved) dfeatures = take(parts, arena, saved->features.rows, saved->features.cols);
  hv_mlp_backward(&parts->projector, parts->params, saved->features, &saved->projector, dtokens, dfeatures, arena,
                  stream);
  hv_params_gradients_ready(parts->params, parts->projector_group, stream);
  hv_params_done(parts->params, parts->projector_group, stream);
  int64_t column = 0;
  for (int32_t i = 0; saved->towers_saved && i < parts->config.num_towers; i++) {
    hv_vit_tables vit_tables = hv_model_vit_tables(parts, i, tables->images.rows);
    int64_t width = parts->config.vision[i].width;
    hv_vit_backward(&parts->towers[i], parts->params, tables->images.rows, &vit_tables,
                    hv_tensor_cols(dfeatures, column, width), &saved->towers[i], arena, stream);
    column += width;
  }
  hv_arena_release(arena, mark);
}

void hv_model_backward(hv_model *model, const hv_sequence *sequence, const hv_model_activations *activations,
                       hv_arena *arena, hv_stream *stream) {
  hv_model_parts *parts = &model->parts;
  const struct hv_model_saved *saved = activations->saved;
  const hv_sequence_counts *counts = hv_sequence_get_counts(sequence);
  const hv_sequence_tables *tables = hv_sequence_get_tables(sequence);
  const hv_llm_config *llm = &parts->config.llm;
  size_t mark = hv_arena_mark(arena);
  hv_nan_watch_pass(parts->device, "backward");

  hv_tensor dlast = take(parts, arena, counts->branch_rows, llm->hidden_size);
  heads_backward(parts, saved, counts, tables, dlast, arena, stream);

  hv_tensor dx = take(parts, arena, counts->rows, llm->hidden_size);
  int32_t first = first_trained_layer(parts);
  for (int32_t i = llm->num_hidden_layers - 1; i >= first; i--) {
    bool last = i + 1 == llm->num_hidden_layers;
    hv_decoder_rows rows = decoder_rows(parts, counts, tables, last);
    hv_recompute level = layer_recompute(parts, model->recompute, i);
    hv_decoder_saved layer = saved->layers[i];
    size_t layer_mark = hv_arena_mark(arena);
    hv_decoder_take_rest(llm, arena, parts->dtype, counts->rows, layer_rows(counts, last), level, &layer);
    hv_decoder_layer_backward(llm, &parts->layers[i], parts->params, &rows, saved->x[i], level, &layer,
                              last ? dlast : dx, dx, arena, stream);
    hv_arena_release(arena, layer_mark);
  }
  if (first == 0) {
    embedders_backward(parts, saved, tables, dx, arena, stream);
    embed_tokens_backward(parts, tables, dx, stream);
    vision_backward(parts, saved, tables, dx, arena, stream);
  }
  hv_arena_release(arena, mark);
}

hv_status hv_model_plan_step(const hv_model_step *step, size_t *arena_bytes, hv_plan_counts *counts) {
  hv_status status = HV_OK;
  hv_device *plan = NULL;
  hv_stream *stream = NULL;
  hv_model *model = NULL;
  hv_sequence *sequence = NULL;
  HV_CHECK(hv_plan_device_open(&plan));
  HV_CHECK(hv_stream_open(plan, &stream));
  HV_CHECK(hv_model_open(step->config, plan, step->dtype, &model));
  HV_CHECK(hv_params_freeze(hv_model_params(model), step->frozen, step->frozen_count));
  HV_CHECK(hv_params_allocate(hv_model_params(model)));
  if (step->training) HV_CHECK(hv_params_allocate_gradients(hv_model_params(model), step->gradients));
  HV_CHECK(hv_sequence_open(step->config, plan, &step->limits, &sequence));
  hv_sequence_build_largest(sequence);
  const hv_sequence_counts *largest = hv_sequence_get_counts(sequence);
  HV_CHECK(hv_model_prepare(model, largest->max_key_rows, largest->images, stream));
  hv_plan_device_reset(plan);

  hv_arena arena = hv_arena_for_plan(plan);
  hv_model_activations activations;
  hv_loss_weights weights = {.diffusion = 1, .ce = 1};
  hv_model_set_recompute(model, step->recompute);
  hv_sequence_upload(sequence, stream);
  hv_sequence_use(sequence, stream);
  hv_model_forward(model, sequence, &weights, step->training, &arena, stream, &activations);
  if (step->training) hv_model_backward(model, sequence, &activations, &arena, stream);
  hv_sequence_done(sequence, stream);
  HV_CHECK(hv_stream_synchronize(stream));
  HV_CHECK(hv_params_order_status(hv_model_params(model)));
  *arena_bytes = arena.peak;
  if (counts) hv_plan_device_counts(plan, counts);
done:
  hv_sequence_close(sequence);
  hv_model_close(model);
  hv_stream_close(stream);
  hv_device_close(plan);
  return status;
}
