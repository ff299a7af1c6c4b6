// Softmax over the last axis, and its gradient. Reference: ops/activation.py, class Softmax.
//
//     y = e^(x - m) / sum e^(x - m),  m = max(x)           dx = y (dy - sum dy y)
//
// Layout  one block per row; each thread takes 16 bytes at a time. A row is read twice, the second time from cache.
// Bytes   per element, b = 4 (float) or 2 (16 bits): forward reads x, writes y: 2 b; backward reads y, dy, writes dx: 3 b.
#include "common.cuh"

extern "C" __global__ void softmax_forward(storage* y, const storage* x, int n_columns) {
    x += (long long)blockIdx.x * n_columns;
    y += (long long)blockIdx.x * n_columns;
    OnlineSoftmax softmax;
    float v[WIDTH];
    for (int i = threadIdx.x * WIDTH; i < n_columns; i += blockDim.x * WIDTH) {
        load(v, x, i, n_columns, minus_infinity());
        softmax.add(v);
    }
    softmax.join_block();
    const float factor = softmax.sum == 0.0f ? 0.0f : 1.0f / softmax.sum;  // a row of -infinity gives zeros
    for (int i = threadIdx.x * WIDTH; i < n_columns; i += blockDim.x * WIDTH) {
        load(v, x, i, n_columns);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] = EXP(v[k] - softmax.shift()) * factor;
        store(y, i, n_columns, v);
    }
}

extern "C" __global__ void softmax_backward(storage* dx, const storage* y, const storage* dy, int n_columns) {
    y += (long long)blockIdx.x * n_columns;
    dy += (long long)blockIdx.x * n_columns;
    dx += (long long)blockIdx.x * n_columns;
    float v[WIDTH], d[WIDTH], dot = 0.0f;
    for (int i = threadIdx.x * WIDTH; i < n_columns; i += blockDim.x * WIDTH) {
        load(v, y, i, n_columns);
        load(d, dy, i, n_columns);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) dot += d[k] * v[k];
    }
    dot = block_sum(dot);
    for (int i = threadIdx.x * WIDTH; i < n_columns; i += blockDim.x * WIDTH) {
        load(v, y, i, n_columns);
        load(d, dy, i, n_columns);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) d[k] = v[k] * (d[k] - dot);
        store(dx, i, n_columns, d);
    }
}
