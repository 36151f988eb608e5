#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/text.h"
#include "core/image/image.h"
#include "infer/hvla.h"
#include "infer/hvla_internal.h"

hvla_request hvla_default_request(void) {
  return (hvla_request){.ddim_steps = 4, .theta = 0.96};
}

static hv_status policy_options(const hvla_model *model, const hvla_request *request, hv_policy_options *out) {
  static const hv_mode modes[] = {[HVLA_MODE_ENSEMBLE] = HV_MODE_ENSEMBLE,
                                  [HVLA_MODE_DIFFUSION] = HV_MODE_DIFFUSION,
                                  [HVLA_MODE_AUTOREGRESSIVE] = HV_MODE_AUTOREGRESSIVE};
  static const hv_ar_condition conditions[] = {
      [HVLA_AR_NOISE] = HV_AR_NOISE, [HVLA_AR_RANDOM] = HV_AR_RANDOM, [HVLA_AR_DENOISED] = HV_AR_DENOISED};
  *out = hv_policy_default_options(&model->config);
  out->max_prompt = model->max_prompt;
  out->measure_algorithms = model->measure_algorithms;
  out->timing = request->timing != 0;
  if (request->mode < HVLA_MODE_DEFAULT || request->mode > HVLA_MODE_AUTOREGRESSIVE)
    return hv_error(HV_ERR_INPUT, "mode is %d, none of hvla_mode", (int)request->mode);
  if (request->sampler != HVLA_SAMPLER_DDIM && request->sampler != HVLA_SAMPLER_DDPM)
    return hv_error(HV_ERR_INPUT, "sampler is %d, none of hvla_sampler", (int)request->sampler);
  if (request->ar_condition < HVLA_AR_DEFAULT || request->ar_condition > HVLA_AR_DENOISED)
    return hv_error(HV_ERR_INPUT, "ar_condition is %d, none of hvla_ar_condition", (int)request->ar_condition);
  if (request->mode != HVLA_MODE_DEFAULT) out->mode = modes[request->mode];
  if (request->ar_condition != HVLA_AR_DEFAULT) {
    if (!hv_config_has_diffusion(&model->config))
      return hv_error(HV_ERR_INPUT,
                      "%s: the model was trained with the objective autoregressive: its action tokens "
                      "attend to the prefix alone, so no condition can be chosen for them",
                      model->directory);
    out->ar_condition = conditions[request->ar_condition];
  }
  out->sampler = request->sampler == HVLA_SAMPLER_DDPM ? HV_SAMPLER_DDPM : HV_SAMPLER_DDIM;
  if (out->sampler == HV_SAMPLER_DDIM) out->ddim_steps = request->ddim_steps;
  if (!isfinite(request->theta)) return hv_error(HV_ERR_INPUT, "theta is %g, which is not finite", request->theta);
  return HV_OK;
}

static bool same_options(const hv_policy_options *a, const hv_policy_options *b) {
  return a->mode == b->mode && a->sampler == b->sampler && a->ddim_steps == b->ddim_steps &&
         a->ar_condition == b->ar_condition && a->max_prompt == b->max_prompt && a->timing == b->timing;
}

static hv_status select_policy(hvla_model *model, const hvla_request *request) {
  hv_policy_options options;
  HV_TRY(policy_options(model, request, &options));
  if (model->policy && same_options(&options, &model->policy_options)) return HV_OK;
  hv_policy_close(model->policy);
  model->policy = NULL;
  hv_status status = hv_policy_open(model->model, &options, &model->policy);
  model->policy_options = options;
  return hv_error_context(status, "%s", model->directory);
}

