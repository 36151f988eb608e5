/* hvla-data: what is in files of demonstrations. */
#include "data/commands.h"

static const hv_command *const commands[] = {&hv_command_stats, &hv_command_inspect, &hv_command_frame,
                                             &hv_command_validate};

static const hv_program program = {
    .name = "hvla-data",
    .summary = "Looks into files of robot demonstrations (HDF5 in robomimic's layout), checks them, and computes the "
               "statistics that actions are scaled with.",
    .commands = commands,
    .num_commands = sizeof commands / sizeof commands[0],
};

int main(int argc, char **argv) {
  return hv_program_main(&program, argc, argv);
}
