/* The commands of hvla-infer, one file each: options, help and work. */
#ifndef HV_INFER_COMMANDS_H
#define HV_INFER_COMMANDS_H

#include "core/io/command.h"
#include "core/tensor/dtype.h"

extern const hv_command hv_command_predict, hv_command_bench, hv_command_export;

/* Choices of options, NULL-terminated. The values of hvla_mode, hvla_sampler and hvla_ar_condition are indices into
 * them. */
extern const char *const hv_mode_choices[], *const hv_sampler_choices[], *const hv_ar_condition_choices[],
                                                                             *const hv_dtype_choices[];

/* Options that several commands have, in a struct of type `type_` with fields of these names. */
#define HV_MODE_OPTION(type_, doc_)                                                                                    \
  {                                                                                                                    \
    .key = "mode", .type = HV_OPTION_ENUM, .offset = offsetof(type_, mode), .fallback = "auto",                        \
    .choices = hv_mode_choices, .doc = doc_                                                                            \
  }
#define HV_SAMPLER_OPTION(type_)                                                                                       \
  {                                                                                                                    \
    .key = "sampler", .type = HV_OPTION_ENUM, .offset = offsetof(type_, sampler), .fallback = "ddim",                  \
    .choices = hv_sampler_choices,                                                                                     \
    .doc = "How the diffusion head denoises: ddim takes --ddim-steps steps without new noise, ddpm every step of "     \
           "the schedule."                                                                                             \
  }
#define HV_DDIM_STEPS_OPTION(type_)                                                                                    \
  {                                                                                                                    \
    .key = "ddim-steps", .type = HV_OPTION_INT, .offset = offsetof(type_, ddim_steps), .fallback = "4", .min = 1,      \
    .max = 1000, .unit = "N", .doc = "Denoising steps of ddim."                                                        \
  }
#define HV_AR_CONDITION_OPTION(type_)                                                                                  \
  {                                                                                                                    \
    .key = "ar-condition", .type = HV_OPTION_ENUM, .offset = offsetof(type_, ar_condition), .fallback = "auto",        \
    .choices = hv_ar_condition_choices,                                                                                \
    .doc = "What action tokens attend to besides pictures, instruction and state: pure noise (auto), noise at a "      \
           "random timestep, or the denoised action (for which the diffusion head always runs first)."                 \
  }
#define HV_DEVICE_OPTION(type_)                                                                                        \
  {                                                                                                                    \
    .key = "device", .type = HV_OPTION_STRING, .offset = offsetof(type_, device), .fallback = "cpu", .unit = "NAME",   \
    .doc = "Where the model runs: cpu, or a device module (cuda)."                                                     \
  }
#define HV_DTYPE_OPTION(type_)                                                                                         \
  {                                                                                                                    \
    .key = "dtype", .type = HV_OPTION_ENUM, .offset = offsetof(type_, dtype), .fallback = "auto",                      \
    .choices = hv_dtype_choices, .elsewhere = HV_FP16_IS,                                                              \
    .doc = "Storage of parameters and activations; auto: fp32 on the CPU, bf16 elsewhere."                             \
  }
#define HV_THREADS_OPTION(type_)                                                                                       \
  {                                                                                                                    \
    .key = "threads", .type = HV_OPTION_INT, .offset = offsetof(type_, threads), .fallback = "0", .max = 4096,         \
    .unit = "N", .doc = "Threads of the CPU device; 0: OMP_NUM_THREADS, or one per processor."                         \
  }

#endif
