/* Makes the list of tiles for the attention kernels. One block of 256 threads goes over the table of segments (or key
 * groups), cuts long ones into tiles of 64 rows and lets short neighbours share a tile: branches of a dozen rows over a
 * common prefix then cost one pass over its keys, not one each. Shared memory: 1024 bytes for a prefix sum over the
 * threads, which gives each its place in the list. */
#include "cuda/attention.h"

/* Segments as runs of query rows. Neighbours may share a tile if they have the same prefix, not an empty one, and their
 * own rows are adjacent too: a tile's keys are then two runs of rows. */
struct query_runs {
  hv_rows<const int32_t> table;
  __device__ __forceinline__ hv_attention_tile at(int i) const {
    hv_segment s = hv_segment_at(table, i);
    return {i, 1, s.q_start, s.q_rows};
  }
  __device__ __forceinline__ bool follows(int i) const {
    hv_segment last = hv_segment_at(table, i - 1), s = hv_segment_at(table, i);
    return s.prefix_rows > 0 && s.prefix_start == last.prefix_start && s.prefix_rows == last.prefix_rows &&
           s.q_start == last.q_start + last.q_rows && s.own_start == last.own_start + last.own_rows;
  }
};

/* Key groups as runs of key rows. Neighbours may share a tile if each is seen by one segment, and these segments are
 * adjacent. */
struct key_runs {
  hv_rows<const int32_t> table;
  __device__ __forceinline__ hv_attention_tile at(int i) const {
    const int32_t *group = table.at(i, 0);
    return {group[2], group[3], group[0], group[1]};
  }
  __device__ __forceinline__ bool follows(int i) const {
    hv_attention_tile last = at(i - 1), run = at(i);
    return run.segment_count == 1 && last.segment_count == 1 && run.first_segment == last.first_segment + 1 &&
           run.row == last.row + last.rows;
  }
};

/* Cuts a chain of runs, each of which follows the one before (may share its tile), into tiles, and returns their
 * number. With tiles NULL it only counts. */
template <typename Runs>
static __device__ int cut_chain(const Runs &runs, int first, int count, hv_attention_tile *tiles) {
  int made = 0;
  hv_attention_tile open = {0, 0, 0, 0};
  for (int i = first; i < count && (i == first || runs.follows(i)); i++) {
    hv_attention_tile run = runs.at(i);
    if (open.rows > 0 && open.rows + run.rows <= HV_ATTENTION_ROWS) {
      open.segment_count += run.segment_count;
      open.rows += run.rows;
      continue;
    }
    if (open.rows > 0 && tiles) tiles[made] = open;
    made += open.rows > 0;
    for (; run.rows > HV_ATTENTION_ROWS; run.row += HV_ATTENTION_ROWS, run.rows -= HV_ATTENTION_ROWS) {
      if (tiles) tiles[made] = {run.first_segment, run.segment_count, run.row, HV_ATTENTION_ROWS};
      made++;
    }
    open = run;
  }
  if (open.rows > 0 && tiles) tiles[made] = open;
  return made + (open.rows > 0);
}

enum { PLAN_THREADS = 256 };

/* Inclusive prefix sum: the sum of `value` over this thread and those before it; *all gets the sum over the block. */
static __device__ int block_scan(int value, hv_shared<int> sums, int *all) {
  int thread = (int)threadIdx.x;
  sums[thread] = value;
  __syncthreads();
  for (int offset = 1; offset < PLAN_THREADS; offset *= 2) {
    int before = thread >= offset ? (int)sums[thread - offset] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  int sum = sums[thread];
  *all = sums[PLAN_THREADS - 1];
  __syncthreads();
  return sum;
}

/* One block. Each thread looks at one run per iteration; if that run begins a chain, the thread cuts the chain,
 * counting first, then writing behind the tiles of the threads before it. */
template <typename Runs>
static __global__ void plan_kernel(Runs runs, int run_count, hv_attention_tile *tiles, int tile_count) {
  hv_shared<int> sums = hv_shared_at<int>(0);
  int made = 0;
  for (int base = 0; base < run_count; base += PLAN_THREADS) {
    int i = base + (int)threadIdx.x, all;
    bool leads = i < run_count && (i == 0 || !runs.follows(i));
    int own = leads ? cut_chain(runs, i, run_count, nullptr) : 0;
    int end = made + block_scan(own, sums, &all);
    if (leads) (void)cut_chain(runs, i, run_count, tiles + end - own);
    made += all;
  }
  for (int i = made + (int)threadIdx.x; i < tile_count; i += PLAN_THREADS) tiles[i] = {0, 0, 0, 0};
}

int64_t hv_attention_tile_count(int64_t runs, int64_t rows, int64_t max_rows) {
  int64_t by_rows = rows / HV_ATTENTION_ROWS + runs, by_longest = runs * hv_blocks(max_rows, HV_ATTENTION_ROWS);
  return by_rows < by_longest ? by_rows : by_longest;
}

void hv_attention_plan_queries(hv_stream *stream, hv_tensor segments, int64_t count, hv_attention_tile *tiles) {
  query_runs runs = {hv_rows_of<const int32_t>(segments)};
  HV_LAUNCH(plan_kernel<query_runs>, dim3(count > 0), dim3(PLAN_THREADS), PLAN_THREADS * sizeof(int), stream, runs,
            (int)segments.rows, tiles, (int)count);
}

void hv_attention_plan_keys(hv_stream *stream, hv_tensor key_groups, int64_t count, hv_attention_tile *tiles) {
  key_runs runs = {hv_rows_of<const int32_t>(key_groups)};
  HV_LAUNCH(plan_kernel<key_runs>, dim3(count > 0), dim3(PLAN_THREADS), PLAN_THREADS * sizeof(int), stream, runs,
            (int)key_groups.rows, tiles, (int)count);
}
