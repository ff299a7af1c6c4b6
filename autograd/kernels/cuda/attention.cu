// The middle of attention, between its matrix products: scores become weights, and their gradient becomes that of the scores.
// Reference: ops/attention.py, class Attention; same letters.
//
//     p = softmax(scale s) over the keys that a query attends to, pm = p m          m: dropout factors
//     ds = scale p (dp m - sum dp m p)
//
// Layout  `row_threads` threads per query, a warp if it fits; a thread holds CHUNKS times 16 bytes of the scores in registers, and
//         neither reads nor computes those of masked keys.
// Bytes   per score, b = 4 (float) or 2 (16 bits), without dropout: forward reads s, writes p: 2 b; backward reads p, dp, writes
//         ds: 3 b; causal: half the reads. With dropout forward writes p m too.
#include "common.cuh"

#ifndef CHUNKS
#define CHUNKS 4
#endif
constexpr int MAX_ROW_THREADS = 256;  // whose registers hold the longest row

// A query's row of scores, and this thread's part of it.
struct Query {
    long long start;      // of the row, in elements
    int n_seen, n_keys;   // query t, of n_queries that are the last positions, attends to keys 0 .. t + n_keys - n_queries if causal
    int first, step;      // chunk j of this thread begins at key first + j * step,
    int warp_first;       // and its warp's at warp_first + j * step

    __device__ bool seen(int j) const { return warp_first + j * step < n_seen; }  // the same for a warp
};

__device__ inline Query query_of(long long row, int n_queries, int n_keys, int causal, int row_threads) {
    const int thread = threadIdx.x % row_threads;
    const int n_seen = causal ? (int)(row % n_queries) + n_keys - n_queries + 1 : n_keys;
    return {row * n_keys, n_seen, n_keys, thread * WIDTH, row_threads * WIDTH, thread / 32 * 32 * WIDTH};
}

template <bool PLAIN>
__device__ inline void weights_of_query(storage* p, storage* pm, const Query& q, float scale, const Mask& mask, int row_threads) {
    float v[CHUNKS][WIDTH], largest = minus_infinity(), sum = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) load_chunk<PLAIN>(v[j], p, q.first + j * q.step, q.n_seen, minus_infinity());
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (q.seen(j))
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                v[j][k] = q.first + j * q.step + k < q.n_seen ? v[j][k] * scale : minus_infinity();
                largest = fmaxf(largest, v[j][k]);
            }
    largest = row_max(largest, row_threads);
    const float shift = largest == minus_infinity() ? 0.0f : largest;  // a row of -infinity gives zeros
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (q.seen(j))
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum += v[j][k] = EXP(v[j][k] - shift);
    sum = row_sum(sum, row_threads);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        const bool seen = q.seen(j);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[j][k] = seen ? v[j][k] * factor : 0.0f;
        store_chunk<PLAIN>(p, q.first + j * q.step, q.n_keys, v[j]);
        if (mask.threshold) {
            if (seen) mask.apply(v[j], q.start + q.first + j * q.step);
            store_chunk<PLAIN>(pm, q.first + j * q.step, q.n_keys, v[j]);
        }
    }
}

// p overwrites s. threshold = 0: no dropout, and pm is not written.
extern "C" __global__ __launch_bounds__(MAX_ROW_THREADS, 1) void attention_softmax_forward(
    storage* p, storage* pm, long long n_rows, int n_queries, int n_keys, int causal, int row_threads, float scale,
    unsigned long long key, long long first, unsigned int threshold, float keep_scale) {
    const long long row = (long long)blockIdx.x * (blockDim.x / row_threads) + threadIdx.x / row_threads;
    if (row >= n_rows) return;
    const Mask mask = {key, first, threshold, keep_scale};
    const Query q = query_of(row, n_queries, n_keys, causal, row_threads);
    if (plain_rows(n_keys, p, pm)) weights_of_query<true>(p + q.start, pm + q.start, q, scale, mask, row_threads);
    else weights_of_query<false>(p + q.start, pm + q.start, q, scale, mask, row_threads);
}

template <bool PLAIN>
__device__ inline void gradient_of_query(storage* ds, const storage* p, const Query& q, float scale, const Mask& mask, int row_threads) {
    float v[CHUNKS][WIDTH], d[CHUNKS][WIDTH], dot = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        load_chunk<PLAIN>(v[j], p, q.first + j * q.step, q.n_seen);
        load_chunk<PLAIN>(d[j], ds, q.first + j * q.step, q.n_seen);
    }
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
        if (q.seen(j)) {
            if (mask.threshold) mask.apply(d[j], q.start + q.first + j * q.step);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                // Beyond n_seen, in a chunk that reaches over it: what is there of dp may be anything.
                if (q.first + j * q.step + k >= q.n_seen) v[j][k] = d[j][k] = 0.0f;
                dot += v[j][k] * d[j][k];
            }
        }
    dot = row_sum(dot, row_threads);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        const bool seen = q.seen(j);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) d[j][k] = seen ? scale * v[j][k] * (d[j][k] - dot) : 0.0f;
        store_chunk<PLAIN>(ds, q.first + j * q.step, q.n_keys, d[j]);
    }
}

// ds overwrites dp.
extern "C" __global__ __launch_bounds__(MAX_ROW_THREADS, 1) void attention_softmax_backward(
    storage* ds, const storage* p, long long n_rows, int n_queries, int n_keys, int causal, int row_threads, float scale,
    unsigned long long key, long long first, unsigned int threshold, float keep_scale) {
    const long long row = (long long)blockIdx.x * (blockDim.x / row_threads) + threadIdx.x / row_threads;
    if (row >= n_rows) return;
    const Mask mask = {key, first, threshold, keep_scale};
    const Query q = query_of(row, n_queries, n_keys, causal, row_threads);
    if (plain_rows(n_keys, ds, p)) gradient_of_query<true>(ds + q.start, p + q.start, q, scale, mask, row_threads);
    else gradient_of_query<false>(ds + q.start, p + q.start, q, scale, mask, row_threads);
}
