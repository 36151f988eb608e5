/* hvla-train: trains HybridVLA; also plans, checks, measures and reports on runs. */
#include "train/commands.h"

static const hv_command *const commands[] = {&hv_command_run,   &hv_command_check, &hv_command_config,
                                             &hv_command_bench, &hv_command_plan,  &hv_command_status,
                                             &hv_command_model, &hv_command_report};

static const hv_program program = {
    .name = "hvla-train",
    .summary = "Trains HybridVLA, a vision-language-action model, on robot demonstrations.",
    .commands = commands,
    .num_commands = sizeof commands / sizeof commands[0],
};

int main(int argc, char **argv) {
  return hv_program_main(&program, argc, argv);
}
