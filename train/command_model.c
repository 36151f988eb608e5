#include <stddef.h>

#include "core/base/file.h"
#include "train/commands.h"
#include "train/run/run_model.h"

typedef struct model_options {
  char *run, *out;
  int64_t step;
} model_options;

static const hv_option options[] = {
    {.key = "run",
     .type = HV_OPTION_PATH,
     .offset = offsetof(model_options, run),
     .unit = "DIR",
     .doc = "Run directory."},
    {.key = "step",
     .type = HV_OPTION_INT,
     .offset = offsetof(model_options, step),
     .fallback = "-1",
     .min = -1,
     .max = 9e15,
     .unit = "N",
     .doc = "Step of the checkpoint to take the parameters from; -1: the newest undamaged one."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(model_options, out),
     .unit = "DIR",
     .doc = "Model directory to write; it must not exist yet."},
};

static hv_status work(const void *values, hv_command_result *out) {
  const model_options *given = values;
  int64_t step = given->step;
  if (hv_file_exists(given->out)) {
    return hv_error(HV_ERR_INPUT, "%s exists already; --out must name a directory that does not exist yet", given->out);
  }
  HV_TRY(hv_run_model_save(given->run, &step, given->out));
  hv_text_add(&out->text, "%s: the model of step %lld\n", given->out, (long long)step);
  return HV_OK;
}

const hv_command hv_command_model = {
    .name = "model",
    .summary = "Write the model of a checkpoint as a directory that hvla-infer reads.",
    .help = "Needs only the run directory: no data and no device, whatever number of ranks wrote the\n"
            "checkpoint. The run may still be going on. Everything except the parameters is taken from the\n"
            "run's model/, which its first checkpoint writes.\n\n"
            "  hvla-train model --run runs/lift --out lift-newest\n"
            "  hvla-train model --run runs/lift --step 5000 --out lift-5000\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(model_options),
    .work = work,
};
