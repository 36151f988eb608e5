#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core/base/log.h"
#include "core/cpu/cpu.h"
#include "core/io/json.h"
#include "core/io/options.h"
#include "core/io/yaml.h"
#include "train/bench.h"
#include "train/check.h"
#include "train/config.h"
#include "train/interrupt.h"
#include "train/launch.h"
#include "train/run.h"

/* Exit codes of a run that a signal ended (interchange.md). */
enum { EXIT_INTERRUPTED = 130, EXIT_TERMINATED = 75 };

static const char *const dtypes[] = {"fp32", "bf16", NULL};
static const char *const objectives[] = {"hybrid", "diffusion", "autoregressive", "model", NULL};

/* The fields of all commands together; each command's table names its own. */
typedef struct arguments {
  char *config, *device, *model, *batch, *out;
  hv_string_list sets;
  bool resume, document, json, random_weights, optimizer;
  int32_t objective, dtype;
  int64_t steps, batch_size, threads;
  double learning_rate;
} arguments;

#define AT(field) .offset = offsetof(arguments, field)
#define CONFIG_OPTION                                                                                                  \
  { .key = "config", .type = HV_OPTION_PATH, AT(config), .unit = "FILE", .doc = "The run configuration, a YAML file." }
#define SET_OPTION                                                                                                     \
  {                                                                                                                    \
    .key = "set", .type = HV_OPTION_STRING_LIST, AT(sets), .fallback = "[]", .unit = "KEY=VALUE",                      \
    .doc = "Put this over the configuration's key; may be repeated."                                                   \
  }
#define THREADS_OPTION                                                                                                 \
  {                                                                                                                    \
    .key = "threads", .type = HV_OPTION_INT, AT(threads), .fallback = "0", .max = 4096, .unit = "N",                   \
    .doc = "Threads of the CPU device; 0: one a processor."                                                            \
  }

