#include "core/hybridvla/policy_state.h"

/* dst rows = table[ids] */
static void embed_ids(hv_stream *stream, hv_tensor table, hv_tensor ids, hv_tensor dst, hv_tensor dst_rows) {
  hv_gather_rows(stream, &(hv_gather_rows_args){
                             .src = table, .src_rows = ids, .dst = dst, .dst_rows = dst_rows, .count = ids.cols});
}

static void embed_words(hv_policy *policy, hv_tensor ids, hv_tensor dst, hv_tensor dst_rows) {
  hv_model_parts *parts = policy->parts;
  hv_params_use(parts->params, parts->embed_group, policy->stream);
  embed_ids(policy->stream, hv_param_value(parts->params, parts->embed_tokens), ids, dst, dst_rows);
  hv_params_done(parts->params, parts->embed_group, policy->stream);
}

static void run_mlp(hv_policy *policy, const hv_mlp *mlp, hv_group_id group, hv_tensor x, hv_tensor y) {
  hv_model_parts *parts = policy->parts;
  size_t mark = hv_arena_mark(&policy->scratch);
  hv_mlp_saved saved;
  hv_mlp_take_saved(mlp, &policy->scratch, parts->dtype, x.rows, false, &saved);
  hv_params_use(parts->params, group, policy->stream);
  hv_mlp_forward(mlp, parts->params, x, &saved, y, policy->stream);
  hv_params_done(parts->params, group, policy->stream);
  hv_arena_release(&policy->scratch, mark);
}

void hv_policy_run_tower(hv_policy *policy, int32_t tower, hv_arena *scratch, hv_stream *stream) {
  const hv_config *config = &policy->parts->config;
  int64_t side = config->vision[0].image_size;
  hv_tensor images = hv_policy_in_block(policy, policy->at.images, HV_U8, config->num_cameras, side * side * 3);
  hv_model_run_tower(policy->parts, tower, images, policy->features, NULL, scratch, stream);
}

void hv_policy_project_images(hv_policy *policy) {
  hv_model_parts *parts = policy->parts;
  run_mlp(policy, &parts->projector, parts->projector_group, policy->features,
          hv_tensor_rows(policy->rows_a, 1, policy->features.rows));
}

/* Embeds the rest of the prefix: text tokens and the state. */
static void embed_prefix(hv_policy *policy, const hv_pass *pass) {
  hv_model_parts *parts = policy->parts;
  const hv_config *config = &parts->config;
  int32_t state_rows = config->state_dim ? 1 : 0;
  int64_t words = pass->prefix_rows - hv_policy_image_rows(config) - state_rows;
  embed_words(policy, hv_policy_in_block(policy, policy->at.text_ids, HV_I32, 1, words), policy->rows_a,
              hv_policy_in_block(policy, policy->at.text_rows, HV_I32, 1, words));
  if (!state_rows) return;
  size_t mark = hv_arena_mark(&policy->scratch);
  hv_tensor state = hv_arena_take(&policy->scratch, parts->dtype, 1, config->state_dim);
  hv_convert(policy->stream,
             &(hv_convert_args){.src = hv_policy_in_block(policy, policy->at.state, HV_F32, 1, config->state_dim),
                                .dst = state});
  run_mlp(policy, &parts->state_embedder, parts->embedder_group, state,
          hv_tensor_rows(policy->rows_a, pass->prefix_rows - 1, 1));
  hv_arena_release(&policy->scratch, mark);
}

/* t | x_1 … x_H at `row`; `timestep` is a view into the tables or the block. */
static void embed_condition(hv_policy *policy, int64_t row, hv_tensor timestep, hv_tensor x) {
  hv_model_parts *parts = policy->parts;
  hv_tensor none = {0};
  embed_ids(policy->stream, policy->timestep_table, timestep, hv_tensor_rows(policy->rows_a, row, 1), none);
  run_mlp(policy, &parts->x_embedder, parts->embedder_group, x, hv_tensor_rows(policy->rows_a, row + 1, x.rows));
}

static void embed_denoising(hv_policy *policy, const hv_pass *pass) {
  size_t timestep = (size_t)policy->stages[pass->stage].timestep * sizeof(int32_t);
  embed_condition(policy, hv_pass_denoise_row(pass),
                  hv_policy_in_block(policy, policy->at.all_timesteps + timestep, HV_I32, 1, 1), policy->x_cast);
}

/* The rows of the embedding table or the vocabulary head that are action tokens. */
static hv_tensor action_rows(const hv_policy *policy, hv_param_id table) {
  const hv_config *config = &policy->parts->config;
  return hv_tensor_rows(hv_param_value(policy->parts->params, table), config->action_base - config->action_bins,
                        config->action_bins);
}

