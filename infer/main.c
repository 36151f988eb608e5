/* hvla-infer: predictions and exports from the command line. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "core/base/log.h"
#include "infer/commands.h"

/* One command's options, and what several commands say alike. */
typedef union arguments {
  hv_predict_options predict;
  hv_bench_options bench;
  hv_export_options export;
} arguments;

#define MODE_OPTION(type_, doc_)                                                                                       \
  {                                                                                                                    \
    .key = "mode", .type = HV_OPTION_ENUM, .offset = offsetof(type_, mode), .fallback = "auto",                        \
    .choices = hv_mode_choices, .doc = doc_                                                                            \
  }
#define SAMPLER_OPTION(type_)                                                                                          \
  {                                                                                                                    \
    .key = "sampler", .type = HV_OPTION_ENUM, .offset = offsetof(type_, sampler), .fallback = "ddim",                  \
    .choices = hv_sampler_choices,                                                                                     \
    .doc = "How the diffusion head denoises: ddim in --ddim-steps steps without new noise, or ddpm through all "       \
           "steps of the schedule."                                                                                    \
  }
#define DDIM_STEPS_OPTION(type_)                                                                                       \
  {                                                                                                                    \
    .key = "ddim-steps", .type = HV_OPTION_INT, .offset = offsetof(type_, ddim_steps), .fallback = "4", .min = 1,      \
    .max = 1000, .unit = "N", .doc = "Denoising steps of ddim."                                                        \
  }
#define AR_CONDITION_OPTION(type_)                                                                                     \
  {                                                                                                                    \
    .key = "ar-condition", .type = HV_OPTION_ENUM, .offset = offsetof(type_, ar_condition), .fallback = "auto",        \
    .choices = hv_ar_condition_choices,                                                                                \
    .doc = "What action tokens attend to besides pictures, words and state: pure noise (auto), noise at a random "     \
           "timestep, or the denoised action (then the diffusion head always runs first)."                             \
  }
#define DEVICE_OPTION(type_)                                                                                           \
  {                                                                                                                    \
    .key = "device", .type = HV_OPTION_STRING, .offset = offsetof(type_, device), .fallback = "cpu", .unit = "NAME",   \
    .doc = "Where the model runs: cpu, or a device module (cuda)."                                                     \
  }
#define DTYPE_OPTION(type_)                                                                                            \
  {                                                                                                                    \
    .key = "dtype", .type = HV_OPTION_ENUM, .offset = offsetof(type_, dtype), .fallback = "auto",                      \
    .choices = hv_dtype_choices,                                                                                       \
    .doc = "What weights and activations are stored in; auto: fp32 on the CPU, bf16 elsewhere."                        \
  }
#define THREADS_OPTION(type_)                                                                                          \
  {                                                                                                                    \
    .key = "threads", .type = HV_OPTION_INT, .offset = offsetof(type_, threads), .fallback = "0", .max = 4096,         \
    .unit = "N", .doc = "Threads of the CPU; 0: as many as there are processors."                                      \
  }

static const hv_option predict_table[] = {
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_predict_options, model),
     .unit = "DIR",
     .doc = "The model directory: what hvla-train writes to RUN/model."},
    {.key = "image",
     .type = HV_OPTION_STRING_LIST,
     .offset = offsetof(hv_predict_options, images),
     .fallback = "[]",
     .unit = "CAMERA=FILE",
     .doc = "A camera's picture, PNG or JPEG of any size; once for every camera of the model."},
    {.key = "instruction",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_predict_options, instruction),
     .unit = "TEXT",
     .doc = "What the robot should do."},
    {.key = "state",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_predict_options, state),
     .fallback = "null",
     .unit = "V1,V2,...",
     .doc = "The robot's state in its own units. Not for a model without state."},
    {.key = "unnorm-key",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_predict_options, unnorm_key),
     .fallback = "null",
     .unit = "KEY",
     .doc = "The data set whose statistics scale state and action. May be left out where the model has just one."},
    MODE_OPTION(hv_predict_options, "Which head acts. ensemble: the mean of both where the tokens' mean confidence is "
                                    "above theta, else the diffusion head. auto: ensemble, or the only head that the "
                                    "model has."),
    SAMPLER_OPTION(hv_predict_options),
    DDIM_STEPS_OPTION(hv_predict_options),
    {.key = "theta",
     .type = HV_OPTION_FLOAT,
     .offset = offsetof(hv_predict_options, theta),
     .fallback = "0.96",
     .unit = "C",
     .doc = "The ensemble's threshold."},
    AR_CONDITION_OPTION(hv_predict_options),
    {.key = "seed",
     .type = HV_OPTION_INT,
     .offset = offsetof(hv_predict_options, seed),
     .fallback = "0",
     .max = 9e15,
     .unit = "N",
     .doc = "Of the random draws; the same seed gives the same action."},
    {.key = "noise",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_predict_options, noise),
     .fallback = "null",
     .unit = "FILE",
     .doc = "Draws in a safetensors file instead: noise F32 [H, A], ar_noise F32 [H, A], ar_timestep I32 [1], "
            "step_noise F32 [T, H, A]. What it lacks is drawn from the seed."},
    DEVICE_OPTION(hv_predict_options),
    DTYPE_OPTION(hv_predict_options),
    THREADS_OPTION(hv_predict_options),
    {.key = "max-prompt",
     .type = HV_OPTION_INT,
     .offset = offsetof(hv_predict_options, max_prompt),
     .fallback = "512",
     .min = 1,
     .max = 65536,
     .unit = "N",
     .doc = "Room for this many tokens of instruction and prompt."},
    {.key = "json",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_predict_options, json),
     .fallback = "false",
     .doc = "Print one JSON object instead of the table."},
};

