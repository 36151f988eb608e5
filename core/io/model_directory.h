/* A model directory: config.json, model.safetensors (or shards with an index), tokenizer.model and
 * dataset_statistics.json. Read into parameters; written as a whole, and swapped in place of an older one. */
#ifndef HV_IO_MODEL_DIRECTORY_H
#define HV_IO_MODEL_DIRECTORY_H

#include "core/base/directory.h"
#include "core/base/text.h"
#include "core/io/model_config.h"
#include "core/io/safetensors.h"
#include "core/nn/params.h"

typedef struct hv_model_directory {
  char *path;              /* owned */
  hv_model_config model;   /* owned; patch_bias and class_position are set by what tensors there are */
  hv_safetensors *tensors; /* owned */
} hv_model_directory;

HV_NODISCARD hv_status hv_model_directory_open(const char *path, hv_model_directory *out);
void hv_model_directory_close(hv_model_directory *directory); /* leaves it empty */

/* Paths inside it, on the heap; NULL without memory. The files need not exist. */
char *hv_model_directory_tokenizer(const char *path);
char *hv_model_directory_statistics(const char *path);

/* Checks that the file holds every declared parameter: missing tensors, wrong shapes and dtypes that are not floating
 * point are all listed in one error. */
HV_NODISCARD hv_status hv_model_directory_check(const hv_model_directory *directory, const hv_params *params);

/* Fills every (allocated) parameter from the file, or none if the check above fails. Tensors that are no parameters are
 * listed in `unexpected`, one a line, if it is not NULL; except the unused ones of published vision towers
 * (hv_vision_is_unused). */
HV_NODISCARD hv_status hv_model_directory_fill(const hv_model_directory *directory, hv_params *params,
                                               hv_stream *stream, hv_text *unexpected);

/* The same, except for the parameters that are marked in `apart` [hv_params_count]: those may be missing or of another
 * shape, and the caller fills them. */
HV_NODISCARD hv_status hv_model_directory_fill_others(const hv_model_directory *directory, hv_params *params,
                                                      const bool *apart, hv_stream *stream, hv_text *unexpected);

/* The content of a model directory to write: parameters, the tensors of another file, or both. */
typedef struct hv_model_save {
  const hv_model_config *model;
  const hv_params *params; /* NULL: none, the tensors are those of `carry` */
  /* Reads a whole parameter into `values`, in `dtype`; `params` then only tells names and shapes. NULL: the values are
   * those of `params`. */
  hv_status (*read)(void *source, hv_param_id id, void *values);
  void *source;
  const hv_safetensors *carry; /* its tensors that are not parameters are written too; NULL: none */
  hv_dtype dtype;              /* of the parameters in the file: HV_F32, HV_BF16 or HV_F16 */
  bool convert_carried; /* floating-point tensors of `carry` are converted to `dtype` too; else they stay as they are */
  int64_t shard_size;   /* bytes of tensors in a file, more are spread over several; 0: one file */
  const char *tokenizer_path;                    /* copied as tokenizer.model; NULL: none */
  const json_t *statistics;                      /* the whole dataset_statistics.json; NULL: none */
  const char *card;                              /* the text of README.md; NULL: none */
  hv_leftover leftover;                          /* what is done about a `path`.partial that is there */
  void (*progress)(void *context, size_t bytes); /* called as tensors are written; NULL: not */
  void *progress_context;
} hv_model_save;

/* Writes a complete model directory as hv_write_directory does: readers see the old or the new; after an error the old
 * stands. Waits for the stream. */
HV_NODISCARD hv_status hv_model_directory_save(const char *path, const hv_model_save *what, hv_stream *stream);

#endif
