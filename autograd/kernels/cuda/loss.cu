// Cross-entropy of logits that become their own gradient in place. Reference: ops/loss.py, classes CrossEntropy, LinearCrossEntropy.
//
//     loss = lse - sum w z + z_loss lse^2                        per row, lse = ln sum e^z; 0 where the target is ignored
//     dz = (softmax(z) (1 + 2 z_loss lse) - w) * gradient_scale
//     w = (1 - a) onehot(target) + a / n_classes                 a: label smoothing
//
// Layout  one block per row; each thread takes 16 bytes at a time, several times before it computes. The row, or what fits, waits in
//         shared memory for the second pass, at the thread that loaded it; the rest is read again. Probabilities are never stored.
// Bytes   per logit, b = 4 (float) or 2 (16 bits): reads z, writes dz: 2 b.
#include "common.cuh"

#ifndef BATCH
#define BATCH 4
#endif

// What a row's loss and gradient are computed with.
struct Loss {
    long long target;
    bool counted;
    int n_classes, n_cached;  // n_cached, a multiple of WIDTH: how much of the row `cache` holds
    float label_smoothing, z_loss, gradient_scale;
};

template <bool PLAIN>
__device__ inline void loss_of_row(float* loss, storage* z, const Loss& row, bool want_gradient, uint4* cache) {
    const int n = row.n_classes, step = blockDim.x * WIDTH, first = threadIdx.x * WIDTH;
    OnlineSoftmax softmax;
    float v[WIDTH], total = 0.0f;  // total: of the scores, for label smoothing
    if (row.counted) {  // the same for the whole block, so its barriers are met by all or none
        for (int begin = first; begin < n; begin += BATCH * step) {
            uint4 words[BATCH];
            float all[BATCH * WIDTH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) words[b] = load_packed<PLAIN>(z, begin + b * step, n);
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int i = begin + b * step;
                if (i < row.n_cached) cache[i / WIDTH] = words[b];
                unpack(words[b], all, z, b * WIDTH);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    if (row.label_smoothing != 0.0f) total += all[b * WIDTH + k];  // past the end 0
                    if (i + (PLAIN ? 0 : k) >= n) all[b * WIDTH + k] = minus_infinity();
                }
            }
            softmax.add(all);
        }
        softmax.join_block();
        if (row.label_smoothing != 0.0f) total = block_sum(total);
    } else if (threadIdx.x == 0) {
        *loss = 0.0f;
    }
    float factor = row.counted ? row.gradient_scale / softmax.sum : 0.0f, extra = 0.0f;
    if (row.counted && row.z_loss != 0.0f) {
        const float lse = logf(softmax.sum) + softmax.shift();
        extra = row.z_loss * lse * lse;
        factor *= 1.0f + 2.0f * row.z_loss * lse;
    }
    const float at_target = 1.0f - row.label_smoothing, at_all = row.label_smoothing / n, shift = softmax.shift();
    if (row.counted && row.label_smoothing != 0.0f) extra -= at_all * total - row.label_smoothing * shift;
    // From the end, which was read last: more of what is not in shared memory is still in a cache.
    for (int i = first + (n - 1 - first) / step * step; i >= first; i -= step) {
        const bool has_target = i <= row.target && row.target < i + WIDTH;
        if (!want_gradient && !has_target) continue;  // only the target's own score is left to read
        if (row.counted) {
            unpack(i < row.n_cached ? cache[i / WIDTH] : load_packed<PLAIN>(z, i, n), v, z);
            float score = 0.0f;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                if (has_target && i + k == row.target) score = v[k] - shift;
                v[k] = EXP(v[k] - shift) * factor - at_all * row.gradient_scale;
            }
            if (has_target) {
                *loss = logf(softmax.sum) - at_target * score + extra;
#pragma unroll
                for (int k = 0; k < WIDTH; k++)
                    if (i + k == row.target) v[k] -= at_target * row.gradient_scale;
            }
        } else {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) v[k] = 0.0f;
        }
        if (want_gradient) store_chunk<PLAIN>(z, i, n, v);
    }
}

// Launched with n_cached * sizeof(storage) bytes of dynamic shared memory.
extern "C" __global__ __launch_bounds__(1024, 1) void cross_entropy_in_place(
    float* losses, storage* z, const long long* targets, int n_classes, long long ignore_index, float label_smoothing, float z_loss,
    float gradient_scale, int want_gradient, int n_cached) {
    extern __shared__ uint4 cache[];
    const long long target = targets[blockIdx.x];
    const Loss row = {target, target != ignore_index, n_classes, n_cached, label_smoothing, z_loss, gradient_scale};
    if (plain_rows(n_classes, z)) loss_of_row<true>(losses + blockIdx.x, z + (long long)blockIdx.x * n_classes, row, want_gradient, cache);
    else loss_of_row<false>(losses + blockIdx.x, z + (long long)blockIdx.x * n_classes, row, want_gradient, cache);
}