static const hv_option bench_table[] = {
    {.key = "config",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_bench_options, config),
     .fallback = "null",
     .unit = "FILE",
     .doc = "A run configuration; the model under its key `model` is measured. Needs --random-weights."},
    {.key = "random-weights",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_bench_options, random_weights),
     .fallback = "false",
     .doc = "Random values for the weights: the time is the same."},
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_bench_options, model),
     .fallback = "null",
     .unit = "DIR",
     .doc = "A model directory, instead of --config."},
    {.key = "load",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_bench_options, load),
     .fallback = "false",
     .doc = "Measure loading --model instead of predicting: beside a plain sequential read of the same files, both "
            "with the files dropped from the system's cache first."},
    MODE_OPTION(hv_bench_options, "Which heads run; auto: all that the model has."),
    SAMPLER_OPTION(hv_bench_options),
    DDIM_STEPS_OPTION(hv_bench_options),
    AR_CONDITION_OPTION(hv_bench_options),
    {.key = "prompt",
     .type = HV_OPTION_INT,
     .offset = offsetof(hv_bench_options, prompt),
     .fallback = "26",
     .min = 1,
     .max = 65536,
     .unit = "N",
     .doc = "Tokens of the prompt behind <s>."},
    {.key = "repeat",
     .type = HV_OPTION_INT,
     .offset = offsetof(hv_bench_options, repeat),
     .fallback = "10",
     .min = 1,
     .max = 1e6,
     .unit = "N",
     .doc = "Predictions that are timed, after two that are not; with --load, how often the model is loaded."},
    DEVICE_OPTION(hv_bench_options),
    DTYPE_OPTION(hv_bench_options),
    THREADS_OPTION(hv_bench_options),
    {.key = "json",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_bench_options, json),
     .fallback = "false",
     .doc = "Print one JSON object instead of the table."},
};

static const hv_option export_table[] = {
    {.key = "model",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_export_options, model),
     .unit = "DIR",
     .doc = "The model directory: what hvla-train writes to RUN/model."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_export_options, out),
     .unit = "DIR",
     .doc = "Where the export goes: a new or an empty directory."},
    {.key = "format",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(hv_export_options, format),
     .fallback = "safetensors",
     .choices = hv_export_format_choices,
     .doc =
         "safetensors: a model directory. public-pt: the folder of the public HybridVLA code, with one .pt file that "
         "torch.load reads with weights_only."},
    {.key = "dtype",
     .type = HV_OPTION_ENUM,
     .offset = offsetof(hv_export_options, dtype),
     .fallback = "auto",
     .choices = hv_export_dtype_choices,
     .doc = "What floating-point tensors are written in, rounded to nearest even; auto: as they are stored."},
    {.key = "shard-size",
     .type = HV_OPTION_INT,
     .offset = offsetof(hv_export_options, shard_size),
     .fallback = "5000000000",
     .min = 1,
     .max = 9e15,
     .unit = "BYTES",
     .doc = "More tensors than this are spread over several files, with Hugging Face's index. Of the format "
            "safetensors."},
    {.key = "verify",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_export_options, verify),
     .fallback = "false",
     .doc =
         "Read the export back and compare every tensor; of the format safetensors also what both models predict for "
         "made-up observations in every mode that the model has."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_export_options, device),
     .fallback = "cpu",
     .unit = "NAME",
     .doc = "Where --verify predicts: cpu (in fp32), or a device module (cuda, in bf16)."},
    THREADS_OPTION(hv_export_options),
};

