/* hvla-data: what is in files of demonstrations. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "core/base/log.h"
#include "data/commands.h"

static const hv_option stats_table[] = {
    {.key = "key",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_stats_options, key),
     .fallback = "null",
     .unit = "NAME",
     .doc = "One entry over all files together, under this name. Without it every file is an entry of its own, under "
            "its name without folder and ending."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_stats_options, out),
     .fallback = "null",
     .unit = "FILE",
     .doc = "Write here instead of to standard output. Entries of other keys in an existing file stay."},
    {.key = "state-keys",
     .type = HV_OPTION_STRING_LIST,
     .offset = offsetof(hv_stats_options, state_keys),
     .fallback = "[]",
     .unit = "A,B,...",
     .doc = "Observations that make the robot's state, in this order. By default each robot's eef_pos, eef_quat and "
            "gripper_qpos, as far as the file has them."},
    {.key = "split",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_stats_options, split),
     .fallback = "null",
     .unit = "NAME",
     .doc = "Only the episodes of this split (robomimic: a filter under /mask). By default all episodes."},
    {.key = "gripper",
     .type = HV_OPTION_INT_LIST,
     .offset = offsetof(hv_stats_options, gripper),
     .fallback = "[]",
     .max = 4095,
     .unit = "[I,...]",
     .doc = "Action dimensions that are passed through unscaled (mask false). By default dimension 6, and 13 of two "
            "arms, where the data hold 0 and 1 and nothing else."},
};

static const hv_option inspect_table[] = {
    {.key = "json",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_inspect_options, json),
     .fallback = "false",
     .doc = "Print one JSON object instead of the table."},
    {.key = "picture",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_inspect_options, picture),
     .fallback = "null",
     .unit = "FILE.png",
     .doc = "Write a picture with frames of the first episode, a row a camera: are they upright, are the colours "
            "right?"},
};

static const hv_option frame_table[] = {
    {.key = "episode",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_frame_options, episode),
     .unit = "NAME",
     .doc = "The episode, as the file calls it."},
    {.key = "frame",
     .type = HV_OPTION_INT,
     .offset = offsetof(hv_frame_options, frame),
     .fallback = "0",
     .max = 1e15,
     .unit = "N",
     .doc = "Which of its frames, counted from 0."},
    {.key = "camera",
     .type = HV_OPTION_STRING,
     .offset = offsetof(hv_frame_options, camera),
     .fallback = "null",
     .unit = "NAME",
     .doc = "The camera whose picture goes to --out."},
    {.key = "out",
     .type = HV_OPTION_PATH,
     .offset = offsetof(hv_frame_options, out),
     .fallback = "null",
     .unit = "FILE.png",
     .doc = "Where the picture goes, in the size that the file has."},
    {.key = "state-keys",
     .type = HV_OPTION_STRING_LIST,
     .offset = offsetof(hv_frame_options, state_keys),
     .fallback = "[]",
     .unit = "A,B,...",
     .doc = "As of `hvla-data stats`."},
    {.key = "json",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_frame_options, json),
     .fallback = "false",
     .doc = "Print one JSON object instead of lines."},
};

static const hv_option validate_table[] = {
    {.key = "json",
     .type = HV_OPTION_BOOL,
     .offset = offsetof(hv_validate_options, json),
     .fallback = "false",
     .doc = "Print one JSON object instead of lines."},
};

static const hv_command commands[] = {
    {.name = "stats",
     .summary = "statistics of actions and state, which training and prediction scale with",
     .help = "Prints dataset_statistics.json: for `action` and `proprio` (the robot's state) the mean, standard\n"
             "deviation, minimum, maximum and the 1 % and 99 % quantiles of every dimension, over all frames.\n"
             "hvla-train computes its own, of its training split; this is for looking, and for other programs.\n"
             "\n"
             "  hvla-data stats data/demos/lift.hdf5\n"
             "  hvla-data stats --key lift --split train --out stats.json data/demos/lift.hdf5\n"
             "  hvla-data stats --state-keys robot0_joint_pos,robot0_gripper_qpos data/demos/*.hdf5\n",
     .options = stats_table,
     .num_options = sizeof stats_table / sizeof *stats_table,
     .operands = "FILE…",
     .operands_offset = offsetof(hv_stats_options, files),
     .min_operands = 1},
    {.name = "inspect",
     .summary = "what a file holds: episodes, cameras, widths, instructions",
     .help = "The names under \"cameras\" and \"state\" are those that a run configuration refers to.\n"
             "A file with a bad episode is refused with exit code 2; `hvla-data validate` lists all bad ones.\n"
             "\n"
             "  hvla-data inspect data/demos/lift.hdf5\n"
             "  hvla-data inspect data/demos/lift.hdf5 --picture lift.png\n"
             "  hvla-data inspect data/demos/lift.hdf5 --json | jq .cameras\n",
     .options = inspect_table,
     .num_options = sizeof inspect_table / sizeof *inspect_table,
     .operands = "FILE",
     .operands_offset = offsetof(hv_inspect_options, files),
     .min_operands = 1,
     .max_operands = 1},
    {.name = "frame",
     .summary = "one frame as hvla-infer takes it: a camera's picture, state, action",
     .help =
         "Writes a camera's picture as PNG and prints the robot's state, as `hvla-infer predict --state` wants it,\n"
         "and the action that was demonstrated, to compare with the predicted one.\n"
         "\n"
         "  hvla-data frame data/demos/lift.hdf5 --episode demo_4 --frame 12\n"
         "  hvla-data frame data/demos/lift.hdf5 --episode demo_4 --frame 12 --camera agentview_image --out f.png\n"
         "  hvla-data frame data/demos/lift.hdf5 --episode demo_4 --json | jq -r '.state | join(\",\")'\n",
     .options = frame_table,
     .num_options = sizeof frame_table / sizeof *frame_table,
     .operands = "FILE",
     .operands_offset = offsetof(hv_frame_options, files),
     .min_operands = 1,
     .max_operands = 1},
    {.name = "validate",
     .summary = "reads everything and names every bad episode",
     .help = "Checks of each episode that its arrays are equally long, its numbers finite, its images readable,\n"
             "and of each file that its splits name episodes that exist.\n"
             "Exit code 0: all is well; 1: an episode is bad; 2: a file cannot be read at all.\n"
             "\n"
             "  hvla-data validate data/demos/*.hdf5\n"
             "  hvla-data validate --json new/*.hdf5 | jq '.bad_episodes[]'\n",
     .options = validate_table,
     .num_options = sizeof validate_table / sizeof *validate_table,
     .operands = "FILE…",
     .operands_offset = offsetof(hv_validate_options, files),
     .min_operands = 1},
};

static const hv_program program = {
    .name = "hvla-data",
    .summary = "looks into files of robot demonstrations (HDF5 in robomimic's layout), checks them, and computes the "
               "statistics that actions are scaled with.",
    .commands = commands,
    .num_commands = sizeof commands / sizeof *commands,
};

typedef union options {
  hv_stats_options stats;
  hv_inspect_options inspect;
  hv_frame_options frame;
  hv_validate_options validate;
} options;

static hv_status run(size_t command, const options *values) {
  switch (command) {
  case 0: return hv_command_stats(&values->stats);
  case 1: return hv_command_inspect(&values->inspect);
  case 2: return hv_command_frame(&values->frame);
  default: return hv_command_validate(&values->validate);
  }
}

hv_status hv_print(const char *text, size_t size) {
  if (fwrite(text, 1, size, stdout) != size || fflush(stdout) != 0) {
    return hv_error_errno(errno, "cannot write to standard output");
  }
  return HV_OK;
}

static hv_status print_help(size_t command) {
  hv_text text = {0};
  if (command < program.num_commands) {
    hv_command_help(&program, &commands[command], &text);
  } else {
    hv_program_help(&program, &text);
  }
  hv_status status = text.failed ? hv_error_memory("a help text") : hv_print(text.data, text.length);
  hv_text_free(&text);
  return status;
}

static hv_status serve(int argc, const char *const *argv) {
  size_t command;
  hv_request request;
  HV_TRY(hv_program_select(&program, argc, argv, &command, &request));
  if (request == HV_REQUEST_VERSION) return hv_print("hvla-data " HVLA_VERSION "\n", sizeof "hvla-data " HVLA_VERSION);
  if (request == HV_REQUEST_HELP) return print_help(command);
  options values;
  HV_TRY(hv_command_parse(&program, &commands[command], argc, argv, &values, &request));
  if (request == HV_REQUEST_HELP) return print_help(command);
  hv_status status = run(command, &values);
  hv_command_free(&commands[command], &values);
  return status;
}

int main(int argc, char **argv) {
  hv_status status = serve(argc, (const char *const *)argv);
  int code = hv_status_exit_code(status);
  if (status) hv_log_error("hvla-data: %s", hv_status_message(status));
  hv_status_free(status);
  return code;
}