static void embed_decoding(hv_policy *policy, const hv_pass *pass) {
  const hv_config *config = &policy->parts->config;
  int64_t row = hv_pass_decode_row(pass);
  hv_tensor none = {0};
  if (pass->token > 0) {
    hv_tensor before = hv_policy_in_block(policy, policy->at.ids, HV_I32, 1, policy->shape.tokens);
    hv_params_use(policy->parts->params, policy->parts->embed_group, policy->stream);
    embed_ids(policy->stream, action_rows(policy, policy->parts->embed_tokens),
              hv_tensor_cols(before, pass->token - 1, 1), hv_tensor_rows(policy->rows_a, row, 1), none);
    hv_params_done(policy->parts->params, policy->parts->embed_group, policy->stream);
    return;
  }
  if (policy->shape.condition_rows) {
    size_t mark = hv_arena_mark(&policy->scratch);
    hv_tensor x = policy->x_cast;
    if (policy->options.ar_condition != HV_AR_DENOISED) {
      x = hv_arena_take(&policy->scratch, policy->parts->dtype, config->action_chunk, config->action_dim);
      hv_convert(policy->stream, &(hv_convert_args){.src = hv_policy_action(policy, policy->at.ar_noise), .dst = x});
    }
    embed_condition(policy, row, hv_policy_in_block(policy, policy->at.ar_timestep, HV_I32, 1, 1), x);
    hv_arena_release(&policy->scratch, mark);
  }
  int32_t markers = policy->shape.marker_rows;
  embed_words(policy, hv_policy_in_block(policy, policy->at.markers, HV_I32, 1, markers),
              hv_tensor_rows(policy->rows_a, row + policy->shape.condition_rows, markers), none);
}

/* All layers and the final norm: the rows that leave the pass, [out_rows, D] in the scratch arena. */
static hv_tensor run_layers(hv_policy *policy, const hv_pass *pass) {
  hv_model_parts *parts = policy->parts;
  const hv_llm_config *llm = &parts->config.llm;
  hv_tensor out = hv_arena_take(&policy->scratch, parts->dtype, pass->out_rows, llm->hidden_size);
  hv_decoder_rows rows = {
      .positions = hv_policy_in_tables(policy, pass->positions, 1, pass->rows),
      .cos_sin = parts->cos_sin,
      .segments =
          hv_policy_in_tables(policy, pass->segment_table, pass->segments, sizeof(hv_segment) / sizeof(int32_t)),
      .max_q_rows = pass->max_q_rows,
      .max_key_rows = pass->max_key_rows,
      .cache_rows = hv_policy_in_tables(policy, pass->cache_rows, 1, pass->rows),
  };
  hv_tensor x = hv_tensor_rows(policy->rows_a, 0, pass->rows), y = hv_tensor_rows(policy->rows_b, 0, pass->rows);
  for (int32_t i = 0; i < llm->num_hidden_layers; i++) {
    if (i + 1 == llm->num_hidden_layers && pass->out_rows < pass->rows) {
      rows.query_rows = hv_policy_in_tables(policy, pass->query_rows, 1, pass->out_rows);
      rows.query_positions = hv_policy_in_tables(policy, pass->query_positions, 1, pass->out_rows);
      rows.segments.data = hv_policy_in_tables(policy, pass->out_segment_table, 1, 1).data;
      rows.segments.rows = pass->out_segments;
      rows.max_q_rows = pass->stage >= 0 ? policy->shape.horizon : 1;
      y = hv_tensor_rows(y, 0, pass->out_rows);
    }
    size_t mark = hv_arena_mark(&policy->scratch);
    hv_decoder_saved saved;
    hv_decoder_take_saved(llm, &policy->scratch, parts->dtype, x.rows, y.rows, false, &saved);
    hv_decoder_layer_forward(llm, &parts->layers[i], parts->params, &rows, &policy->cache[i], x, &saved, y,
                             policy->stream);
    hv_arena_release(&policy->scratch, mark);
    hv_tensor swap = x;
    x = y;
    y = swap;
  }
  hv_params_use(parts->params, parts->head_group, policy->stream);
  hv_norm(policy->stream, &(hv_norm_args){.kind = HV_NORM_RMS,
                                          .eps = llm->rms_norm_eps,
                                          .x = x,
                                          .weight = hv_param_value(parts->params, parts->llm_norm),
                                          .y = out});
  hv_params_done(parts->params, parts->head_group, policy->stream);
  return out;
}

