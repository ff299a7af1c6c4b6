// Cross-entropy of logits that become their own gradient in place. Reference: ops/loss.py, classes CrossEntropy, LinearCrossEntropy.
//
//     loss = lse - sum w z + z_loss lse^2                        per row, lse = ln sum e^z; 0 where the target is ignored
//     dz = (softmax(z) (1 + 2 z_loss lse) - w) * gradient_scale
//     w = (1 - a) onehot(target) + a / n_classes                 a: label smoothing
//
// Layout  one block per row; each thread takes 16 bytes at a time. A row is read twice, the second time mostly from cache;
//         probabilities are never stored.
// Bytes   per logit, b = 4 (float) or 2 (16 bits): reads z, writes dz: 2 b.
#include "common.cuh"

extern "C" __global__ void cross_entropy_in_place(
    float* losses, storage* z, const long long* targets, int n_classes, long long ignore_index, float label_smoothing, float z_loss,
    float gradient_scale, int want_gradient) {
    const long long target = targets[blockIdx.x];
    const bool counted = target != ignore_index;
    z += (long long)blockIdx.x * n_classes;
    OnlineSoftmax softmax;
    float v[WIDTH], total = 0.0f;  // total: of the scores, for label smoothing
    if (counted) {  // the same for the whole block, so its barriers are met by all or none
        for (int i = threadIdx.x * WIDTH; i < n_classes; i += blockDim.x * WIDTH) {
            load(v, z, i, n_classes, minus_infinity());
            softmax.add(v);
            if (label_smoothing != 0.0f) {
#pragma unroll
                for (int k = 0; k < WIDTH; k++) total += i + k < n_classes ? v[k] : 0.0f;
            }
        }
        softmax.join_block();
        if (label_smoothing != 0.0f) total = block_sum(total);
    } else if (threadIdx.x == 0) {
        losses[blockIdx.x] = 0.0f;
    }
    float factor = counted ? gradient_scale / softmax.sum : 0.0f, extra = 0.0f;
    if (counted && z_loss != 0.0f) {
        const float lse = logf(softmax.sum) + softmax.shift();
        extra = z_loss * lse * lse;
        factor *= 1.0f + 2.0f * z_loss * lse;
    }
    const float at_target = 1.0f - label_smoothing, at_all = label_smoothing / n_classes;
    if (counted && label_smoothing != 0.0f) extra -= at_all * total - label_smoothing * softmax.shift();
    // From the end, which was read last: more of the row is still in a cache.
    const int step = blockDim.x * WIDTH, first = threadIdx.x * WIDTH;
    for (int i = first + (n_classes - 1 - first) / step * step; i >= first; i -= step) {
        if (!want_gradient && !(i <= target && target < i + WIDTH)) continue;  // only the target's own score is left to read
        if (counted) {
            load(v, z, i, n_classes);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                const float shifted = v[k] - softmax.shift();
                v[k] = EXP(shifted) * factor - at_all * gradient_scale;
                if (i + k == target) {
                    losses[blockIdx.x] = logf(softmax.sum) - at_target * shifted + extra;
                    v[k] -= at_target * gradient_scale;
                }
            }
        } else {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) v[k] = 0.0f;
        }
        if (want_gradient) store(z, i, n_classes, v);
    }
}
