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
     .doc = "The checkpoint to take the parameters from; -1: the newest that is whole."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(model_options, out),
     .unit = "DIR",
     .doc = "Model directory that is written; it must not be there yet."},
};

static hv_status work(const void *values, hv_command_result *out) {
  const model_options *given = values;
  int64_t step = given->step;
  if (hv_file_exists(given->out)) {
    return hv_error(HV_ERR_INPUT, "%s is there already; --out names a directory that is made", given->out);
  }
  HV_TRY(hv_run_model_save(given->run, &step, given->out));
  hv_text_add(&out->text, "%s: the model of step %lld\n", given->out, (long long)step);
  return HV_OK;
}

const hv_command hv_command_model = {
    .name = "model",
    .summary = "Write the model of a checkpoint as a directory that hvla-infer reads.",
    .help = "Needs nothing but the run directory: no data, no device, however many ranks wrote the\n"
            "checkpoint. The run may be going on. All but the parameters is taken from its model/, which\n"
            "is there with its first checkpoint.\n\n"
            "  hvla-train model --run runs/lift --out lift-newest\n"
            "  hvla-train model --run runs/lift --step 5000 --out lift-5000\n",
    .options = options,
    .num_options = sizeof options / sizeof options[0],
    .values_size = sizeof(model_options),
    .work = work,
};