static const hv_command commands[] = {
    {.name = "predict",
     .summary = "one action from pictures, an instruction and the robot's state",
     .help = "Prints the action in the robot's own units, one row for each action step, and beside it what each head\n"
             "says. Cameras and their names, the width of the state and the keys of the statistics are the model's;\n"
             "what does not fit is refused with a message that lists them. Exit code 0, or 2 for wrong input.\n"
             "\n"
             "  hvla-infer predict --model runs/lift/model --image front=front.png \\\n"
             "    --instruction \"lift the cube\" --state 0.1,0.2,0.9,0,0,0,1,0.02,-0.02\n"
             "  hvla-infer predict … --mode diffusion --ddim-steps 10 --seed 7\n"
             "  hvla-infer predict … --json | jq .action\n",
     .options = predict_table,
     .num_options = sizeof predict_table / sizeof *predict_table},
    {.name = "bench",
     .summary = "how long a prediction takes, by stages, and how near that is to the machine's best",
     .help =
         "\"Speed of light\" is the time that reading the weights and multiplying would take at the rates measured\n"
         "in the same run, over the time that a prediction takes: 1 is the end of what this machine can do.\n"
         "Stages: image encoders; the pass over the prefix, which holds the first step of each head; later\n"
         "denoising steps, with token steps beside them; the token steps that are left.\n"
         "\n"
         "  hvla-infer bench --config configs/bench-cpu.yaml --random-weights\n"
         "  hvla-infer bench --model runs/lift/model --mode diffusion --json\n"
         "  hvla-infer bench --model runs/lift/model --load --repeat 5\n",
     .options = bench_table,
     .num_options = sizeof bench_table / sizeof *bench_table},
    {.name = "export",
     .summary = "a model for others: another dtype, files of a given size, a card that tells how it was trained",
     .help =
         "Writes a directory that hvla-infer, hvla-train and Hugging Face's loaders read: config.json, the tensors,\n"
         "tokenizer, statistics, and README.md, the card. What the card tells of training comes from the run\n"
         "directory that holds the model (config.yaml, metrics.jsonl); where there is none, it says so. The export\n"
         "is complete or absent, needs no more memory than a few tensors, and takes the place of nothing. Exit\n"
         "code 0, 1 where --verify finds a difference, or 2 for wrong input: parts that are missing, a value too\n"
         "large for fp16. Predictions must be equal to the bit, unless the dtype loses digits: then they may differ\n"
         "by as much as the output says.\n"
         "\n"
         "  hvla-infer export --model runs/lift/model --out lift-bf16 --dtype bf16 --verify\n"
         "  hvla-infer export --model runs/lift/model --out lift --shard-size 2000000000\n"
         "  hvla-infer export --model runs/lift/model --out lift-public --format public-pt --verify\n",
     .options = export_table,
     .num_options = sizeof export_table / sizeof *export_table},
};

static const hv_program program = {
    .name = "hvla-infer",
    .summary = "predicts robot actions with a HybridVLA model, measures how fast, and exports models.",
    .commands = commands,
    .num_commands = sizeof commands / sizeof *commands,
};

static hv_status make_help(size_t command, hv_text *out) {
  if (command < program.num_commands) {
    hv_command_help(&program, &commands[command], out);
  } else {
    hv_program_help(&program, out);
  }
  return out->failed ? hv_error_memory("a help text") : HV_OK;
}

static hv_status run_command(size_t command, const arguments *values, hv_text *out) {
  switch (command) {
  case 0: return hv_command_predict(&values->predict, out);
  case 1: return hv_command_bench(&values->bench, out);
  default: return hv_command_export(&values->export, out);
  }
}

/* What the command line asks for, as text for standard output. */
static hv_status serve(int argc, const char *const *argv, hv_text *out) {
  size_t command;
  hv_request request;
  HV_TRY(hv_program_select(&program, argc, argv, &command, &request));
  if (request == HV_REQUEST_HELP) return make_help(command, out);
  if (request == HV_REQUEST_VERSION) {
    hv_text_add(out, "hvla-infer %s\n", HVLA_VERSION);
    return HV_OK;
  }
  arguments values;
  HV_TRY(hv_command_parse(&program, &commands[command], argc, argv, &values, &request));
  if (request == HV_REQUEST_HELP) return make_help(command, out);
  hv_status status = run_command(command, &values, out);
  hv_command_free(&commands[command], &values);
  return status;
}

static hv_status print(const hv_text *text) {
  if (fwrite(hv_text_string(text), 1, text->length, stdout) != text->length || fflush(stdout) != 0)
    return hv_error_errno(errno, "cannot write to standard output");
  return HV_OK;
}

int main(int argc, char **argv) {
  hv_text out = {0};
  hv_status status = serve(argc, (const char *const *)argv, &out);
  if (!status) status = print(&out);
  int code = hv_status_exit_code(status);
  if (status) hv_log_error("hvla-infer: %s", hv_status_message(status));
  hv_status_free(status);
  hv_text_free(&out);
  return code;
}
