/* libhvla: HybridVLA predictions inside another program.
 *
 *   hvla_error error;
 *   hvla_options options = hvla_default_options();
 *   hvla_model *model;
 *   if (hvla_load("model/", &options, &model, &error)) { fprintf(stderr, "%s\n", error.message); … }
 *
 *   hvla_image front = {.camera = "front", .data = rgb, .width = 640, .height = 480};
 *   hvla_request request = hvla_default_request();
 *   request.images = &front, request.num_images = 1;
 *   request.instruction = "open the drawer";
 *   request.state = state, request.state_dim = 7;
 *   hvla_result result;
 *   if (hvla_predict(model, &request, &result, &error)) …
 *   move(result.action);                    // [action_chunk][action_dim], the robot's own units
 *   hvla_free(model);
 *
 * Ownership: what a caller passes in stays the caller's and is not kept after the call returns. Pointers that functions
 * return point into the model: strings are valid until hvla_free, results until the model's next hvla_predict. Threads:
 * a model serves one thread at a time; different models may be used by different threads at the same time. Inside a
 * call, the CPU device uses `threads` of hvla_options. Errors: functions that can fail return an hvla_code and describe
 * a failure in *error, which may be NULL. After a failed prediction the model can still be used. Memory: a prediction
 * of another kind (mode, sampler, number of steps, condition, timing) than the one before allocates memory anew; all
 * others allocate none on the device. On a card, see also measure_algorithms.
 */
#ifndef HVLA_H
#define HVLA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HVLA_VERSION_MAJOR 0
#define HVLA_VERSION_MINOR 1
#define HVLA_VERSION_PATCH 0
#define HVLA_VERSION_NUMBER (HVLA_VERSION_MAJOR * 10000 + HVLA_VERSION_MINOR * 100 + HVLA_VERSION_PATCH)

#if defined(__GNUC__)
#define HVLA_API __attribute__((visibility("default")))
#else
#define HVLA_API
#endif

/* The version of the loaded library, in the form of HVLA_VERSION_NUMBER. */
HVLA_API int hvla_version(void);

typedef enum hvla_code {
  HVLA_OK = 0,
  HVLA_ERROR_INPUT = 2,    /* a wrong file, picture, shape, name or range: the message says which, and what is right */
  HVLA_ERROR_IO = 3,       /* the operating system refused */
  HVLA_ERROR_MEMORY = 4,   /* out of host or device memory */
  HVLA_ERROR_DEVICE = 5,   /* no such device, or the device failed */
  HVLA_ERROR_INTERNAL = 6, /* a bug of the library */
} hvla_code;

enum { HVLA_MESSAGE_SIZE = 4096 };

typedef struct hvla_error {
  hvla_code code;
  char message[HVLA_MESSAGE_SIZE]; /* one or more lines for a person, NUL-terminated, no newline at the end */
} hvla_error;

typedef struct hvla_model hvla_model;

typedef struct hvla_options {
  const char *device; /* "cpu" (default, NULL too), "cuda" */
  const char *dtype;  /* "fp32" or "bf16"; NULL: fp32 on the CPU, bf16 elsewhere */
  int threads;        /* of the CPU device, at most 4096; 0: as many as there are processors */
  int max_prompt;     /* maximum number of tokens of the prompt with the instruction in it; 1 to 2^20 */
  /* Not 0 (default): on a card, the first prediction for each number of prompt tokens measures which of the library's
   * algorithms is the fastest for each matrix product, and so takes longer. Another process may choose others and
   * differ in rounding; set 0 if results must repeat to the bit. */
  int measure_algorithms;
} hvla_options;

HVLA_API hvla_options hvla_default_options(void);

/* Loads a model directory. NULL options: the defaults. *out is freed by hvla_free. */
HVLA_API hvla_code hvla_load(const char *directory, const hvla_options *options, hvla_model **out, hvla_error *error);
HVLA_API void hvla_free(hvla_model *model); /* NULL is allowed */

