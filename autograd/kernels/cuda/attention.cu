// The middle of attention, between its matrix products: scores become weights, and their gradient becomes that of the scores.
// Reference: ops/attention.py, class Attention; same letters.
//
//     p = softmax(scale s) over the keys that a query attends to, pm = p m          m: dropout factors
//     ds = scale p (dp m - sum dp m p)
//
// Layout  ROW_THREADS threads per query, a warp if it fits; a thread holds CHUNKS times 16 bytes of the scores in registers, and
//         neither reads nor computes those of masked keys.
// Bytes   per score, b = 4 (float) or 2 (16 bits), without dropout: forward reads s, writes p: 2 b; backward reads p, dp, writes
//         ds: 3 b; causal: half the reads. With dropout forward writes p m too.
#include "common.cuh"

#ifndef CHUNKS
#define CHUNKS 4
#endif
#ifndef ROW_THREADS
#define ROW_THREADS 32
#endif
// Threads of a block at most, 256 for the longest row; and blocks of a multiprocessor at once, which bounds the registers of a thread.
constexpr int MAX_THREADS = ROW_THREADS == 32 ? 64 : 256, FORWARD_BLOCKS = ROW_THREADS == 32 ? 16 : 1, BACKWARD_BLOCKS = ROW_THREADS == 32 ? 8 : 1;
constexpr int STEP = ROW_THREADS * WIDTH;

// A query's row of scores, and this thread's part of it.
struct Query {
    long long start;     // of the row, in elements
    int n_seen, n_keys;  // query t, of n_queries that are the last positions, attends to keys 0 .. t + n_keys - n_queries if causal
    int first;           // chunk j of this thread begins at key first + j * STEP,
    int warp_first;      // and its warp's at warp_first + j * STEP

    // The same for a warp: does chunk j have keys that are seen, and others?
    __device__ bool some_seen(int j) const { return warp_first + j * STEP < n_seen; }
    __device__ bool all_seen(int j) const { return warp_first + j * STEP + 32 * WIDTH <= n_seen; }
    __device__ bool seen(int j, int k) const { return first + j * STEP + k < n_seen; }
};

__device__ inline Query query_of(long long row, int n_queries, int n_keys, int causal) {
    const int thread = threadIdx.x % ROW_THREADS;
    const int n_seen = causal ? (int)((unsigned int)row % n_queries) + n_keys - n_queries + 1 : n_keys;  // of 32 bits: fewer instructions
    return {row * n_keys, n_seen, n_keys, thread * WIDTH, thread / 32 * 32 * WIDTH};
}

template <bool PLAIN>
__device__ inline void weights_of_query(storage* p, storage* pm, const Query& q, float scale, const Mask& mask) {
    float v[CHUNKS][WIDTH], largest = minus_infinity(), sum = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) load_chunk<PLAIN>(v[j], p, q.first + j * STEP, q.n_seen, minus_infinity());
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (q.some_seen(j)) {
            if (!q.all_seen(j))
#pragma unroll
                for (int k = 0; k < WIDTH; k++) v[j][k] = q.seen(j, k) ? v[j][k] : minus_infinity();
#pragma unroll
            for (int k = 0; k < WIDTH; k++) largest = fmaxf(largest, v[j][k]);
        }
    largest = row_max(largest, ROW_THREADS);
    const float shift = largest == minus_infinity() ? 0.0f : largest * scale;  // a row of -infinity gives zeros
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (q.some_seen(j))
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum += v[j][k] = EXP(v[j][k] * scale - shift);
    sum = row_sum(sum, ROW_THREADS);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        const bool seen = q.some_seen(j);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[j][k] = seen ? v[j][k] * factor : 0.0f;
        store_chunk<PLAIN>(p, q.first + j * STEP, q.n_keys, v[j]);
        if (mask.threshold) {
            if (seen) mask.apply(v[j], q.start + q.first + j * STEP);
            store_chunk<PLAIN>(pm, q.first + j * STEP, q.n_keys, v[j]);
        }
    }
}

// p overwrites s; scale is positive. threshold = 0: no dropout, and pm is not written.
extern "C" __global__ __launch_bounds__(MAX_THREADS, FORWARD_BLOCKS) void attention_softmax_forward(
    storage* p, storage* pm, long long n_rows, int n_queries, int n_keys, int causal, float scale,
    unsigned long long key, long long first, unsigned int threshold, float keep_scale) {
    const long long row = (long long)blockIdx.x * (blockDim.x / ROW_THREADS) + threadIdx.x / ROW_THREADS;
    if (row >= n_rows) return;
    const Mask mask = {key, first, threshold, keep_scale};
    const Query q = query_of(row, n_queries, n_keys, causal);
    if (plain_rows(n_keys, p, pm)) weights_of_query<true>(p + q.start, pm + q.start, q, scale, mask);
    else weights_of_query<false>(p + q.start, pm + q.start, q, scale, mask);
}

template <bool PLAIN>
__device__ inline void gradient_of_query(storage* ds, const storage* p, const Query& q, float scale, const Mask& mask) {
    float v[CHUNKS][WIDTH], d[CHUNKS][WIDTH], dot = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        load_chunk<PLAIN>(v[j], p, q.first + j * STEP, q.n_seen);
        load_chunk<PLAIN>(d[j], ds, q.first + j * STEP, q.n_seen);
    }
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (q.some_seen(j)) {
            if (mask.threshold) mask.apply(d[j], q.start + q.first + j * STEP);
            if (!q.all_seen(j))  // what is there of dp may be anything
#pragma unroll
                for (int k = 0; k < WIDTH; k++)
                    if (!q.seen(j, k)) v[j][k] = d[j][k] = 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) dot += v[j][k] * d[j][k];
        }
    dot = row_sum(dot, ROW_THREADS);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        const bool seen = q.some_seen(j);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) d[j][k] = seen ? scale * v[j][k] * (d[j][k] - dot) : 0.0f;
        store_chunk<PLAIN>(ds, q.first + j * STEP, q.n_keys, d[j]);
    }
}

// ds overwrites dp.
extern "C" __global__ __launch_bounds__(MAX_THREADS, BACKWARD_BLOCKS) void attention_softmax_backward(
    storage* ds, const storage* p, long long n_rows, int n_queries, int n_keys, int causal, float scale,
    unsigned long long key, long long first, unsigned int threshold, float keep_scale) {
    const long long row = (long long)blockIdx.x * (blockDim.x / ROW_THREADS) + threadIdx.x / ROW_THREADS;
    if (row >= n_rows) return;
    const Mask mask = {key, first, threshold, keep_scale};
    const Query q = query_of(row, n_queries, n_keys, causal);
    if (plain_rows(n_keys, ds, p)) gradient_of_query<true>(ds + q.start, p + q.start, q, scale, mask);
    else gradient_of_query<false>(ds + q.start, p + q.start, q, scale, mask);
}
