/* Batches of demonstrations, prefetched by threads: frames read and resized, state and actions normalised, chunks of H
 * actions cut, and filled past the end of an episode.
 *
 * Sample number s of a run is frame order(seed, s / n)[s % n] of the n frames (sample_order.h), so a batch's samples
 * depend on the seed and the batch's number alone: a run resumes from a count, and does not depend on ranks or threads.
 * Global batch g holds samples [g G, (g + 1) G); rank r of R takes the r-th part of it, in (micro-)batches of B.
 *
 * An open loader allocates nothing, except while it reads frames that are stored in chunks; with a cache that ends with
 * the first epoch.
 * hv_loader_next and hv_loader_release are called by one thread.
 */
#ifndef HV_DATA_LOADER_H
#define HV_DATA_LOADER_H

#include "core/hybridvla/config.h"
#include "core/hybridvla/sequence.h"
#include "core/io/dataset_statistics.h"
#include "data/demonstrations.h"

typedef struct hv_loader_options {
  const hv_config *config;                 /* cameras, image size and resize, action_dim, action_chunk, state_dim */
  const hv_dataset_statistics *statistics; /* of the run; masks say which dimensions are grippers */
  const bool *absolute;                    /* [action_dim] dimensions that hold targets, not changes; NULL: none */
  const int32_t *prompts; /* [instructions, prompt_stride]: <s>, prompt …; −1 after the end; stays valid */
  int32_t prompt_stride;
  int32_t batch;        /* B */
  int32_t global_batch; /* G, a multiple of ranks · B; 0: B · ranks */
  int32_t rank, ranks;  /* ranks 0 counts as 1 */
  uint64_t seed;
  bool sequential;       /* for validation: the frames once, in their order, without a seed */
  int64_t samples;       /* of a sequential pass: this many frames, evenly spread; 0, or more than there are: all */
  uint64_t first_sample; /* number of the first sample, a multiple of G */
  int32_t threads;       /* threads that read; >= 1 */
  int32_t read_ahead;    /* batches that may be ready in advance; >= 1 */
  size_t cache_bytes;    /* resized frames are cached if all of them fit */
} hv_loader_options;

typedef struct hv_loader_batch {
  hv_batch batch;              /* noise and timesteps are NULL, the divisors 0 */
  const int64_t *frames;       /* [samples] global frame of each sample */
  const int32_t *instructions; /* [samples] */
  uint64_t first_sample;       /* number of the first sample of the global batch that this one is part of */
  int32_t global_samples;      /* of that global batch: G, or fewer at the end of a sequential pass */
  int64_t global_steps;        /* action steps in it that are not past an episode's end, for the noise loss's divisor */
} hv_loader_batch;

typedef struct hv_loader hv_loader;

/* Both must outlive the loader. What does not fit the model is HV_ERR_INPUT. */
HV_NODISCARD hv_status hv_loader_open(const hv_demonstrations *demonstrations, const hv_loader_options *options,
                                      hv_loader **out);
void hv_loader_close(hv_loader *loader); /* NULL is allowed */

/* How many frames a sequential pass has. */
int64_t hv_loader_samples(const hv_loader *loader);

/* Returns the next batch, and waits for it if need be. The batch and all it points to stay valid until it is released.
 * In a sequential pass a batch may be short, or have 0 samples on a rank that has no part in the last global batch;
 * *out is NULL after the last one. An error (a frame that cannot be read) is returned again by every later call. */
HV_NODISCARD hv_status hv_loader_next(hv_loader *loader, const hv_loader_batch **out);
void hv_loader_release(hv_loader *loader, const hv_loader_batch *batch);

#endif
