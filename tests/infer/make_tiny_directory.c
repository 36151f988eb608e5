/* make_tiny_directory PATH: a model directory for tests that are no C program. */
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