/* The statistics that the request names. */
static hv_status select_statistics(hvla_model *model, const char *key) {
  const hv_config *config = &model->config;
  if (model->scale.key && key && strcmp(model->scale.key, key) == 0) return HV_OK;
  if (model->scale.key && !key && json_object_size(model->statistics) == 1) return HV_OK;
  hv_dataset_statistics scale;
  hv_text where = {0};
  hv_text_add(&where, "%s/dataset_statistics.json", model->directory);
  hv_status status = hv_dataset_statistics_from_json(model->statistics, hv_text_string(&where), key, &scale);
  if (!status && scale.action.dims != config->action_dim) {
    status = hv_error(HV_ERR_INPUT, "%s: %s: action has %d dimensions; the model's actions have %d",
                      hv_text_string(&where), scale.key, scale.action.dims, config->action_dim);
    hv_dataset_statistics_free(&scale);
  } else if (!status && config->state_dim && scale.proprio.dims != config->state_dim) {
    status = hv_error(HV_ERR_INPUT, "%s: %s: proprio has %d dimensions; the model takes a state of %d",
                      hv_text_string(&where), scale.key, scale.proprio.dims, config->state_dim);
    hv_dataset_statistics_free(&scale);
  }
  hv_text_free(&where);
  if (status) return status;
  hv_dataset_statistics_free(&model->scale);
  model->scale = scale;
  for (int32_t d = 0; d < config->action_dim; d++) model->gripper[d] = !scale.action.mask[d];
  return HV_OK;
}

static hv_status read_state(hvla_model *model, const hvla_request *request) {
  size_t wanted = (size_t)model->config.state_dim;
  if (request->state_dim != wanted)
    return hv_error(HV_ERR_INPUT,
                    wanted ? "the state has %zu values; the model takes %zu"
                           : "the state has %zu values; the model takes %zu, as it has no state",
                    request->state_dim, wanted);
  if (!wanted) return HV_OK;
  for (size_t i = 0; i < wanted; i++)
    if (!isfinite(request->state[i]))
      return hv_error(HV_ERR_INPUT, "value %zu of the state is %g, which is not finite", i, request->state[i]);
  hv_normalize(&model->scale.proprio, request->state, model->state);
  return HV_OK;
}

static hv_status read_instruction(hvla_model *model, const char *instruction) {
  if (!instruction) return hv_error(HV_ERR_INPUT, "no instruction is given");
  if (!model->tokenizer)
    return hv_error(HV_ERR_INPUT, "%s/tokenizer.model is missing: without it an instruction cannot be tokenized",
                    model->directory);
  if (model->instruction && strcmp(model->instruction, instruction) == 0) return HV_OK;
  hv_token_list prompt = {0};
  HV_TRY(hv_prompt_encode(model->tokenizer, &model->config, instruction, &prompt));
  hv_status status = HV_OK;
  char *copy = NULL;
  if (prompt.count > (size_t)model->max_prompt) {
    status = hv_error(HV_ERR_INPUT, "the prompt with the instruction in it has %zu tokens; max_prompt allows %d",
                      prompt.count, model->max_prompt);
  } else if (!(copy = strdup(instruction))) {
    status = hv_error_memory("an instruction");
  }
  if (status) {
    hv_token_list_free(&prompt);
    return status;
  }
  hv_token_list_free(&model->prompt);
  free(model->instruction);
  model->prompt = prompt;
  model->instruction = copy;
  return HV_OK;
}

/* The model's cameras, for messages: "front, wrist". */
static void list_cameras(const hv_config *config, hv_text *out) {
  for (int32_t i = 0; i < config->num_cameras; i++) hv_text_add(out, "%s%s", i ? ", " : "", config->cameras[i]);
}

static hv_status camera_error(const hv_config *config, const char *format, const char *camera) {
  hv_text names = {0};
  list_cameras(config, &names);
  hv_status status = hv_error(HV_ERR_INPUT, format, camera, hv_text_string(&names));
  hv_text_free(&names);
  return status;
}

/* The index of the camera with this name; num_cameras: there is none. */
static int32_t find_camera(const hv_config *config, const char *name) {
  int32_t camera = 0;
  while (camera < config->num_cameras && strcmp(config->cameras[camera], name) != 0) camera++;
  return camera;
}

/* The request's pictures in the order of the model's cameras. */
static hv_status match_cameras(const hv_config *config, const hvla_request *request, hvla_image *out) {
  for (size_t i = 0; i < request->num_images; i++) {
    const hvla_image *image = &request->images[i];
    const char *name = image->camera ? image->camera : "(no name)";
    int32_t camera = find_camera(config, name);
    if (camera == config->num_cameras) return camera_error(config, "the model has no camera %s; it has: %s", name);
    if (out[camera].camera)
      return camera_error(config, "two pictures are given for the camera %s; give one for each of: %s", name);
    out[camera] = *image;
  }
  hv_text missing = {0};
  for (int32_t camera = 0; camera < config->num_cameras; camera++)
    if (!out[camera].camera) hv_text_add(&missing, "%s%s", missing.length ? ", " : "", config->cameras[camera]);
  if (!missing.length) return HV_OK;
  hv_status status =
      camera_error(config, "no picture is given for the camera %s; the model has: %s", hv_text_string(&missing));
  hv_text_free(&missing);
  return status;
}

