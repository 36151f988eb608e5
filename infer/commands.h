/* The commands of hvla-infer. Each makes the text that the program prints on standard output. */
#ifndef HV_INFER_COMMANDS_H
#define HV_INFER_COMMANDS_H

#include "core/base/text.h"
#include "core/io/options.h"

typedef struct hv_predict_options {
  char *model, *instruction;
  hv_string_list images;               /* "camera=file" */
  char *state, *unnorm_key, *noise;    /* NULL: not given */
  int32_t mode, sampler, ar_condition; /* hvla_mode, hvla_sampler, hvla_ar_condition */
  int64_t ddim_steps, seed, threads, max_prompt;
  double theta;
  char *device;
  int32_t dtype; /* index into hv_dtype_choices */
  bool json;
} hv_predict_options;

typedef struct hv_bench_options {
  char *config, *model; /* one of them */
  bool random_weights, load;
  int32_t mode, sampler, ar_condition; /* as above */
  int64_t ddim_steps, prompt, repeat, threads;
  char *device;
  int32_t dtype;
  bool json;
} hv_bench_options;

typedef struct hv_export_options {
  char *model, *out;
  int32_t format, dtype; /* indices into hv_export_format_choices, hv_export_dtype_choices */
  int64_t shard_size;
  bool verify;
  char *device; /* that verification predicts on */
  int64_t threads;
} hv_export_options;

/* Choices of the enumerations above, ending in NULL. */
extern const char *const hv_mode_choices[], *const hv_sampler_choices[], *const hv_ar_condition_choices[],
                                                                             *const hv_dtype_choices[];

extern const char *const hv_export_format_choices[], *const hv_export_dtype_choices[];

HV_NODISCARD hv_status hv_command_predict(const hv_predict_options *options, hv_text *out);
HV_NODISCARD hv_status hv_command_bench(const hv_bench_options *options, hv_text *out);
HV_NODISCARD hv_status hv_command_export(const hv_export_options *options, hv_text *out);

#endif
