#include "data/picture.h"

#include <stdlib.h>
#include <string.h>

#include "core/image/image.h"
#include "core/image/resize.h"

enum { COLUMNS = 8, CELL = 160 /* pixels a side */, GAP = 4 };

static void place(hv_image *sheet, const uint8_t *cell, int row, int column) {
  int32_t left = GAP + column * (CELL + GAP), top = GAP + row * (CELL + GAP);
  for (int32_t y = 0; y < CELL; y++) {
    memcpy(sheet->rgb + ((size_t)(top + y) * (size_t)sheet->width + (size_t)left) * 3, cell + (size_t)y * CELL * 3,
           (size_t)CELL * 3);
  }
}

static hv_status draw_row(hv_frames *frames, hv_image *sheet, int row) {
  static const double gray[3] = {0.5, 0.5, 0.5};
  hv_resizer *resizer = NULL;
  uint8_t *stored = malloc((size_t)frames->width * (size_t)frames->height * 3);
  uint8_t *cell = malloc((size_t)CELL * CELL * 3);
  hv_status status = HV_OK;
  if (!stored || !cell) {
    status = hv_error_memory("a frame");
    goto done;
  }
  HV_CHECK(hv_resizer_open_frame(frames->width, frames->height, CELL, HV_RESIZE_LETTERBOX, gray, &resizer));
  for (int column = 0; column < COLUMNS; column++) {
    HV_CHECK(frames->read(frames, column * (frames->count - 1) / (COLUMNS - 1), stored));
    hv_resizer_run(resizer, stored, cell);
    place(sheet, cell, row, column);
  }
done:
  hv_resizer_close(resizer);
  free(cell);
  free(stored);
  return status;
}

/* Draws the rows of the cameras that an episode has and none before it, and subtracts them from *undrawn. */
static hv_status draw_episode(const hv_survey *survey, size_t episode, bool *drawn, size_t *undrawn, hv_image *sheet) {
  const hv_episode_facts *facts = &survey->each[episode];
  const char *name = survey->episodes.items[episode];
  hv_status status = HV_OK;
  for (size_t i = 0; i < survey->facts.num_cameras && !status; i++) {
    hv_frames *frames;
    const char *camera = survey->facts.cameras[i].name;
    if (drawn[i] || !hv_episode_camera(facts, camera)) continue;
    status = survey->layout->open_frames(survey->file, name, facts, camera, &frames);
    if (!status) status = draw_row(frames, sheet, (int)i);
    hv_frames_close(frames);
    drawn[i] = true;
    --*undrawn;
  }
  return status;
}

static hv_status draw(const hv_survey *survey, hv_image *sheet) {
  size_t undrawn = survey->facts.num_cameras;
  bool *drawn = calloc(undrawn, sizeof *drawn);
  if (!drawn) return hv_error_memory("a picture");
  hv_status status = HV_OK;
  for (size_t i = 0; i < survey->episodes.count && undrawn > 0 && !status; i++) {
    status = draw_episode(survey, i, drawn, &undrawn, sheet);
  }
  free(drawn);
  return status;
}

hv_status hv_contact_sheet(const hv_survey *survey, const char *path) {
  int32_t rows = (int32_t)survey->facts.num_cameras;
  if (rows == 0)
    return hv_error(HV_ERR_INPUT, "%s: has no camera, so there is no picture to draw", hv_hdf5_path(survey->file));
  hv_image sheet = {0};
  hv_status status = HV_OK;
  HV_CHECK(hv_image_allocate(GAP + COLUMNS * (CELL + GAP), GAP + rows * (CELL + GAP), &sheet));
  memset(sheet.rgb, 255, (size_t)sheet.width * (size_t)sheet.height * 3);
  HV_CHECK(draw(survey, &sheet));
  status = hv_image_save_png(path, &sheet);
done:
  hv_image_free(&sheet);
  return status;
}
