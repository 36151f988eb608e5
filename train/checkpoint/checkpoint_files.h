/* Checkpoints on disk, RUN/checkpoints/step-N/: names, the manifest, verification, removal of old ones.
 *
 *   state.json            the manifest: position of the run, number of ranks, and size and checksum of every other file
 *   training.safetensors  the training state (checkpoint_parts.h)
 *   training-00001-of-00004.safetensors, …  instead of it, one from each of several ranks
 *
 * Everything is written into step-N.tmp and synced; then the folder is renamed. Format 1, of older versions, has no
 * list of files and no checksums, and can still be read.
 */
#ifndef HV_TRAIN_CHECKPOINT_CHECKPOINT_FILES_H
#define HV_TRAIN_CHECKPOINT_CHECKPOINT_FILES_H

#include "core/base/file.h"
#include "core/base/text.h"
#include "core/io/safetensors.h"
#include "train/run/best.h"
#include "train/spike_rule.h"

enum { HV_CHECKPOINT_FORMAT = 2 /* the format written; older ones can be read */ };
enum { HV_CHECKPOINT_PATH = 4096, HV_CHECKPOINT_NAME = 64, HV_CHECKPOINT_RANKS = 1024 /* most that write one */ };

/* Where a run stands. */
typedef struct hv_run_position {
  int64_t step;    /* optimizer steps done, skipped ones included */
  int64_t updates; /* those that changed the parameters */
  int64_t samples; /* samples consumed, in the order of the training split */
  int64_t skipped; /* steps in a row, up to this one, that changed nothing */
  int64_t seed;
  hv_spike_means means;
  hv_best best; /* its metric is empty if the checkpoint has none */
} hv_run_position;

typedef struct hv_manifest {
  int64_t format; /* set by hv_manifest_read, after an error too if it could be read */
  hv_run_position position;
  int32_t ranks;           /* ranks that wrote it, one file each */
  hv_dtype dtype;          /* of the parameters */
  char sharding[16];       /* parallel.sharding when it was written; "" in format 1 */
  int64_t parameters;      /* elements of all parameters */
  hv_file_digest *digests; /* [ranks]: of their files; owned. NULL in format 1 */
} hv_manifest;

/* RUN/checkpoints/step-N<suffix>. */
HV_NODISCARD hv_status hv_checkpoint_path(const char *run, int64_t step, const char *suffix,
                                          char path[HV_CHECKPOINT_PATH]);

/* The name of the file of one of the ranks that wrote a checkpoint. */
void hv_checkpoint_file_name(int32_t rank, int32_t ranks, char name[HV_CHECKPOINT_NAME]);

/* Makes an empty step-N.tmp to write into. */
HV_NODISCARD hv_status hv_checkpoint_begin(const char *run, int64_t step);

/* Writes the manifest, syncs the folder and renames it to step-N: from then on it is a checkpoint. */
HV_NODISCARD hv_status hv_checkpoint_publish(const char *run, const hv_manifest *manifest);

/* Removes step-N.tmp. */
HV_NODISCARD hv_status hv_checkpoint_abandon(const char *run, int64_t step);

/* The manifest of step-N; freed by the caller, after an error too. HV_ERR_INPUT: it is missing or broken, or of a newer
 * format. */
HV_NODISCARD hv_status hv_manifest_read(const char *run, int64_t step, hv_manifest *out);
void hv_manifest_free(hv_manifest *manifest); /* leaves it empty */

/* Verifies files number part, part + parts, … by the manifest: HV_ERR_INPUT if one is missing, incomplete or changed.
 */
HV_NODISCARD hv_status hv_checkpoint_verify(const char *run, const hv_manifest *manifest, int32_t part, int32_t parts);

/* A checkpoint that is open for reading. */
typedef struct hv_checkpoint_content {
  hv_manifest manifest;
  hv_safetensors **shards; /* [manifest.ranks] */
} hv_checkpoint_content;

/* Closed by the caller, after an error too. Does not verify checksums. */
HV_NODISCARD hv_status hv_checkpoint_open(const char *run, int64_t step, hv_checkpoint_content *out);
void hv_checkpoint_close(hv_checkpoint_content *content); /* leaves it empty */

/* The steps that have a checkpoint, ascending; freed by the caller. */
HV_NODISCARD hv_status hv_checkpoint_steps(const char *run, int64_t **steps, size_t *count);

/* The newest checkpoint whose files all exist in full length (format 1 has no lengths); *step = -1 if there is none;
 * newer ones are named in `damaged`, one a line. A quick look, without checksums: hv_checkpoint_find verifies those. */
HV_NODISCARD hv_status hv_checkpoint_newest(const char *run, int64_t *step, hv_text *damaged);

typedef struct hv_retention {
  int64_t keep;  /* how many of the newest stay */
  int64_t every; /* those whose step is a multiple of this stay too; 0: no others */
} hv_retention;

/* After `newest` has been published: removes older checkpoints that need not stay, and half-written leftovers. If
 * something cannot be removed, that is returned as an error after the rest has been removed. Checkpoints of later
 * steps, from a history that the run has abandoned, are not touched. */
HV_NODISCARD hv_status hv_checkpoint_prune(const char *run, int64_t newest, hv_retention retention);

#endif
