// The optimizer's two passes over its flat buffers. Reference: optim/adam.py and flat.py, classes AdamWUpdate and SquaredNorm; same letters.
//
// Layout  a thread takes four numbers (16 bytes) of each array at a time, in steps of the whole grid.
// Bytes   per weight, all float: AdamW reads weight, gradient, m, v and writes weight, m, v: 28; the norm reads the gradient: 4.
#include "common.cuh"

// scale_on_device: the clip factor where it was computed, or null for scale. What depends on the step alone comes from the host:
// decay_factor = 1 - lr decay, rate = lr sqrt(1 - b2^t) / (1 - b1^t), eps already times sqrt(1 - b2^t).
extern "C" __global__ void adamw_update(
    float* weight, const float* gradient, float* m, float* v, const float* scale_on_device, float scale, float b1, float b2,
    float one_minus_b1, float one_minus_b2, float eps, float decay_factor, float rate, long long n) {
    if (scale_on_device) scale = *scale_on_device;
    const long long step = (long long)gridDim.x * blockDim.x * 4;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += step) {
        float w4[4], g4[4], m4[4], v4[4];
        load(w4, weight, i, n);
        load(g4, gradient, i, n);
        load(m4, m, i, n);
        load(v4, v, i, n);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float g = g4[k] * scale;
            m4[k] = b1 * m4[k] + one_minus_b1 * g;
            v4[k] = b2 * v4[k] + one_minus_b2 * g * g;
            w4[k] = decay_factor * w4[k] - rate * (m4[k] / (sqrtf(v4[k]) + eps));
        }
        store(weight, i, n, w4);
        store(m, i, n, m4);
        store(v, i, n, v4);
    }
}

// Two stages, no atomics, so the same bits every time: a sum of squares per block, then one block adds those.
extern "C" __global__ void squared_norm_of_blocks(float* parts, const float* x, long long n) {
    const long long step = (long long)gridDim.x * blockDim.x * 4;
    float sum = 0.0f;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < n; i += step) {
        float x4[4];
        load(x4, x, i, n);
#pragma unroll
        for (int k = 0; k < 4; k++) sum += x4[k] * x4[k];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void squared_norm_total(float* total, const float* parts, int n_parts) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n_parts; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *total = sum;
}
