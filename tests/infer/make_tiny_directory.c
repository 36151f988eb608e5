/* make_tiny_directory PATH: writes a tiny model directory, for tests that are shell scripts. */
#include <stdio.h>

#include "tests/infer/tiny_directory.h"

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: make_tiny_directory PATH\n");
    return 2;
  }
  write_tiny_directory(argv[1], &(tiny_directory_options){.keys = 1});
  return 0;
}
