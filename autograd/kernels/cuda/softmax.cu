// Softmax over the last axis, and its gradient. Reference: ops/activation.py, class Softmax.
//
//     y = e^(x - m) / sum e^(x - m),  m = max(x)           dx = y (dy - sum dy y)
//
// Layout  forward: ROW_THREADS threads per row, a warp if it fits, which holds the row in registers, CHUNKS times 16 bytes per
//         thread: x is read once, each exponential computed once, and warps wait for nobody. Longer rows, and backward: one block
//         per row, each thread takes 16 bytes at a time; the row is read twice, the second time from cache.
// Bytes   per element, b = 4 (float) or 2 (16 bits): forward reads x, writes y: 2 b; backward reads y, dy, writes dx: 3 b.
#include "common.cuh"

#ifndef CHUNKS
#define CHUNKS 4
#endif
#ifndef ROW_THREADS
#define ROW_THREADS 32
#endif
constexpr int MAX_THREADS = 256;  // of a block, whose registers hold the longest row
constexpr int STEP = ROW_THREADS * WIDTH;

template <bool PLAIN>
__device__ inline void softmax_of_row(storage* y, const storage* x, int n_columns) {
    const int first = threadIdx.x % ROW_THREADS * WIDTH;
    float v[CHUNKS][WIDTH], largest = minus_infinity(), sum = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) load_chunk<PLAIN>(v[j], x, first + j * STEP, n_columns, minus_infinity());
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) largest = fmaxf(largest, v[j][k]);
    largest = row_max(largest, ROW_THREADS);
    const float shift = largest == minus_infinity() ? 0.0f : largest;  // a row of -infinity gives zeros
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum += v[j][k] = EXP(v[j][k] - shift);
    sum = row_sum(sum, ROW_THREADS);
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[j][k] *= factor;
        store_chunk<PLAIN>(y, first + j * STEP, n_columns, v[j]);
    }
}

extern "C" __global__ __launch_bounds__(MAX_THREADS, 1) void softmax_forward(storage* y, const storage* x, long long n_rows, int n_columns) {
    const long long row = (long long)blockIdx.x * (blockDim.x / ROW_THREADS) + threadIdx.x / ROW_THREADS;
    if (row >= n_rows) return;
    if (plain_rows(n_columns, x, y)) softmax_of_row<true>(y + row * n_columns, x + row * n_columns, n_columns);
    else softmax_of_row<false>(y + row * n_columns, x + row * n_columns, n_columns);
}

extern "C" __global__ void softmax_forward_of_long_rows(storage* y, const storage* x, int n_columns) {
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