/* What the model is. */
HVLA_API int hvla_action_dim(const hvla_model *model);
HVLA_API int hvla_action_chunk(const hvla_model *model); /* action steps that one prediction gives */
HVLA_API int hvla_state_dim(const hvla_model *model);    /* 0: it takes no state */
HVLA_API int hvla_num_cameras(const hvla_model *model);
HVLA_API const char *hvla_camera(const hvla_model *model, int index); /* NULL outside 0 … num_cameras − 1 */
HVLA_API int hvla_image_size(const hvla_model *model);                /* pixels a side to which pictures are resized */
HVLA_API int hvla_diffusion_steps(const hvla_model *model);           /* T */
HVLA_API const char *hvla_objective(const hvla_model *model);         /* "hybrid", "diffusion", "autoregressive" */
HVLA_API int hvla_num_unnorm_keys(const hvla_model *model);           /* number of data sets whose statistics it has */
HVLA_API const char *hvla_unnorm_key(const hvla_model *model, int index); /* NULL outside the range */

/* One camera's picture, of any size: 8-bit RGB, or the bytes of a PNG or JPEG file. */
typedef struct hvla_image {
  const char *camera;
  const void *data;
  int width, height;  /* of RGB, rows from the top without gaps; 0 for a PNG or JPEG */
  size_t size;        /* bytes of a PNG or JPEG; for RGB 0, or 3 width height */
  const char *source; /* what an error message calls it, a path for instance; NULL: the camera's name */
} hvla_image;

typedef enum hvla_mode {
  HVLA_MODE_DEFAULT, /* ensemble where the model has both heads, else the one it has */
  HVLA_MODE_ENSEMBLE,
  HVLA_MODE_DIFFUSION,
  HVLA_MODE_AUTOREGRESSIVE,
} hvla_mode;

typedef enum hvla_sampler { HVLA_SAMPLER_DDIM, HVLA_SAMPLER_DDPM } hvla_sampler;

/* What the action tokens attend to besides images, words and state. */
typedef enum hvla_ar_condition {
  HVLA_AR_DEFAULT,  /* noise where the model has a noise head, else nothing */
  HVLA_AR_NOISE,    /* noise at the last timestep */
  HVLA_AR_RANDOM,   /* noise at a random timestep */
  HVLA_AR_DENOISED, /* the denoised action */
} hvla_ar_condition;

typedef struct hvla_request {
  const hvla_image *images; /* one for each camera of the model, in any order */
  size_t num_images;
  const char *instruction; /* UTF-8 */
  const double *state;     /* [state_dim], the robot's own units */
  size_t state_dim;
  const char *unnorm_key; /* whose statistics scale state and action; NULL: the model's only one */

  hvla_mode mode;
  hvla_sampler sampler;
  int ddim_steps;
  double theta; /* ensemble: above this confidence the mean of both heads is taken */
  hvla_ar_condition ar_condition;

  uint64_t seed, step;        /* random draws are a function of both: increment step for new draws */
  const float *noise;         /* [action_chunk][action_dim] where denoising starts, NULL: drawn */
  const float *ar_noise;      /* the same shape, for HVLA_AR_NOISE and HVLA_AR_RANDOM, NULL: drawn */
  const int32_t *ar_timestep; /* [1], 0 … diffusion_steps − 1; NULL: as ar_condition says */
  const float *step_noise;    /* [diffusion_steps][action_chunk][action_dim] for HVLA_SAMPLER_DDPM, NULL: drawn */

  int timing; /* not 0: measure the parts of the prediction, which costs a little on a GPU */
} hvla_request;

/* Ensemble or the model's only head, DDIM with 4 steps, theta 0.96, seed 0. */
HVLA_API hvla_request hvla_default_request(void);

/* Arrays are [action_chunk][action_dim]; what the mode does not compute is NULL. */
typedef struct hvla_result {
  int action_chunk, action_dim;
  const double *action;              /* what the robot should do, its own units */
  const double *diffusion;           /* the diffusion head's action, the robot's units */
  const float *diffusion_normalized; /* the sampler's output, not clipped */
  const double *autoregressive;      /* the token head's action, the robot's units */
  const int32_t *tokens;
  const float *confidences; /* the probability of each token */
  double confidence;        /* their mean */
  hvla_mode used;           /* which head(s) `action` comes from; never HVLA_MODE_DEFAULT */
  /* Milliseconds. Always: the whole call, including set-up for a new kind of prediction; decoding and resizing pictures
   * and tokenizing. With `timing` only, else 0: vision towers and projector; the prefill pass with each head's first
   * step in it; later passes that denoise (and may decode a token too); passes that only decode. */
  double total_ms, input_ms, vision_ms, prefill_ms, denoise_ms, decode_ms;
} hvla_result;

HVLA_API hvla_code hvla_predict(hvla_model *model, const hvla_request *request, hvla_result *result, hvla_error *error);

#ifdef __cplusplus
}
#endif

#endif
