/* hvla-infer export: a model as others take it. */
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "infer/byte_progress.h"
#include "infer/commands.h"
#include "infer/export.h"
#include "infer/public_checkpoint.h"
#include "infer/verify.h"

enum { PUBLIC_PT = 1 }; /* of the formats below */
const char *const hv_export_format_choices[] = {"safetensors", "public-pt", NULL};
const char *const hv_export_dtype_choices[] = {"auto", "fp32", "bf16", "fp16", NULL};

static const hv_dtype dtypes[] = {HV_F32, HV_F32, HV_BF16, HV_F16};

/* `path` with every link resolved, of which only the last parts may be absent; on the heap. */
static hv_status resolve(const char *path, char **out) {
  hv_status status = HV_OK;
  char *above = NULL, *parent = NULL, *whole = realpath(path, NULL);
  *out = NULL;
  if (!whole && errno == ENOENT) {
    above = strdup(path);
    char *copy = strdup(path);
    if (!above || !copy) {
      status = hv_error_memory("a path");
    } else {
      status = resolve(dirname(above), &parent);
      if (!status) whole = hv_path_join(parent, basename(copy));
    }
    free(copy);
  }
  if (!status && !whole) status = hv_error_errno(errno, "cannot examine %s", path);
  free(above);
  free(parent);
  *out = whole;
  return status;
}

/* An export never takes the place of anything. */
static hv_status check_empty(const char *path) {
  struct stat info;
  if (lstat(path, &info) != 0) return HV_OK;
  DIR *folder = opendir(path);
  if (!folder) return hv_error(HV_ERR_INPUT, "--out %s exists and is no directory that can be read", path);
  int entries = 0;
  while (entries <= 2 && readdir(folder)) entries++; /* "." and ".." are always there */
  closedir(folder);
  if (entries > 2)
    return hv_error(HV_ERR_INPUT, "--out %s is not empty; a new or an empty directory is expected", path);
  return HV_OK;
}

static hv_status check_out(const hv_export_options *options) {
  char *model = NULL, *out = NULL;
  hv_status status = HV_OK;
  HV_CHECK(check_empty(options->out));
  HV_CHECK(resolve(options->model, &model));
  HV_CHECK(resolve(options->out, &out));
  size_t length = strlen(model);
  if (strncmp(out, model, length) == 0 && (out[length] == '/' || out[length] == '\0'))
    status = hv_error(HV_ERR_INPUT, "--out %s lies in the model directory; choose a place outside %s", options->out,
                      options->model);
done:
  free(model);
  free(out);
  return status;
}

static void count_bytes(void *progress, size_t bytes) {
  hv_byte_progress_add(progress, bytes);
}

static hv_status write_directory(const hv_export_options *options, const hv_export_source *source, const hv_dtype *to) {
  hv_text card = {0};
  hv_byte_progress progress = hv_byte_progress_make("writing", hv_export_bytes(source->directory.tensors, to));
  hv_status status = hv_export_card(source, to, NULL, &card);
  if (!status) {
    hv_model_save what = {.model = &source->directory.model,
                          .carry = source->directory.tensors,
                          .dtype = to ? *to : HV_F32,
                          .convert_carried = to != NULL,
                          .shard_size = options->shard_size,
                          .tokenizer_path = source->tokenizer_path,
                          .statistics = source->statistics,
                          .card = hv_text_string(&card),
                          .progress = count_bytes,
                          .progress_context = &progress};
    status = hv_model_directory_save(options->out, &what, NULL);
  }
  hv_byte_progress_clear(&progress);
  hv_text_free(&card);
  return status;
}

static void report(const hv_export_options *options, const hv_export_source *source, const hv_dtype *to, hv_text *out) {
  const hv_safetensors *tensors = source->directory.tensors;
  hv_text_add(out, "%s: %d tensors, %.2f MB, %s\n", options->out, hv_safetensors_count(tensors),
              1e-6 * hv_export_bytes(tensors, to), to ? hv_dtype_name(*to) : "in the dtypes they are stored in");
  hv_text_add(out, "%s", hv_text_string(&source->run.doubts));
  if (!source->run.config)
    hv_text_add(out, "no run directory lies beside the model: README.md cannot tell how it was trained\n");
}

