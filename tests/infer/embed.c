/* embed MODEL-DIRECTORY [DEVICE]: a program outside of this project that predicts with the installed library. Plain
 * C99.
 */
#include <hvla.h>
#include <stdio.h>
#include <stdlib.h>

enum { WIDTH = 40, HEIGHT = 30 };

int main(int argc, char **argv) {
  static unsigned char pixels[WIDTH * HEIGHT * 3];
  hvla_error error;
  hvla_model *model;
  hvla_image images[8];
  hvla_result result;
  hvla_request request = hvla_default_request();
  hvla_options options = hvla_default_options();
  if (argc > 2) options.device = argv[2];
  if (argc < 2 || argc > 3 || hvla_version() != HVLA_VERSION_NUMBER) return 3;
  if (hvla_load("/nowhere", NULL, &model, &error) == HVLA_OK || error.message[0] == '\0') return 4;
  if (hvla_load(argv[1], &options, &model, &error)) {
    fprintf(stderr, "%s\n", error.message);
    return 2;
  }
  for (int i = 0; i < WIDTH * HEIGHT * 3; i++) pixels[i] = (unsigned char)(i * 7);
  for (int i = 0; i < hvla_num_cameras(model) && i < 8; i++) {
    hvla_image image = {0};
    image.camera = hvla_camera(model, i);
    image.data = pixels;
    image.width = WIDTH;
    image.height = HEIGHT;
    images[i] = image;
  }
  request.images = images;
  request.num_images = (size_t)hvla_num_cameras(model);
  request.instruction = "open the drawer";
  request.state_dim = (size_t)hvla_state_dim(model);
  request.state = calloc(request.state_dim + 1, sizeof *request.state);
  if (!request.state || hvla_predict(model, &request, &result, &error)) {
    fprintf(stderr, "%s\n", error.message);
    return 2;
  }
  for (int i = 0; i < result.action_chunk * result.action_dim; i++) printf("%.9g\n", result.action[i]);
  free((void *)request.state);
  hvla_free(model);
  return 0;
}
