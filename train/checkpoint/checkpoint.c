#include "train/checkpoint/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "train/checkpoint/checkpoint_parts.h"

/* Whether all ranks find the checkpoint undamaged; damage that this rank finds is added to `damaged`. One that merely
 * could not be read is an error: a run that resumed from an older one would overwrite it later. */
static hv_status examine(const char *run, hv_comm *comm, int64_t step, bool *whole, hv_text *damaged) {
  hv_manifest manifest;
  hv_status problem = hv_manifest_read(run, step, &manifest);
  if (!problem) problem = hv_checkpoint_verify(run, &manifest, comm->rank, comm->size);
  double damages = problem && hv_status_code(problem) == HV_ERR_INPUT && manifest.format <= HV_CHECKPOINT_FORMAT;
  hv_manifest_free(&manifest);
  if (damages > 0) {
    hv_text_add(damaged, "%s\n", hv_status_message(problem));
    hv_status_free(problem);
    problem = HV_OK;
  }
  problem = hv_error_context(
      problem,
      "the checkpoint of step %lld may be undamaged and is not skipped (to resume from an older one, move it away)",
      (long long)step);
  HV_TRY(hv_comm_agree(comm, "reading a checkpoint", problem));
  HV_TRY(hv_comm_sum(comm, "damaged checkpoints", &damages, 1));
  *whole = damages == 0;
  return HV_OK;
}

/* The last of the steps that rank 0 sees in the folder, on all ranks; -1: none. */
static hv_status last_step(hv_comm *comm, const int64_t *steps, size_t count, int64_t *out) {
  double step = 0;
  if (comm->rank == 0) step = count > 0 ? (double)steps[count - 1] : -1;
  HV_TRY(hv_comm_sum(comm, "the newest checkpoint", &step, 1));
  *out = (int64_t)step;
  return HV_OK;
}

hv_status hv_checkpoint_find(const char *run, hv_comm *comm, int64_t *step, hv_text *damaged) {
  int64_t *steps = NULL;
  size_t count = 0;
  bool whole = false;
  hv_status status = comm->rank == 0 ? hv_checkpoint_steps(run, &steps, &count) : HV_OK;
  HV_CHECK(hv_comm_agree(comm, "looking for checkpoints", status));
  HV_CHECK(last_step(comm, steps, count, step));
  while (*step >= 0 && !whole) {
    HV_CHECK(examine(run, comm, *step, &whole, damaged));
    if (whole) break;
    if (count > 0) count--;
    HV_CHECK(last_step(comm, steps, count, step));
  }
done:
  free(steps);
  return status;
}

/* Compares dtypes and numbers of parameters. The sizes of groups do not distinguish all models, since groups are
 * padded. */
static hv_status check_model(const hv_checkpoint_content *content, const char *where, const hv_params *params) {
  hv_dtype expected = hv_params_dtype(params), found = content->manifest.dtype;
  int64_t parameters = hv_params_total(params), found_parameters = content->manifest.parameters;
  if (found != expected) {
    return hv_error(HV_ERR_INPUT, "%s: the run was started with dtype %s and cannot be resumed with %s", where,
                    hv_dtype_name(found), hv_dtype_name(expected));
  }
  if (found_parameters == parameters) return HV_OK;
  return hv_error(HV_ERR_INPUT, "%s does not fit: its model has %lld parameters, but the configured one has %lld",
                  where, (long long)found_parameters, (long long)parameters);
}

/* Looks every part up in every file before anything is changed, and lists all that do not fit. */
static hv_status check_parts(const hv_checkpoint_parts *parts, const hv_checkpoint_content *content) {
  hv_text problems = {0};
  int32_t ranks = content->manifest.ranks;
  for (int i = 0; i < parts->count * ranks; i++) {
    const hv_checkpoint_part *part = &parts->items[i / ranks];
    int32_t shard = i % ranks;
    const hv_file_tensor *found = hv_safetensors_find(content->shards[shard], part->name);
    hv_element_range range = hv_checkpoint_file_range(part->total, shard, ranks);
    if (!found) {
      hv_text_add(&problems, "\n  %s is missing", part->name);
    } else if (!found->known || found->dtype != part->tensor.dtype || found->count != range.end - range.first) {
      hv_text_add(&problems, "\n  %s has %lld values of %s; the model needs %lld of %s", part->name,
                  (long long)found->count, found->dtype_name, (long long)range.end - (long long)range.first,
                  hv_safetensors_dtype_name(part->tensor.dtype));
    }
  }
  hv_status status = HV_OK;
  if (problems.failed) {
    status = hv_error_memory("a list of findings");
  } else if (problems.length > 0) {
    status = hv_error(HV_ERR_INPUT,
                      "%s does not fit the configured model, train.freeze, optimizer.moments or train.ema_decay:%s",
                      hv_safetensors_path(content->shards[0]), hv_text_string(&problems));
  }
  hv_text_free(&problems);
  return status;
}

/* Uploads those elements of this rank's part that one file holds. */
static void read_piece(const hv_checkpoint_part *part, const hv_checkpoint_content *content, int32_t shard,
                       hv_stream *stream) {
  hv_element_range file = hv_checkpoint_file_range(part->total, shard, content->manifest.ranks);
  int64_t first = part->first > file.first ? part->first : file.first, end = part->first + part->tensor.cols;
  if (end > file.end) end = file.end;
  if (first >= end) return;
  size_t width = hv_dtype_size(part->tensor.dtype);
  const char *data = hv_safetensors_find(content->shards[shard], part->name)->data;
  hv_tensor to = hv_tensor_cols(part->tensor, first - part->first, end - first);
  hv_upload(stream, to.data, data + (size_t)(first - file.first) * width, (size_t)to.cols * width);
}

static hv_status read_parts(const hv_checkpoint_content *content, const hv_params *params,
                            const hv_optimizer *optimizer, const hv_ema *ema, hv_stream *stream) {
  hv_status status = HV_OK;
  hv_checkpoint_parts parts = {0};
  HV_CHECK(hv_checkpoint_parts_list(params, optimizer, ema, &parts));
  HV_CHECK(check_parts(&parts, content));
  for (int i = 0; i < parts.count; i++) {
    for (int32_t shard = 0; shard < content->manifest.ranks; shard++) {
      read_piece(&parts.items[i], content, shard, stream);
    }
  }
  status = hv_stream_synchronize(stream);
done:
  hv_checkpoint_parts_free(&parts);
  return status;
}

hv_status hv_checkpoint_load(const char *run, int64_t step, hv_params *params, hv_optimizer *optimizer, hv_ema *ema,
                             hv_stream *stream, hv_run_position *out) {
  hv_checkpoint_content content;
  char where[HV_CHECKPOINT_PATH];
  HV_TRY(hv_checkpoint_path(run, step, "", where));
  hv_status status = hv_checkpoint_open(run, step, &content);
  if (!status) status = check_model(&content, where, params);
  if (!status) status = read_parts(&content, params, optimizer, ema, stream);
  *out = content.manifest.position;
  hv_checkpoint_close(&content);
  hv_comm *comm = hv_params_comm(params);
  if (comm) status = hv_comm_agree(comm, "reading the checkpoint", status);
  HV_TRY(status);
  hv_optimizer_set_updates(optimizer, out->updates);
  hv_params_publish(params, stream);
  return hv_stream_synchronize(stream);
}