/* One step of the sampler from the hidden states of x_1 … x_H. */
static void denoise(hv_policy *policy, const hv_pass *pass, hv_tensor hidden) {
  hv_model_parts *parts = policy->parts;
  const hv_config *config = &parts->config;
  hv_tensor eps = hv_arena_take(&policy->scratch, parts->real, config->action_chunk, config->action_dim);
  hv_noise_head_saved saved;
  hv_model_take_noise_head(parts, &policy->scratch, hidden.rows, false, &saved);
  hv_model_noise_head(parts, hidden, &saved, eps, policy->stream);
  size_t step = (size_t)policy->stages[pass->stage].timestep * (size_t)policy->shape.tokens * sizeof(float);
  bool ddpm = policy->options.sampler == HV_SAMPLER_DDPM;
  hv_sampler_step(
      policy->stream,
      &(hv_sampler_step_args){
          .eps = eps,
          .noise = ddpm ? hv_policy_action(policy, policy->at.step_noise + step) : (hv_tensor){0},
          .coefficients = hv_tensor_rows(
              hv_policy_in_block(policy, policy->at.coefficients, HV_F32, policy->num_stages, 3), pass->stage, 1),
          .x = hv_policy_action(policy, policy->at.x),
          .x_cast = policy->x_cast});
}

/* The probability of every decoded token among all words, in one product: choosing a token needs the action rows of the
 * head alone, so the rest of it is read once and not once a token. */
static void rate_tokens(hv_policy *policy) {
  hv_model_parts *parts = policy->parts;
  const hv_config *config = &parts->config;
  int64_t tokens = policy->shape.tokens;
  hv_tensor logits = hv_arena_take(&policy->scratch, parts->real, tokens, config->llm.vocab_size);
  hv_linear(policy->stream, &(hv_linear_args){.x = policy->token_states,
                                              .weight = hv_param_value(parts->params, parts->lm_head),
                                              .y = logits});
  hv_best_of_range(policy->stream, &(hv_best_of_range_args){.logits = logits,
                                                            .first = config->action_base - config->action_bins,
                                                            .count = config->action_bins,
                                                            .ids = hv_arena_take(&policy->scratch, HV_I32, 1, tokens),
                                                            .probability = hv_policy_in_block(
                                                                policy, policy->at.probabilities, HV_F32, 1, tokens)});
}

/* One action token, counted from the first of them, from the hidden state [1, D] before it. */
static void decode(hv_policy *policy, const hv_pass *pass, hv_tensor hidden) {
  hv_model_parts *parts = policy->parts;
  hv_tensor weight = action_rows(policy, parts->lm_head);
  hv_tensor logits = hv_arena_take(&policy->scratch, parts->real, 1, weight.rows);
  hv_params_use(parts->params, parts->head_group, policy->stream);
  hv_linear(policy->stream, &(hv_linear_args){.x = hidden, .weight = weight, .y = logits});
  hv_tensor ids = hv_policy_in_block(policy, policy->at.ids, HV_I32, 1, policy->shape.tokens);
  hv_best_of_range(policy->stream,
                   &(hv_best_of_range_args){.logits = logits,
                                            .first = 0,
                                            .count = (int32_t)weight.rows,
                                            .ids = hv_tensor_cols(ids, pass->token, 1),
                                            .probability = hv_arena_take(&policy->scratch, HV_F32, 1, 1)});
  hv_convert(policy->stream,
             &(hv_convert_args){.src = hidden, .dst = hv_tensor_rows(policy->token_states, pass->token, 1)});
  if (pass->token + 1 == policy->shape.tokens) rate_tokens(policy);
  hv_params_done(parts->params, parts->head_group, policy->stream);
}

void hv_policy_run_pass(hv_policy *policy, const hv_pass *pass) {
  size_t mark = hv_arena_mark(&policy->scratch);
  if (pass->prefill) embed_prefix(policy, pass);
  if (pass->stage >= 0) embed_denoising(policy, pass);
  if (pass->token >= 0) embed_decoding(policy, pass);
  hv_tensor hidden = run_layers(policy, pass);
  if (pass->stage >= 0) denoise(policy, pass, hv_tensor_rows(hidden, 0, policy->shape.horizon));
  if (pass->token >= 0) decode(policy, pass, hv_tensor_rows(hidden, pass->out_rows - 1, 1));
  hv_arena_release(&policy->scratch, mark);
}

void hv_policy_embed_timesteps(hv_policy *policy) {
  hv_model_parts *parts = policy->parts;
  int32_t steps = parts->config.diffusion_steps;
  size_t mark = hv_arena_mark(&policy->scratch);
  hv_tensor sinusoid = hv_arena_take(&policy->scratch, parts->dtype, steps, HV_TIMESTEP_FEATURES);
  hv_mlp_saved saved;
  hv_mlp_take_saved(&parts->timestep_embedder, &policy->scratch, parts->dtype, steps, false, &saved);
  hv_tensor timesteps = hv_policy_in_block(policy, policy->at.all_timesteps, HV_I32, 1, steps);
  hv_params_use(parts->params, parts->embedder_group, policy->stream);
  hv_model_embed_timesteps(parts, timesteps, sinusoid, &saved, policy->timestep_table, policy->stream);
  hv_params_done(parts->params, parts->embedder_group, policy->stream);
  hv_arena_release(&policy->scratch, mark);
}