static hv_status verify_directory(const hv_export_options *options, const hv_export_source *source, const hv_dtype *to,
                                  hv_text *out) {
  hv_safetensors *written;
  hv_verification what = {.before = options->model,
                          .after = options->out,
                          .statistics = source->statistics,
                          .device = options->device,
                          .threads = (int)options->threads};
  if (to && hv_export_narrows(source->directory.tensors, to)) what.tolerance = hv_verify_tolerance(*to);
  HV_TRY(hv_safetensors_open(options->out, &written));
  hv_status status = hv_verify_tensors(source->directory.tensors, written, to);
  hv_safetensors_close(written);
  return status ? status : hv_verify_predictions(&what, out);
}

static hv_status verification_failed(const hv_export_options *options, hv_status status) {
  return hv_error_context(status, "verification failed, and %s stays for you to look at", options->out);
}

static hv_status export_directory(const hv_export_options *options, const hv_export_source *source, const hv_dtype *to,
                                  hv_text *out) {
  HV_TRY(write_directory(options, source, to));
  report(options, source, to, out);
  if (!options->verify) return HV_OK;
  return verification_failed(options, verify_directory(options, source, to, out));
}

static hv_status verify_public(const hv_export_options *options, const hv_public_checkpoint *checkpoint, double bytes,
                               hv_text *out) {
  hv_byte_progress progress = hv_byte_progress_make("verifying", bytes);
  hv_status status = hv_public_checkpoint_verify(checkpoint, options->out, count_bytes, &progress);
  hv_byte_progress_clear(&progress);
  if (status && hv_status_code(status) == HV_ERR_INPUT) { /* a file of ours that cannot be read back is a no as well */
    hv_status no = hv_error(HV_ERR_NO, "%s", hv_status_message(status));
    hv_status_free(status);
    status = no;
  }
  if (!status) hv_text_add(out, "verified: every tensor that was written is equal to the bit to the source's\n");
  return verification_failed(options, status);
}

static hv_status export_public(const hv_export_options *options, const hv_export_source *source, const hv_dtype *to,
                               hv_text *out) {
  hv_public_checkpoint *checkpoint;
  double bytes = hv_export_bytes(source->directory.tensors, to);
  hv_byte_progress progress = hv_byte_progress_make("writing", bytes);
  HV_TRY(hv_public_checkpoint_open(source, to, &checkpoint));
  hv_status status = hv_public_checkpoint_write(checkpoint, options->out, count_bytes, &progress);
  hv_byte_progress_clear(&progress);
  if (!status) {
    const char *obstacles = hv_public_checkpoint_obstacles(checkpoint);
    report(options, source, to, out);
    if (*obstacles) hv_text_add(out, "not loadable by the public code:\n%s", obstacles);
    if (strstr(options->out, "openvla"))
      hv_text_add(out, "the public code takes a path with \"openvla\" in it for another format: rename %s\n",
                  options->out);
    if (options->verify) status = verify_public(options, checkpoint, bytes, out);
  }
  hv_public_checkpoint_close(checkpoint);
  return status;
}

hv_status hv_command_export(const hv_export_options *options, hv_text *out) {
  hv_export_source source = {0};
  const hv_dtype *to = options->dtype > 0 ? &dtypes[options->dtype] : NULL;
  hv_status status = HV_OK;
  HV_CHECK(check_out(options));
  HV_CHECK(hv_export_source_open(options->model, &source));
  status = options->format == PUBLIC_PT ? export_public(options, &source, to, out)
                                        : export_directory(options, &source, to, out);
  if (!status && out->failed) status = hv_error_memory("the export's report");
done:
  hv_export_source_close(&source);
  return status;
}
