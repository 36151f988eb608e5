/* hvla-infer export: a model in a form for other people and programs. */
#include <errno.h>
#include <libgen.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/directory.h"
#include "core/base/file.h"
#include "infer/byte_progress.h"
#include "infer/commands.h"
#include "infer/export.h"
#include "infer/public_checkpoint.h"
#include "infer/verify.h"

static const char *const format_choices[] = {"safetensors", "public-pt", NULL};
static const char *const dtype_choices[] = {"auto", "fp32", "bf16", "fp16", NULL};

typedef struct export_options {
  char *model, *out;
  int32_t format, dtype; /* indices into format_choices, dtype_choices */
  int64_t shard_size;
  bool verify;
  char *device; /* on which verification predicts */
  int64_t threads;
} export_options;

#define SHARD_SIZE "5000000000"

static const hv_option options[] = {
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(export_options, model),
     .unit = "DIR",
     .doc = "Model directory, such as hvla-train writes to RUN/model."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(export_options, out),
     .unit = "DIR",
     .doc = "Directory to write, which must be new or empty."},
    {.key = "format",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(export_options, format),
     .fallback = "safetensors",
     .choices = format_choices,
     .doc =
         "safetensors: a model directory. public-pt: the folder of the public HybridVLA code, with one .pt file that "
         "torch.load reads with weights_only."},
    {.key = "dtype",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(export_options, dtype),
     .fallback = "auto",
     .choices = dtype_choices,
     .doc = "The dtype of floating-point tensors in the export, rounded to nearest even; auto: as they are stored."},
    {.key = "shard-size",
     .type = HV_OPTION_INT,
     .offset = offsetof(export_options, shard_size),
     .fallback = SHARD_SIZE,
     .min = 1,
     .max = 9e15,
     .unit = "BYTES",
     .doc = "If the tensors take more bytes than this, they are split over several files, with Hugging Face's index. "
            "Only with --format safetensors."},
    {.key = "verify",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(export_options, verify),
     .fallback = "false",
     .doc =
         "Read the export back and compare every tensor with the source. With --format safetensors also compare what "
         "both models predict from synthetic observations, in every mode that the model has."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     .offset = offsetof(export_options, device),
     .fallback = "cpu",
     .unit = "NAME",
     .doc = "Where --verify predicts, with --format safetensors: cpu (in fp32), or a device module (cuda, in bf16)."},
    HV_THREADS_OPTION(export_options),
};

enum { PUBLIC_PT = 1 }; /* of format_choices */

static const hv_dtype dtypes[] = {HV_F32, HV_F32, HV_BF16, HV_F16};

