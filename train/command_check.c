#include <stddef.h>

#include "core/tensor/nan_watch.h"
#include "train/check.h"
#include "train/commands.h"
#include "train/device.h"

static const char *const dtypes[] = {"fp32", "bf16", NULL};
static const char *const objectives[] = {"hybrid", "diffusion", "autoregressive", "model", NULL};

typedef struct check_options {
  char *model, *batch, *out, *device;
  int32_t objective, dtype;
  int64_t steps, threads;
  double learning_rate;
  bool debug_nan;
} check_options;

static const hv_option options[] = {
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(check_options, model),
     .unit = "DIR",
     .doc = "Model directory, such as hvla-train writes to RUN/model."},
    {.key = "batch",
     .type = HV_OPTION_PATH,
     .offset = offsetof(check_options, batch),
     .unit = "FILE",
     .doc = "Safetensors file with images, prompt_ids, state, actions, noise, timesteps and, optionally, action_mask."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(check_options, out),
     .unit = "FILE",
     .doc = "Safetensors file to write."},
    {.key = "objective",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(check_options, objective),
     .fallback = "model",
     .choices = objectives,
     .doc = "Losses to compute; `model`: those that the model was trained with."},
    {.key = "steps",
     .type = HV_OPTION_INT,
     .offset = offsetof(check_options, steps),
     .fallback = "0",
     .max = 1e6,
     .unit = "N",
     .doc = "AdamW steps to make on the batch after the first pass."},
    {.key = "lr",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(check_options, learning_rate),
     .fallback = "2e-5",
     .max = 1e3,
     .unit = "X",
     .doc = "Learning rate of these steps."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     .offset = offsetof(check_options, device),
     .fallback = "cpu",
     .unit = "NAME",
     .doc = "Where the model runs: cpu, or a device module (cuda)."},
    {.key = "dtype",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(check_options, dtype),
     .fallback = "fp32",
     .choices = dtypes,
     .elsewhere = HV_FP16_IS,
     .doc = "Storage of parameters and activations."},
    {.key = "debug-nan",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(check_options, debug_nan),
     .fallback = "false",
     .doc = "Check the parameters and then every result, and stop at the first that is not finite, naming the layer "
            "that made it. Slow."},
    {.key = "threads",
     .type = HV_OPTION_INT,
     .offset = offsetof(check_options, threads),
     .fallback = "0",
     .max = 4096,
     .unit = "N",
     .doc = "Threads of the CPU device; 0: OMP_NUM_THREADS, or one per processor."},
};

static hv_status work(const void *values, hv_command_result *out) {
  const check_options *given = values;
  (void)out;
  hv_device *device;
  hv_check_options what = {.model = given->model,
                           .batch = given->batch,
                           .out = given->out,
                           .objective = objectives[given->objective + 1] ? given->objective : -1,
                           .dtype = given->dtype == 0 ? HV_F32 : HV_BF16,
                           .steps = given->steps,
                           .learning_rate = given->learning_rate};
  HV_TRY(hv_train_open_device(given->device, given->threads, 0, &device));
  hv_nan_watch *nan_watch = NULL;
  hv_status status = given->debug_nan ? hv_nan_watch_open(device, &nan_watch) : HV_OK;
  if (!status) status = hv_check(&what, device);
  hv_nan_watch_close(nan_watch);
  hv_device_close(device);
  return status;
}

const hv_command hv_command_check = {
    .name = "check",
    .summary = "Write a model's losses, outputs and gradients on one batch.",
    .help = "Reads a batch that contains every random draw, and writes the losses, noise predictions, vision\n"
            "features, image tokens and the gradient of every trained parameter (vision is frozen); with\n"
            "--steps also the loss of each of that many AdamW steps, and the parameters after the last.\n\n"
            "  hvla-train check --model runs/lift/model --batch batch.safetensors --out numbers.safetensors\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(check_options),
    .work = work,
};
