#include "train/check_batch.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/text.h"

enum { ANY = -1, MAX_RANK = 5 };

/* What one tensor must be like. A length that is ANY is shown as its letter in messages. */
typedef struct expectation {
  const char *name;
  hv_dtype dtype;
  int32_t rank;
  int64_t shape[MAX_RANK];
  const char *letters; /* of the lengths, "BKHA" */
  bool optional;
} expectation;

typedef struct reader {
  const char *path;
  const hv_safetensors *file;
  hv_file_batch *out;
  hv_text problems;
} reader;

static void format_expected(const expectation *want, char *out, size_t size) {
  int used = snprintf(out, size, "%s [", hv_safetensors_dtype_name(want->dtype));
  for (int32_t i = 0; i < want->rank && used > 0 && (size_t)used < size; i++) {
    const char *comma = i ? ", " : "";
    if (want->shape[i] == ANY) {
      used += snprintf(out + used, size - (size_t)used, "%s%c", comma, want->letters[i]);
    } else {
      used += snprintf(out + used, size - (size_t)used, "%s%" PRId64, comma, want->shape[i]);
    }
  }
  if (used > 0 && (size_t)used + 1 < size) snprintf(out + used, size - (size_t)used, "]");
}

static bool fits(const expectation *want, const hv_file_tensor *tensor) {
  if (!tensor->known || tensor->dtype != want->dtype || tensor->rank != want->rank) return false;
  for (int32_t i = 0; i < want->rank; i++) {
    bool matches = want->shape[i] == ANY ? tensor->shape[i] > 0 : tensor->shape[i] == want->shape[i];
    if (!matches) return false;
  }
  return true;
}

/* The tensor if it is there and as expected; else NULL, and a problem is noted unless it is optional and absent. */
static const hv_file_tensor *find(reader *r, const expectation *want) {
  char expected[128], found[128];
  const hv_file_tensor *tensor = hv_safetensors_find(r->file, want->name);
  if (!tensor && want->optional) return NULL;
  format_expected(want, expected, sizeof expected);
  if (!tensor) {
    hv_text_add(&r->problems, "\n  %s is missing; expected %s", want->name, expected);
    return NULL;
  }
  if (fits(want, tensor)) return tensor;
  hv_format_shape(tensor->dtype_name, tensor->shape, tensor->rank, found, sizeof found);
  hv_text_add(&r->problems, "\n  %s is %s; expected %s", want->name, found, expected);
  return NULL;
}

/* An aligned copy of the tensor's data, owned by the batch; NULL without a tensor, or without memory, when *failed is
 * set. */
static void *copy(reader *r, const hv_file_tensor *tensor, bool *failed) {
  if (!tensor) return NULL;
  void *data = malloc(tensor->size ? tensor->size : 1);
  if (!data) {
    *failed = true;
    return NULL;
  }
  memcpy(data, tensor->data, tensor->size);
  r->out->copies[r->out->num_copies++] = data;
  return data;
}

static hv_status check_mask(const reader *r, const uint8_t *mask, int64_t count, int32_t chunk) {
  for (int64_t i = 0; mask && i < count; i++) {
    if (mask[i] <= 1) continue;
    return hv_error(HV_ERR_INPUT, "%s: action_mask of sample %" PRId64 ", step %" PRId64 ", is %d; expected 0 or 1",
                    r->path, i / chunk, i % chunk, mask[i]);
  }
  return HV_OK;
}

static hv_status read_batch(reader *r, const hv_config *config) {
  int64_t size = config->vision[0].image_size, chunk = config->action_chunk, dim = config->action_dim;
  bool diffusion = hv_config_has_diffusion(config), failed = false;
  const hv_file_tensor *images = find(
      r, &(expectation){"images", HV_U8, 5, {ANY, config->num_cameras, size, size, 3}, "BVSS3", .optional = false});
  int64_t samples = images ? images->shape[0] : ANY;
  const hv_file_tensor *prompt = find(r, &(expectation){"prompt_ids", HV_I32, 2, {samples, ANY}, "BT", false});
  const hv_file_tensor *state = NULL, *noise = NULL, *timesteps = NULL;
  if (config->state_dim > 0) {
    state = find(r, &(expectation){"state", HV_F32, 2, {samples, config->state_dim}, "BS", false});
  }
  const hv_file_tensor *actions = find(r, &(expectation){"actions", HV_F32, 3, {samples, chunk, dim}, "BHA", false});
  const hv_file_tensor *mask = find(r, &(expectation){"action_mask", HV_U8, 2, {samples, chunk}, "BH", true});
  if (diffusion) {
    noise = find(r, &(expectation){"noise", HV_F32, 4, {samples, ANY, chunk, dim}, "BKHA", false});
    int64_t branches = noise ? noise->shape[1] : ANY;
    timesteps = find(r, &(expectation){"timesteps", HV_I32, 2, {samples, branches}, "BK", false});
  }
  if (r->problems.failed) return hv_error_memory("a list of findings");
  if (r->problems.length > 0) {
    return hv_error(HV_ERR_INPUT, "%s does not fit the model:%s", r->path, hv_text_string(&r->problems));
  }
  enum { MOST = 1 << 20 };
  if (samples > MOST || prompt->shape[1] > MOST || (noise && noise->shape[1] > MOST)) {
    return hv_error(HV_ERR_INPUT, "%s: at most %d samples, prompt tokens and branches are read", r->path, (int)MOST);
  }
  r->out->branches = noise ? (int32_t)noise->shape[1] : 1;
  r->out->batch = (hv_batch){.samples = (int32_t)samples,
                             .images = copy(r, images, &failed),
                             .prompt_ids = copy(r, prompt, &failed),
                             .prompt_stride = (int32_t)prompt->shape[1],
                             .state = copy(r, state, &failed),
                             .actions = copy(r, actions, &failed),
                             .action_mask = copy(r, mask, &failed),
                             .noise = copy(r, noise, &failed),
                             .timesteps = copy(r, timesteps, &failed)};
  if (failed) return hv_error_memory("the batch");
  return check_mask(r, r->out->batch.action_mask, samples * chunk, (int32_t)chunk);
}

hv_status hv_file_batch_open(const char *path, const hv_config *config, hv_file_batch *out) {
  hv_safetensors *file;
  *out = (hv_file_batch){0};
  HV_TRY(hv_safetensors_open(path, &file));
  reader r = {.path = path, .file = file, .out = out};
  hv_status status = read_batch(&r, config);
  hv_text_free(&r.problems);
  hv_safetensors_close(file);
  if (status) hv_file_batch_close(out);
  return status;
}

void hv_file_batch_warn(const hv_file_batch *file, const hv_config *config, const char *path) {
  const hv_batch *batch = &file->batch;
  for (int32_t i = 0; config->token_empty >= 0 && i < batch->samples; i++) {
    const int32_t *ids = batch->prompt_ids + (int64_t)i * batch->prompt_stride;
    int32_t length = 0;
    while (length < batch->prompt_stride && ids[length] >= 0) length++;
    if (ids[length - 1] == config->token_empty) continue;
    hv_log_warning("%s: prompt_ids of sample %d end with %d; prompts of training and prediction end with %d "
                   "(special_tokens.empty): was it cut off?",
                   path, i, ids[length - 1], config->token_empty);
    return;
  }
}

void hv_file_batch_close(hv_file_batch *batch) {
  for (int i = 0; i < batch->num_copies; i++) free(batch->copies[i]);
  *batch = (hv_file_batch){0};
}