static const hv_option run_options[] = {
    CONFIG_OPTION,
    SET_OPTION,
    {.key = "resume",
     .type = HV_OPTION_BOOL,
     AT(resume),
     .fallback = "false",
     .doc = "Go on from the newest whole checkpoint of the run directory."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     AT(device),
     .fallback = "null",
     .unit = "NAME",
     .doc = "Where the model runs; wins over the configuration's `device`."},
};
static const hv_option check_options[] = {
    {.key = "model", .type = HV_OPTION_PATH, AT(model), .unit = "DIR", .doc = "Model directory."},
    {.key = "batch",
     .type = HV_OPTION_PATH,
     AT(batch),
     .unit = "FILE",
     .doc = "Safetensors with images, prompt_ids, state, actions, noise, timesteps and, optionally, action_mask."},
    {.key = "out", .type = HV_OPTION_PATH, AT(out), .unit = "FILE", .doc = "Safetensors that is written."},
    {.key = "objective",
     .type = HV_OPTION_ENUM,
     AT(objective),
     .fallback = "model",
     .choices = objectives,
     .doc = "Which losses; `model`: those that the model was trained with."},
    {.key = "steps",
     .type = HV_OPTION_INT,
     AT(steps),
     .fallback = "0",
     .max = 1e6,
     .unit = "N",
     .doc = "AdamW steps on the batch, after the first pass."},
    {.key = "lr",
     .type = HV_OPTION_FLOAT,
     AT(learning_rate),
     .fallback = "2e-5",
     .max = 1e3,
     .unit = "X",
     .doc = "Their learning rate."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     AT(device),
     .fallback = "cpu",
     .unit = "NAME",
     .doc = "Where the model runs."},
    {.key = "dtype",
     .type = HV_OPTION_ENUM,
     AT(dtype),
     .fallback = "fp32",
     .choices = dtypes,
     .doc = "Storage of parameters and activations."},
    THREADS_OPTION,
};
static const hv_option config_options[] = {
    {.key = "config",
     .type = HV_OPTION_PATH,
     AT(config),
     .fallback = "null",
     .unit = "FILE",
     .doc = "The run configuration to resolve and print."},
    SET_OPTION,
    {.key = "document",
     .type = HV_OPTION_BOOL,
     AT(document),
     .fallback = "false",
     .doc = "Print every key with its type, default and meaning as Markdown: docs/configuration.md."},
};
static const hv_option bench_options[] = {
    CONFIG_OPTION,
    SET_OPTION,
    {.key = "random-weights",
     .type = HV_OPTION_BOOL,
     AT(random_weights),
     .fallback = "false",
     .doc = "Required: a benchmark reads no weights, it makes them up."},
    {.key = "batch",
     .type = HV_OPTION_INT,
     AT(batch_size),
     .fallback = "0",
     .max = 1 << 20,
     .unit = "N",
     .doc = "Samples in a step; 0: the configuration's micro-batch."},
    {.key = "optimizer",
     .type = HV_OPTION_BOOL,
     AT(optimizer),
     .fallback = "false",
     .doc = "Update the parameters too; else forward and backward alone."},
    {.key = "steps",
     .type = HV_OPTION_INT,
     AT(steps),
     .fallback = "5",
     .min = 1,
     .max = 1e6,
     .unit = "N",
     .doc = "Steps to measure, after one that is not."},
    {.key = "device",
     .type = HV_OPTION_STRING,
     AT(device),
     .fallback = "null",
     .unit = "NAME",
     .doc = "Where the model runs; wins over the configuration's `device`."},
    {.key = "json",
     .type = HV_OPTION_BOOL,
     AT(json),
     .fallback = "false",
     .doc = "Print one JSON object and nothing else."},
};

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { COMMAND_RUN, COMMAND_CHECK, COMMAND_CONFIG, COMMAND_BENCH };
static const hv_command commands[] = {
    [COMMAND_RUN] =
        {.name = "run",
         .summary = "Train a model on demonstrations.",
         .help =
             "Makes a run directory (the configuration's `output`): config.yaml as resolved, metrics.jsonl,\n"
             "checkpoints/step-N/ to resume from, and model/, the newest model as hvla-infer reads it.\n\n"
             "  hvla-train run --config configs/lift-tiny.yaml\n"
             "  hvla-train run --config configs/lift-tiny.yaml --set optimizer.learning_rate=5e-4 --set output=runs/b\n"
             "  hvla-train run --config configs/lift-tiny.yaml --resume\n\n"
             "Ctrl-C and SIGTERM finish the step and write a checkpoint; the run then ends with exit code 130 or\n"
             "75 and goes on with --resume as if nothing had happened. A second Ctrl-C ends it at once.\n",
         .options = run_options,
         .num_options = COUNT(run_options)},
    [COMMAND_CHECK] =
        {.name = "check",
         .summary = "Write what a model makes of one batch: losses, outputs, gradients.",
         .help = "Reads a batch with every random draw in it and writes the losses, noise predictions, vision\n"
                 "features, image tokens and the gradient of every trained parameter (vision is frozen); with\n"
                 "--steps also the losses and the parameters of that many AdamW steps.\n\n"
                 "  hvla-train check --model runs/lift/model --batch batch.safetensors --out numbers.safetensors",
         .options = check_options,
         .num_options = COUNT(check_options)},
    [COMMAND_CONFIG] = {.name = "config",
                        .summary = "Print a configuration with its defaults filled in, or document every key.",
                        .help = "  hvla-train config --config configs/lift-tiny.yaml\n"
                                "  hvla-train config --document > docs/configuration.md",
                        .options = config_options,
                        .num_options = COUNT(config_options)},
    [COMMAND_BENCH] =
        {.name = "bench",
         .summary = "Measure how fast training steps run.",
         .help = "Runs steps on made-up weights and inputs and tells samples per second, milliseconds a step\n"
                 "and a stage, memory, and the speed of light: the time that the necessary matrix products\n"
                 "would take at the best rate measured in the same run, over the time taken. That rate is\n"
                 "the best of an 8192-cube product (a smaller one on slow devices) and of\n"
                 "the step's own shapes.\n\n"
                 "  hvla-train bench --config configs/bench-cpu.yaml --random-weights --optimizer --json",
         .options = bench_options,
         .num_options = COUNT(bench_options)},
};
static const hv_program program = {
    .name = "hvla-train",
    .summary = "Trains HybridVLA, a vision-language-action model, on robot demonstrations.",
    .commands = commands,
    .num_commands = COUNT(commands),
};