/* The absolute path, with links resolved; parts at its end may not exist yet. On the heap. */
static hv_status resolve(const char *path, char **out) {
  hv_status status = HV_OK;
  char *above = NULL, *parent = NULL, *whole = realpath(path, NULL);
  *out = NULL;
  if (!whole && errno == ENOENT && strcmp(path, ".") != 0) { /* "." is missing if the working directory was removed */
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

/* An export never overwrites anything. */
static hv_status check_empty(const char *path) {
  struct stat info;
  bool empty;
  if (lstat(path, &info) != 0) return HV_OK;
  HV_TRY(hv_error_context(hv_directory_is_empty(path, &empty), "--out"));
  return empty ? HV_OK : hv_error(HV_ERR_INPUT, "--out %s is not empty; a new or an empty directory is expected", path);
}

static hv_status check_out(const export_options *given) {
  char *model = NULL, *out = NULL;
  hv_status status = HV_OK;
  HV_CHECK(check_empty(given->out));
  HV_CHECK(resolve(given->model, &model));
  HV_CHECK(resolve(given->out, &out));
  size_t length = strlen(model);
  if (strncmp(out, model, length) == 0 && (out[length] == '/' || out[length] == '\0'))
    status = hv_error(HV_ERR_INPUT, "--out %s lies in the model directory; choose a place outside %s", given->out,
                      given->model);
done:
  free(model);
  free(out);
  return status;
}

static hv_status check_format(const export_options *given) {
  if (given->format != PUBLIC_PT || given->shard_size == strtoll(SHARD_SIZE, NULL, 10)) return HV_OK;
  return hv_error(HV_ERR_INPUT, "--shard-size works only with --format safetensors: public-pt is one .pt file");
}

static void count_bytes(void *progress, size_t bytes) {
  hv_byte_progress_add(progress, bytes);
}

static hv_status write_directory(const export_options *given, const hv_export_source *source, const hv_dtype *to) {
  hv_text card = {0};
  hv_byte_progress progress = hv_byte_progress_make("writing", hv_export_bytes(source->directory.tensors, to));
  hv_status status = hv_export_card(source, to, NULL, &card);
  if (!status) {
    hv_model_save what = {.model = &source->directory.model,
                          .carry = source->directory.tensors,
                          .dtype = to ? *to : HV_F32,
                          .convert_carried = to != NULL,
                          .shard_size = given->shard_size,
                          .tokenizer_path = source->tokenizer_path,
                          .statistics = source->statistics,
                          .card = hv_text_string(&card),
                          .progress = count_bytes,
                          .progress_context = &progress};
    status = hv_model_directory_save(given->out, &what, NULL);
  }
  hv_byte_progress_clear(&progress);
  hv_text_free(&card);
  return status;
}

static void report(const export_options *given, const hv_export_source *source, const hv_dtype *to, hv_text *out) {
  const hv_safetensors *tensors = source->directory.tensors;
  hv_text_add(out, "%s: %d tensors, %.2f MB, %s\n", given->out, hv_safetensors_count(tensors),
              1e-6 * hv_export_bytes(tensors, to), to ? hv_dtype_name(*to) : "in the dtypes they are stored in");
  hv_text_add(out, "%s", hv_text_string(&source->run.doubts));
  if (!source->run.config)
    hv_text_add(
        out, "the model lies in no run directory with a usable config.yaml: README.md does not say how it was trained, "
             "unless the model's own README.md does\n");
}

static hv_status verify_directory(const export_options *given, const hv_export_source *source, const hv_dtype *to,
                                  hv_text *out) {
  hv_safetensors *written;
  char *tokenizer = hv_model_directory_tokenizer(given->out);
  hv_verification what = {.before = given->model,
                          .after = given->out,
                          .statistics = source->statistics,
                          .device = given->device,
                          .threads = (int)given->threads};
  if (to && hv_export_narrows(source->directory.tensors, to)) what.tolerance = hv_verify_tolerance(*to);
  hv_status status = tokenizer ? hv_verify_copy(source->tokenizer_path, tokenizer) : hv_error_memory("a path");
  free(tokenizer);
  HV_TRY(status);
  HV_TRY(hv_verify_as_no(hv_safetensors_open(given->out, &written)));
  status = hv_verify_tensors(source->directory.tensors, written, to);
  hv_safetensors_close(written);
  return status ? status : hv_verify_predictions(&what, out);
}

static hv_status verification_failed(const export_options *given, hv_status status) {
  return hv_error_context(status, "verification failed (%s is kept for inspection)", given->out);
}

static hv_status export_directory(const export_options *given, const hv_export_source *source, const hv_dtype *to,
                                  hv_text *out) {
  HV_TRY(write_directory(given, source, to));
  report(given, source, to, out);
  if (!given->verify) return HV_OK;
  return verification_failed(given, verify_directory(given, source, to, out));
}

static hv_status verify_public(const export_options *given, const hv_public_checkpoint *checkpoint, double bytes,
                               hv_text *out) {
  hv_byte_progress progress = hv_byte_progress_make("verifying", bytes);
  hv_status status = hv_verify_as_no(hv_public_checkpoint_verify(checkpoint, given->out, count_bytes, &progress));
  hv_byte_progress_clear(&progress);
  if (!status) hv_text_add(out, "verified: every tensor equals the source's, in the dtype of the export, to the bit\n");
  return verification_failed(given, status);
}

static hv_status export_public(const export_options *given, const hv_export_source *source, const hv_dtype *to,
                               hv_text *out) {
  hv_public_checkpoint *checkpoint;
  double bytes = hv_export_bytes(source->directory.tensors, to);
  hv_byte_progress progress = hv_byte_progress_make("writing", bytes);
  HV_TRY(hv_public_checkpoint_open(source, to, &checkpoint));
  hv_status status = hv_public_checkpoint_write(checkpoint, given->out, count_bytes, &progress);
  hv_byte_progress_clear(&progress);
  if (!status) {
    const char *obstacles = hv_public_checkpoint_obstacles(checkpoint);
    report(given, source, to, out);
    if (*obstacles) hv_text_add(out, "not usable by the public code:\n%s", obstacles);
    if (strstr(given->out, "openvla"))
      hv_text_add(out, "the public code expects another format in a path that contains \"openvla\": rename %s\n",
                  given->out);
    if (given->verify) status = verify_public(given, checkpoint, bytes, out);
  }
  hv_public_checkpoint_close(checkpoint);
  return status;
}

static hv_status work(const void *values, hv_command_result *result) {
  const export_options *given = values;
  hv_text *out = &result->text;
  hv_export_source source = {0};
  const hv_dtype *to = given->dtype > 0 ? &dtypes[given->dtype] : NULL;
  hv_status status = HV_OK;
  HV_CHECK(check_format(given));
  HV_CHECK(check_out(given));
  HV_CHECK(hv_export_source_open(given->model, &source));
  status =
      given->format == PUBLIC_PT ? export_public(given, &source, to, out) : export_directory(given, &source, to, out);
done:
  hv_export_source_close(&source);
  return status;
}

const hv_command hv_command_export = {
    .name = "export",
    .summary = "Write a model to pass on: in another dtype or format, in several files, with a model card.",
    .help =
        "Writes a model directory, which hvla-infer and hvla-train read: config.json, the tensors in files of the\n"
        "safetensors library, tokenizer, statistics, and README.md, the model card; with --format public-pt the\n"
        "folder that only the public code reads. The card's facts about training come from the run directory that\n"
        "holds the model (config.yaml, metrics.jsonl); without one, the card says so or keeps what the model's own\n"
        "card says. The export is complete or absent and overwrites nothing: --out must be new, or an empty\n"
        "directory, such as a mounted disk. Without predictions to compare it needs a few megabytes of memory.\n"
        "\n"
        "--verify: predictions must be equal to the bit, unless the dtype loses precision: then they may differ by\n"
        "as much as the output says. Exit code 0; 1 if --verify finds a difference; 2 for any other error, such as\n"
        "a missing file or a value too large for the dtype.\n"
        "\n"
        "  hvla-infer export --model runs/lift/model --out lift-bf16 --dtype bf16 --verify\n"
        "  hvla-infer export --model runs/lift/model --out lift --shard-size 2000000000\n"
        "  hvla-infer export --model runs/lift/model --out lift-public --format public-pt --verify\n",
    .options = options,
    .num_options = sizeof options / sizeof *options,
    .values_size = sizeof(export_options),
    .work = work,
};
