#include "train/ema.h"

#include <stdlib.h>

#include "core/tensor/ops.h"

struct hv_ema {
  hv_device *device;
  hv_params *params;
  const hv_optimizer *optimizer;
  double decay;
  hv_tensor *averages; /* [groups] views into `memory` */
  hv_tensor weight, one;
  void *memory;
  size_t bytes;
  float *host; /* the weight of a step, and 1; page-locked */
};

static int32_t group_count(const hv_ema *ema) {
  return hv_params_group_count(ema->params);
}

/* Assigns everything its place in `base`; with NULL, only computes the size. */
static void lay_out(hv_ema *ema, char *base) {
  int64_t at = 0;
  for (hv_group_id g = 0; g < group_count(ema); g++) {
    if (!hv_params_group(ema->params, g)->trainable) continue;
    int64_t count = hv_group_owned(ema->params, g).count;
    ema->averages[g] = hv_tensor_make(base ? base + at : NULL, HV_F32, 1, count);
    at += (count * (int64_t)sizeof(float) + 255) / 256 * 256;
  }
  ema->weight = hv_tensor_make(base ? base + at : NULL, HV_F32, 1, 1);
  ema->one = hv_tensor_make(base ? base + at + 256 : NULL, HV_F32, 1, 1);
  ema->bytes = (size_t)at + 512;
}

hv_status hv_ema_open(const hv_optimizer *optimizer, hv_params *params, double decay, hv_ema **out) {
  hv_status status = HV_OK;
  void *host;
  *out = NULL;
  hv_ema *ema = calloc(1, sizeof *ema);
  if (!ema) return hv_error_memory("the averages of parameters");
  ema->device = hv_params_device(params);
  ema->params = params;
  ema->optimizer = optimizer;
  ema->decay = decay;
  ema->averages = calloc((size_t)group_count(ema) + 1, sizeof *ema->averages);
  if (!ema->averages) {
    status = hv_error_memory("the averages of parameters");
    goto done;
  }
  lay_out(ema, NULL);
  HV_CHECK(hv_device_allocate(ema->device, HV_MEMORY_MOMENTS, ema->bytes, "the averages of parameters", &ema->memory));
  lay_out(ema, ema->memory);
  HV_CHECK(hv_device_allocate_host(ema->device, 2 * sizeof *ema->host, "the averages' weight", &host));
  ema->host = host;
  *out = ema;
  ema = NULL;
done:
  hv_ema_close(ema);
  return status;
}

void hv_ema_close(hv_ema *ema) {
  if (!ema) return;
  hv_device_release(ema->device, ema->memory);
  hv_device_release_host(ema->device, ema->host);
  free(ema->averages);
  free(ema);
}

/* Moves all averages towards the parameters by `weight`, unless the factor is negative: then the step was skipped. */
static void move_averages(const hv_ema *ema, float weight, hv_tensor factor, hv_stream *stream) {
  ema->host[0] = weight;
  hv_upload(stream, ema->weight.data, &ema->host[0], sizeof *ema->host);
  for (hv_group_id g = 0; g < group_count(ema); g++) {
    if (!hv_present(ema->averages[g])) continue;
    hv_average(stream, &(hv_average_args){.param = hv_group_owned(ema->params, g).values,
                                          .remainder = hv_optimizer_group_state(ema->optimizer, g).remainder,
                                          .average = ema->averages[g],
                                          .weight = ema->weight,
                                          .factor = factor});
  }
}

hv_status hv_ema_reset(hv_ema *ema, hv_stream *stream) {
  if (!ema) return HV_OK;
  ema->host[1] = 1.0f;
  hv_upload(stream, ema->one.data, &ema->host[1], sizeof *ema->host);
  for (hv_group_id g = 0; g < group_count(ema); g++) {
    if (hv_present(ema->averages[g])) hv_fill(stream, &(hv_fill_args){.dst = ema->averages[g]});
  }
  move_averages(ema, 1.0f, ema->one, stream);
  return hv_stream_synchronize(stream);
}

void hv_ema_update(hv_ema *ema, hv_stream *stream) {
  if (!ema) return;
  double t = (double)(hv_optimizer_updates(ema->optimizer) + 1), early = (1 + t) / (10 + t);
  double decay = early < ema->decay ? early : ema->decay;
  move_averages(ema, (float)(1 - decay), hv_optimizer_factor(ema->optimizer), stream);
}

void hv_ema_exchange(hv_ema *ema, hv_stream *stream) {
  if (!ema) return;
  hv_params_end_passes(ema->params, stream);
  for (hv_group_id g = 0; g < group_count(ema); g++) {
    if (!hv_present(ema->averages[g])) continue;
    hv_exchange(stream, &(hv_exchange_args){.param = hv_group_owned(ema->params, g).values,
                                            .remainder = hv_optimizer_group_state(ema->optimizer, g).remainder,
                                            .average = ema->averages[g]});
    hv_params_publish_group(ema->params, g, stream);
  }
}

hv_tensor hv_ema_group(const hv_ema *ema, hv_group_id group) {
  return ema ? ema->averages[group] : (hv_tensor){0};
}