/* `name` may be NULL: the CPU. `index` says which card. */
static hv_status open_device(const char *name, int64_t threads, int32_t index, hv_device **out) {
  hv_device_options options = {.index = index, .threads = (int)threads};
  if (!name || strcmp(name, "cpu") == 0) return hv_cpu_device_open(&options, out);
  return hv_device_load(name, &options, out);
}

static hv_status load_config(const arguments *given, hv_train_config *config) {
  return hv_train_config_load(given->config, (const char *const *)given->sets.items, given->sets.count, config);
}

/* An error on one of several ranks ends them all: the others may not know of it. */
static void end_all_ranks(hv_comm *comm, hv_status status) {
  if (!comm || comm->size == 1) return;
  fprintf(stderr, "hvla-train: rank %d: %s\n", comm->rank, hv_status_message(status));
  hv_comm_abort(comm, hv_status_exit_code(status));
}

static hv_status command_run(const arguments *given, int *exit_code) {
  hv_status status = HV_OK;
  hv_train_config config = {0};
  hv_interrupt *interrupt = NULL;
  hv_device *device = NULL;
  hv_comm *comm = NULL;
  hv_launch launch;
  int signal_number = 0;
  HV_CHECK(load_config(given, &config));
  HV_CHECK(hv_train_config_check_run(&config));
  HV_CHECK(hv_interrupt_open(&interrupt));
  HV_CHECK(hv_launch_read(&launch));
  if (launch.rank > 0) hv_log_set_level(HV_LOG_WARNING);
  HV_CHECK(open_device(given->device ? given->device : config.device, config.threads, launch.local_rank, &device));
  HV_CHECK(hv_launch_open_comm(&launch, device, config.parallel.timeout, &comm));
  hv_run_options options = {.comm = comm, .resume = given->resume, .interrupt = interrupt};
  HV_CHECK(hv_run(&config, device, &options, &signal_number));
  if (signal_number == 0) {
    hv_log_info("done: %s/model", config.output);
  } else {
    hv_log_info("stopped by %s; the checkpoint is written, --resume goes on",
                signal_number == SIGINT ? "Ctrl-C" : "SIGTERM");
    *exit_code = signal_number == SIGINT ? EXIT_INTERRUPTED : EXIT_TERMINATED;
  }
done:
  if (status) end_all_ranks(comm, status);
  hv_comm_close(comm);
  hv_device_close(device);
  hv_interrupt_close(interrupt);
  hv_train_config_free(&config);
  return status;
}

static hv_status command_check(const arguments *given) {
  hv_device *device;
  hv_check_options options = {.model = given->model,
                              .batch = given->batch,
                              .out = given->out,
                              .objective = objectives[given->objective + 1] ? given->objective : -1,
                              .dtype = given->dtype == 0 ? HV_F32 : HV_BF16,
                              .steps = given->steps,
                              .learning_rate = given->learning_rate};
  HV_TRY(open_device(given->device, given->threads, 0, &device));
  hv_status status = hv_check(&options, device);
  hv_device_close(device);
  return status;
}

static hv_status command_config(const arguments *given) {
  hv_status status = HV_OK;
  hv_train_config config = {0};
  json_t *resolved = NULL;
  hv_text text = {0};
  if (given->document) {
    hv_train_config_document(&text);
  } else if (given->config) {
    HV_CHECK(load_config(given, &config));
    HV_CHECK(hv_train_config_resolve(&config, &resolved));
    HV_CHECK(hv_yaml_format(resolved, &text));
  } else {
    status = hv_error(HV_ERR_INPUT, "give --config FILE to see a resolved configuration, or --document");
    goto done;
  }
  if (text.failed) {
    status = hv_error_memory("the text");
    goto done;
  }
  fputs(hv_text_string(&text), stdout);
done:
  json_decref(resolved);
  hv_text_free(&text);
  hv_train_config_free(&config);
  return status;
}

