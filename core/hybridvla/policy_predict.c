#include <math.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/hybridvla/action_tokens.h"
#include "core/hybridvla/policy_state.h"
#include "core/tensor/plan.h"

static hv_status check_finite(const float *values, int64_t count, const char *what) {
  for (int64_t i = 0; i < count; i++)
    if (!isfinite(values[i]))
      return hv_error(HV_ERR_INPUT, "%s must be finite, but value %lld is %g", what, (long long)i, values[i]);
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
      return hv_error(HV_ERR_INPUT, "token %d of the prompt is %d; the vocabulary has ids 0 … %d", i, id,
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

/* Copies the observation and given draws into the host block, and fills the passes' tables. */
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
    hv_pass_count(&policy->shape, hv_policy_prefix_rows(config, count), &policy->passes[i]);
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

static void queue_inputs(hv_policy *policy, hv_given_draws given) {
  hv_upload(policy->stream, policy->block.data, policy->host, policy->at.bytes);
  draw(policy, given);
  if (policy->denoises)
    hv_convert(policy->stream,
               &(hv_convert_args){.src = hv_policy_action(policy, policy->at.x), .dst = policy->x_cast});
}

static hv_status queue_passes(hv_policy *policy, double *since, hv_policy_result *out) {
  const hv_policy_block *at = &policy->at;
  hv_policy_project_images(policy);
  HV_TRY(finish_step(policy, 0, &out->vision_ms, since));
  for (int32_t i = 0; i < policy->num_passes; i++) {
    const hv_pass *pass = &policy->passes[i];
    hv_policy_run_pass(policy, pass);
    double *ms = pass->prefill ? &out->prefill_ms : pass->stage >= 0 ? &out->denoise_ms : &out->decode_ms;
    HV_TRY(finish_step(policy, 1 + i, ms, since));
  }
  hv_download(policy->stream, policy->host + at->x, (char *)policy->block.data + at->x, at->bytes - at->x);
  return HV_OK;
}

static bool has_piece(const hv_policy *policy, hv_policy_piece piece) {
  return piece != HV_PIECE_SECOND_TOWER || policy->parts->config.num_towers > 1;
}

static hv_stream *stream_of(const hv_policy *policy, hv_policy_piece piece) {
  return piece == HV_PIECE_SECOND_TOWER && policy->side ? policy->side : policy->stream;
}

/* `since` is when the prediction began, with timing. */
static hv_status queue_piece(hv_policy *policy, hv_policy_piece piece, hv_given_draws given, double *since,
                             hv_policy_result *out) {
  hv_stream *stream = stream_of(policy, piece);
  switch (piece) {
  case HV_PIECE_INPUTS: queue_inputs(policy, given); return HV_OK;
  case HV_PIECE_SECOND_TOWER: hv_policy_run_tower(policy, 1, &policy->side_scratch, stream); return HV_OK;
  case HV_PIECE_FIRST_TOWER: hv_policy_run_tower(policy, 0, &policy->scratch, stream); return HV_OK;
  default: return queue_passes(policy, since, out);
  }
}

/* If the second tower has a stream of its own, it waits for the inputs, and the passes wait for it. */
static void wait_for_other_stream(hv_policy *policy, hv_policy_piece piece) {
  if (!policy->side) return;
  if (piece == HV_PIECE_SECOND_TOWER) hv_event_wait(policy->side, policy->inputs_ready);
  if (piece == HV_PIECE_PASSES) hv_event_wait(policy->stream, policy->tower_ready);
}

static void tell_other_stream(hv_policy *policy, hv_policy_piece piece) {
  if (!policy->side) return;
  if (piece == HV_PIECE_INPUTS) hv_event_record(policy->stream, policy->inputs_ready);
  if (piece == HV_PIECE_SECOND_TOWER) hv_event_record(policy->side, policy->tower_ready);
}

/* Queues everything between the filled block and the results in it: each piece anew, or as it was recorded. */
static hv_status queue_prediction(hv_policy *policy, const hv_policy_recording *recorded, hv_given_draws given,
                                  hv_policy_result *out) {
  double since = policy->options.timing ? 1e3 * hv_clock_seconds() : 0;
  for (hv_policy_piece piece = 0; piece < HV_POLICY_PIECES; piece++) {
    if (!has_piece(policy, piece)) continue;
    wait_for_other_stream(policy, piece);
    if (recorded) {
      hv_stream_replay(stream_of(policy, piece), recorded->pieces[piece]);
    } else {
      HV_TRY(queue_piece(policy, piece, given, &since, out));
    }
    tell_other_stream(policy, piece);
  }
  return HV_OK;
}

static void forget_recording(hv_device *device, hv_policy_recording *entry) {
  for (int piece = 0; piece < HV_POLICY_PIECES; piece++) hv_recording_close(device, entry->pieces[piece]);
  *entry = (hv_policy_recording){0};
}

void hv_policy_forget_recordings(hv_policy *policy) {
  for (int i = 0; i < HV_POLICY_RECORDINGS; i++) forget_recording(policy->parts->device, &policy->recordings[i]);
}

/* A policy for longer prompts has had the model's constants made anew. */
static void forget_outdated_recordings(hv_policy *policy) {
  if (policy->preparations == policy->parts->preparations) return;
  hv_policy_forget_recordings(policy);
  policy->preparations = policy->parts->preparations;
}

/* Sharded parameters are gathered on another stream, and the events that order it cannot be recorded. */
bool hv_policy_may_record(const hv_policy *policy) {
  return hv_device_records(policy->parts->device) && !policy->options.timing &&
         hv_params_sharding(policy->parts->params) == HV_SHARD_NOTHING &&
         policy->lost_recordings < HV_POLICY_LOST_RECORDINGS;
}

static bool same_draws(hv_given_draws a, hv_given_draws b) {
  return a.noise == b.noise && a.ar_noise == b.ar_noise && a.ar_timestep == b.ar_timestep &&
         a.step_noise == b.step_noise;
}

/* The entry for predictions of this kind; a new one, in place of the least recently used, if there is none. */
static hv_policy_recording *find_recording(hv_policy *policy, int32_t prompt_count, hv_given_draws given) {
  hv_policy_recording *oldest = &policy->recordings[0];
  for (int i = 0; i < HV_POLICY_RECORDINGS; i++) {
    hv_policy_recording *entry = &policy->recordings[i];
    if (entry->prompt_count == prompt_count && same_draws(entry->given, given)) return entry;
    if (entry->last_use < oldest->last_use) oldest = entry;
  }
  forget_recording(policy->parts->device, oldest);
  oldest->given = given;
  return oldest;
}

static hv_status record_piece(hv_policy *policy, hv_policy_piece piece, hv_given_draws given, hv_policy_result *out,
                              hv_recording **recording) {
  hv_stream *stream = stream_of(policy, piece);
  double since = 0;
  HV_TRY(hv_stream_record_begin(stream));
  hv_status status = queue_piece(policy, piece, given, &since, out);
  return hv_status_first(status, hv_stream_record_end(stream, recording));
}

static hv_status record(hv_policy *policy, hv_policy_recording *entry, hv_policy_result *out) {
  hv_given_draws given = entry->given;
  for (hv_policy_piece piece = 0; piece < HV_POLICY_PIECES; piece++) {
    if (!has_piece(policy, piece)) continue;
    hv_status status = record_piece(policy, piece, given, out, &entry->pieces[piece]);
    if (status) {
      forget_recording(policy->parts->device, entry);
      entry->given = given; /* for the next attempt */
      return status;
    }
  }
  entry->recorded = true;
  return HV_OK;
}

/* If recording fails on the device, the prediction runs call by call. */
static hv_status record_if_possible(hv_policy *policy, hv_policy_recording *entry, hv_policy_result *out) {
  hv_status status = record(policy, entry, out);
  if (!status) policy->lost_recordings = 0;
  if (!status || hv_status_code(status) != HV_ERR_DEVICE) return status;
  bool last = ++policy->lost_recordings == HV_POLICY_LOST_RECORDINGS;
  hv_log_warning("recording on the device failed, so %s queued call by call, which is slower: %s",
                 last ? "from now on predictions are" : "this prediction is", hv_status_message(status));
  hv_status_free(status);
  return HV_OK;
}

static hv_status wait_for_prediction(hv_policy *policy) {
  hv_status status = hv_stream_synchronize(policy->stream);
  if (policy->side) status = hv_status_first(status, hv_stream_synchronize(policy->side));
  HV_TRY(status);
  HV_TRY(hv_arena_status(&policy->side_scratch));
  return hv_arena_status(&policy->scratch);
}

hv_status hv_policy_run(hv_policy *policy, int32_t prompt_count, hv_given_draws given, hv_policy_result *out) {
  hv_policy_recording *entry = NULL;
  forget_outdated_recordings(policy);
  if (hv_policy_may_record(policy)) {
    entry = find_recording(policy, prompt_count, given);
    bool repeated = entry->prompt_count == prompt_count;
    if (repeated && !entry->recorded) HV_TRY(record_if_possible(policy, entry, out));
    entry->prompt_count = prompt_count;
    entry->last_use = ++policy->predictions;
  }
  HV_TRY(queue_prediction(policy, entry && entry->recorded ? entry : NULL, given, out));
  return wait_for_prediction(policy);
}

/* Runs a prediction only to measure algorithms: a measured product runs many times, so sums come out wrong. It
 * overwrites inputs in the block. *measured: whether anything was measured. */
static hv_status measure_algorithms(hv_policy *policy, int32_t prompt_count, hv_given_draws given, bool *measured) {
  hv_device *device = policy->parts->device;
  *measured =
      policy->options.measure_algorithms && !policy->met[prompt_count] && hv_device_measure_choices(device, true);
  policy->met[prompt_count] = true;
  if (!*measured) return HV_OK;
  hv_policy_result ignored = {0};
  hv_status status = queue_prediction(policy, NULL, given, &ignored);
  status = hv_status_first(status, wait_for_prediction(policy));
  (void)hv_device_measure_choices(device, false);
  return status;
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
  bool measured;
  HV_TRY(measure_algorithms(policy, observation->prompt_count, given, &measured));
  if (measured) given = fill_block(policy, observation, draws);
  HV_TRY(hv_policy_run(policy, observation->prompt_count, given, out));
  read_results(policy, out);
  return HV_OK;
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
