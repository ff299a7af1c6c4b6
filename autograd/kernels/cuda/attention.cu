// The middle of attention, between its matrix products: scores become weights, and their gradient becomes that of the scores.
// Reference: ops/attention.py, class Attention; same letters.
//
//     p = softmax(scale s) over the keys that a query attends to, pm = p m          m: dropout factors
//     ds = scale p (dp m - sum dp m p)
//
// Layout  one block per query; each thread takes 16 bytes of keys at a time, and only of keys that are not masked.
// Bytes   per score, b = 4 (float) or 2 (16 bits), without dropout: forward reads s, writes p: 2 b; backward reads p, dp, writes
//         ds: 3 b; causal: half the reads. With dropout forward writes p m too.
#include "common.cuh"

// Query t, of n_queries that are the last positions, attends to keys 0 .. t + n_keys - n_queries if causal, else all.
__device__ inline int keys_seen(int n_queries, int n_keys, int causal) {
    return causal ? (int)(blockIdx.x % n_queries) + n_keys - n_queries + 1 : n_keys;
}

// p overwrites s. threshold = 0: no dropout, and pm is not written.
extern "C" __global__ void attention_softmax_forward(
    storage* p, storage* pm, int n_queries, int n_keys, int causal, float scale, unsigned long long key, long long first,
    unsigned int threshold, float keep_scale) {
    const long long start = (long long)blockIdx.x * n_keys;
    const Mask mask = {key, first, threshold, keep_scale};
    const int n_seen = keys_seen(n_queries, n_keys, causal);
    p += start;
    pm += start;
    OnlineSoftmax softmax;
    float v[WIDTH];
    for (int i = threadIdx.x * WIDTH; i < n_seen; i += blockDim.x * WIDTH) {
        load(v, p, i, n_seen, minus_infinity());
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] *= scale;
        softmax.add(v);
    }
    softmax.join_block();
    const float factor = softmax.sum == 0.0f ? 0.0f : 1.0f / softmax.sum;
    for (int i = threadIdx.x * WIDTH; i < n_keys; i += blockDim.x * WIDTH) {
        load(v, p, i, n_seen, minus_infinity());  // masked keys: e^-infinity = 0
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] = EXP(scale * v[k] - softmax.shift()) * factor;
        store(p, i, n_keys, v);
        if (threshold) {
            mask.apply(v, start + i);
            store(pm, i, n_keys, v);
        }
    }
}

// ds overwrites dp.
extern "C" __global__ void attention_softmax_backward(
    storage* ds, const storage* p, int n_queries, int n_keys, int causal, float scale, unsigned long long key, long long first,
    unsigned int threshold, float keep_scale) {
    const long long start = (long long)blockIdx.x * n_keys;
    const Mask mask = {key, first, threshold, keep_scale};
    const int n_seen = keys_seen(n_queries, n_keys, causal);
    p += start;
    ds += start;
    float v[WIDTH], d[WIDTH], dot = 0.0f;
    for (int i = threadIdx.x * WIDTH; i < n_seen; i += blockDim.x * WIDTH) {
        load(v, p, i, n_seen);
        load(d, ds, i, n_seen);
        if (threshold) mask.apply(d, start + i);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) dot += v[k] * d[k];
    }
    dot = block_sum(dot);
    for (int i = threadIdx.x * WIDTH; i < n_keys; i += blockDim.x * WIDTH) {
        load(v, p, i, n_seen);  // masked keys: 0
        load(d, ds, i, n_seen);
        if (threshold) mask.apply(d, start + i);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) d[k] = scale * v[k] * (d[k] - dot);
        store(ds, i, n_keys, d);
    }
}