static void print_bench(const json_t *result) {
  const json_t *ms = json_object_get(result, "ms");
  printf("%.2f samples/s  step %.1f ms (%.1f to %.1f)  %.0f tokens a sample\n",
         json_number_value(json_object_get(result, "samples_per_s")), json_number_value(json_object_get(ms, "median")),
         json_number_value(json_object_get(ms, "min")), json_number_value(json_object_get(ms, "max")),
         json_number_value(json_object_get(result, "tokens_per_sample")));
  printf("%.3f TFLOP/s of necessary work, %.0f %% of the speed of light, %.2f GB\n",
         json_number_value(json_object_get(result, "model_tflops")),
         100.0 * json_number_value(json_object_get(result, "speed_of_light")),
         1e-9 * json_number_value(json_object_get(result, "peak_memory_bytes")));
  const char *stage;
  const json_t *value;
  json_object_foreach(json_object_get(result, "stages"), stage, value) {
    printf("  %-10s %8.1f ms\n", stage, json_number_value(value));
  }
}

static hv_status command_bench(const arguments *given) {
  hv_status status = HV_OK;
  hv_train_config config = {0};
  hv_device *device = NULL;
  json_t *result = NULL;
  hv_text text = {0};
  hv_bench_options options = {.batch = given->batch_size, .steps = given->steps, .optimizer = given->optimizer};
  if (!given->random_weights) return hv_error(HV_ERR_INPUT, "bench needs --random-weights: it reads no weights");
  HV_CHECK(load_config(given, &config));
  HV_CHECK(open_device(given->device ? given->device : config.device, config.threads, 0, &device));
  HV_CHECK(hv_bench(&config, device, &options, &result));
  if (given->json) {
    HV_CHECK(hv_json_format_line(result, &text));
    puts(hv_text_string(&text));
  } else {
    print_bench(result);
  }
done:
  hv_text_free(&text);
  json_decref(result);
  hv_device_close(device);
  hv_train_config_free(&config);
  return status;
}

static void print_help(size_t command) {
  hv_text text = {0};
  if (command == program.num_commands) {
    hv_program_help(&program, &text);
  } else {
    hv_command_help(&program, &commands[command], &text);
    if (command == COMMAND_RUN) hv_train_config_list(&text);
  }
  fputs(hv_text_string(&text), stdout);
  hv_text_free(&text);
}

static hv_status dispatch(int argc, const char *const *argv, int *exit_code) {
  size_t command;
  hv_request request;
  arguments given = {0};
  HV_TRY(hv_program_select(&program, argc, argv, &command, &request));
  if (request == HV_REQUEST_RUN) HV_TRY(hv_command_parse(&program, &commands[command], argc, argv, &given, &request));
  hv_status status = HV_OK;
  if (request == HV_REQUEST_HELP) {
    print_help(command);
  } else if (request == HV_REQUEST_VERSION) {
    printf("%s %s\n", program.name, HVLA_VERSION);
  } else if (command == COMMAND_RUN) {
    status = command_run(&given, exit_code);
  } else if (command == COMMAND_CHECK) {
    status = command_check(&given);
  } else if (command == COMMAND_CONFIG) {
    status = command_config(&given);
  } else {
    status = command_bench(&given);
  }
  if (command < program.num_commands) hv_command_free(&commands[command], &given);
  return status;
}

int main(int argc, char **argv) {
  /* A file size limit then shows as a failed write, with its message, instead of ending the process. */
  signal(SIGXFSZ, SIG_IGN);
  int exit_code = 0;
  hv_status status = dispatch(argc, (const char *const *)argv, &exit_code);
  if (status) {
    fprintf(stderr, "hvla-train: %s\n", hv_status_message(status));
    exit_code = hv_status_exit_code(status);
    hv_status_free(status);
  }
  return exit_code;
}