/* Resizes one camera's RGB picture into model->images. */
static hv_status resize_frame(hvla_model *model, int32_t camera, int32_t width, int32_t height, const uint8_t *rgb) {
  const hv_config *config = &model->config;
  hvla_camera_input *input = &model->cameras[camera];
  int32_t side = config->vision[0].image_size;
  if (!input->resizer || input->width != width || input->height != height) {
    hv_resizer_close(input->resizer);
    input->resizer = NULL;
    HV_TRY(hv_resizer_open_frame(width, height, side, config->image_resize, config->vision[0].image_mean,
                                 &input->resizer));
    input->width = width;
    input->height = height;
  }
  hv_resizer_run(input->resizer, rgb, model->images + (size_t)camera * (size_t)side * (size_t)side * 3);
  return HV_OK;
}

static hv_status read_image(hvla_model *model, int32_t camera, const hvla_image *image) {
  const char *source = image->source ? image->source : image->camera;
  if (!image->data) return hv_error(HV_ERR_INPUT, "%s: the picture has no data", source);
  if (image->width == 0 && image->height == 0) {
    hv_image decoded = {0};
    HV_TRY(hv_image_decode(image->data, image->size, source, &decoded));
    hv_status status = resize_frame(model, camera, decoded.width, decoded.height, decoded.rgb);
    hv_image_free(&decoded);
    return hv_error_context(status, "%s", source);
  }
  if (image->width < 1 || image->height < 1 || image->width > HV_IMAGE_MAX_SIDE || image->height > HV_IMAGE_MAX_SIDE)
    return hv_error(HV_ERR_INPUT, "%s: the picture has %d × %d pixels; 1 to %d a side are possible", source,
                    image->width, image->height, HV_IMAGE_MAX_SIDE);
  size_t bytes = (size_t)image->width * (size_t)image->height * 3;
  if (image->size && image->size != bytes)
    return hv_error(HV_ERR_INPUT, "%s: the picture has %zu bytes; RGB of %d × %d pixels has %zu", source, image->size,
                    image->width, image->height, bytes);
  return hv_error_context(resize_frame(model, camera, image->width, image->height, image->data), "%s", source);
}

static hv_status read_inputs(hvla_model *model, const hvla_request *request) {
  hvla_image images[HV_MAX_CAMERAS] = {0};
  HV_TRY(select_statistics(model, request->unnorm_key));
  HV_TRY(match_cameras(&model->config, request, images));
  HV_TRY(read_state(model, request));
  HV_TRY(read_instruction(model, request->instruction));
  for (int32_t i = 0; i < model->config.num_cameras; i++) HV_TRY(read_image(model, i, &images[i]));
  return HV_OK;
}

/* Un-normalises one head's chunk. */
static hv_status to_robot(const hvla_model *model, const float *values, const char *head, double *out) {
  int32_t chunk = model->config.action_chunk, dim = model->config.action_dim;
  for (int32_t i = 0; i < chunk * dim; i++)
    if (!isfinite(values[i]))
      return hv_error(HV_ERR_INPUT,
                      "%s: the %s head's action is not finite: the weights are damaged, or too large "
                      "for this dtype",
                      model->directory, head);
  for (int32_t h = 0; h < chunk; h++) hv_unnormalize(&model->scale.action, values + h * dim, out + h * dim);
  return HV_OK;
}

/* Only after the ensemble, which needs grippers with 1 for open and 0 for closed. */
static void restore_grippers(const hvla_model *model, double *actions) {
  int32_t dim = model->config.action_dim;
  for (int32_t h = 0; h < model->config.action_chunk; h++) hv_restore_gripper(&model->scale, actions + h * dim);
}

