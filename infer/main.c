/* hvla-infer: predictions and exports from the command line. */
#include "infer/commands.h"

static const hv_command *const commands[] = {&hv_command_predict, &hv_command_bench, &hv_command_export};

static const hv_program program = {
    .name = "hvla-infer",
    .summary = "Predicts robot actions with a HybridVLA model, measures how fast that is, and exports models.",
    .commands = commands,
    .num_commands = sizeof commands / sizeof commands[0],
};

int main(int argc, char **argv) {
  return hv_program_main(&program, argc, argv);
}