static hv_status finish(hvla_model *model, const hvla_request *request, const hv_policy_result *policy,
                        hvla_result *out) {
  const hv_config *config = &model->config;
  hv_mode mode = model->policy_options.mode;
  size_t bytes = (size_t)config->action_chunk * (size_t)config->action_dim * sizeof *model->action;
  out->action_chunk = config->action_chunk;
  out->action_dim = config->action_dim;
  out->action = model->action;
  if (policy->diffusion) {
    HV_TRY(to_robot(model, policy->diffusion, "diffusion", model->diffusion));
    out->diffusion = model->diffusion;
    out->diffusion_normalized = policy->diffusion;
  }
  if (policy->autoregressive) {
    if (!isfinite(policy->confidence))
      return hv_error(HV_ERR_INPUT,
                      "%s: the token head's probabilities are not finite: the weights are damaged, or "
                      "too large for this dtype",
                      model->directory);
    HV_TRY(to_robot(model, policy->autoregressive, "token", model->autoregressive));
    out->autoregressive = model->autoregressive;
    out->tokens = policy->tokens;
    out->confidences = policy->confidences;
    out->confidence = policy->confidence;
  }
  if (mode == HV_MODE_ENSEMBLE) {
    bool both = hv_ensemble(model->diffusion, model->autoregressive, policy->confidence, request->theta,
                            config->action_chunk, config->action_dim, model->gripper, model->action);
    out->used = both ? HVLA_MODE_ENSEMBLE : HVLA_MODE_DIFFUSION;
  } else {
    out->used = mode == HV_MODE_DIFFUSION ? HVLA_MODE_DIFFUSION : HVLA_MODE_AUTOREGRESSIVE;
    memcpy(model->action, mode == HV_MODE_DIFFUSION ? model->diffusion : model->autoregressive, bytes);
  }
  restore_grippers(model, model->action);
  if (policy->diffusion) restore_grippers(model, model->diffusion);
  if (policy->autoregressive) restore_grippers(model, model->autoregressive);
  out->vision_ms = policy->vision_ms;
  out->prefill_ms = policy->prefill_ms;
  out->denoise_ms = policy->denoise_ms;
  out->decode_ms = policy->decode_ms;
  return HV_OK;
}

static hv_status predict(hvla_model *model, const hvla_request *request, hvla_result *out) {
  double start = 1e3 * hv_clock_seconds();
  HV_TRY(select_policy(model, request));
  double prepared = 1e3 * hv_clock_seconds();
  HV_TRY(read_inputs(model, request));
  out->input_ms = 1e3 * hv_clock_seconds() - prepared;
  hv_observation observation = {.images = model->images,
                                .prompt_ids = model->prompt.ids,
                                .prompt_count = (int32_t)model->prompt.count,
                                .state = model->config.state_dim ? model->state : NULL};
  hv_policy_draws draws = {.noise = request->noise,
                           .ar_noise = request->ar_noise,
                           .ar_timestep = request->ar_timestep,
                           .step_noise = request->step_noise,
                           .seed = request->seed,
                           .step = request->step};
  hv_policy_result result;
  HV_TRY(hv_policy_predict(model->policy, &observation, &draws, &result));
  HV_TRY(finish(model, request, &result, out));
  out->total_ms = 1e3 * hv_clock_seconds() - start;
  return HV_OK;
}

/* Mistakes that would crash the robot's program. */
static hv_status check_given(const hvla_model *model, const hvla_request *request) {
  if (!model) return hv_error(HV_ERR_INPUT, "no model is given");
  if (!request) return hv_error(HV_ERR_INPUT, "no request is given");
  if (request->num_images > 0 && !request->images)
    return hv_error(HV_ERR_INPUT, "num_images is %zu, and images is NULL", request->num_images);
  if (request->state_dim > 0 && !request->state)
    return hv_error(HV_ERR_INPUT, "state_dim is %zu, and state is NULL", request->state_dim);
  return HV_OK;
}

hvla_code hvla_predict(hvla_model *model, const hvla_request *request, hvla_result *result, hvla_error *error) {
  if (!result)
    return hv_infer_report(hv_error(HV_ERR_INPUT, "result is NULL; a pointer to an hvla_result is expected"), error);
  *result = (hvla_result){0};
  hv_status status = check_given(model, request);
  if (!status) status = predict(model, request, result);
  if (status) *result = (hvla_result){0};
  return hv_infer_report(status, error);
}
