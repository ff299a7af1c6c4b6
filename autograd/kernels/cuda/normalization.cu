// Layer norm, RMS norm and their gradients. Reference: ops/normalization.py, classes LayerNorm and RMSNorm; same letters.
//
// Layout  `row_threads` threads per row, 32 if it fits: then a block takes several rows, each summed by its warp alone. A thread
//         holds CHUNKS times 16 bytes of its row in registers, so a row is read once.
// Bytes   per element, b = 4 (float) or 2 (16 bits): forward reads x, writes y: 2 b; backward reads x, dy, writes dx: 3 b.
#include "common.cuh"

#ifndef CHUNKS
#define CHUNKS 3
#endif
constexpr int MAX_WARPS = 4;

__device__ inline float row_sum(float x, int row_threads) { return row_threads == 32 ? warp_reduce<Add>(x) : block_sum(x); }

extern "C" __global__ void layer_norm_forward(
    storage* y, float* mean, float* r, const storage* x, const parameter* gamma, const parameter* beta, long long n_rows,
    int n_channels, float eps, int row_threads) {
    const long long row = (long long)blockIdx.x * (blockDim.x / row_threads) + threadIdx.x / row_threads;
    if (row >= n_rows) return;
    const int first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    float v[CHUNKS][WIDTH], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) load(v[j], x + row * n_channels, first + j * step, n_channels);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum += v[j][k];  // past the end v is 0
    const float row_mean = row_sum(sum, row_threads) / n_channels;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            v[j][k] -= row_mean;
            if (first + j * step + k < n_channels) squares += v[j][k] * v[j][k];
        }
    const float row_r = 1.0f / sqrtf(row_sum(squares, row_threads) / n_channels + eps);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        float g[WIDTH], b[WIDTH];
        load(g, gamma, first + j * step, n_channels);
        load(b, beta, first + j * step, n_channels);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[j][k] = g[k] * (v[j][k] * row_r) + b[k];
        store(y + row * n_channels, first + j * step, n_channels, v[j]);
    }
    if (threadIdx.x % row_threads == 0) {
        mean[row] = row_mean;
        r[row] = row_r;
    }
}

// What the threads of a block have added up: each adds to its own numbers, and neighbouring lanes to neighbouring banks.
typedef float Sums[MAX_WARPS][CHUNKS * WIDTH][32];

// part[c] = the block's sum for channel c, its warps' sums added in order.
__device__ inline void add_up(float* part, const Sums& sums, int n_channels, int row_threads) {
    for (int c = threadIdx.x; c < n_channels; c += blockDim.x) {
        const int owner = c / WIDTH % row_threads;  // the thread of a row that has this channel
        float sum = 0.0f;
        for (int w = owner / 32; w < blockDim.x / 32; w += row_threads / 32)
            sum += sums[w][c / (row_threads * WIDTH) * WIDTH + c % WIDTH][owner % 32];
        part[c] = sum;
    }
}

// dx of all rows; and for each block the sums over its rows of dy n and dy, which `sum_parts` of matmul.cu adds up: no atomics,
// so the same bits every time. parts is (2, blocks, channels): of dgamma, then of dbeta. Blocks of at most MAX_WARPS warps.
extern "C" __global__ __launch_bounds__(128, 3) void layer_norm_backward(
    storage* dx, float* parts, const storage* x, const float* mean, const float* r, const parameter* gamma, const storage* dy,
    long long n_rows, int n_channels, int row_threads) {
    __shared__ Sums dgamma, dbeta;
    const int rows = blockDim.x / row_threads, first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < CHUNKS * WIDTH; i++) dgamma[warp][i][lane] = dbeta[warp][i][lane] = 0.0f;

    for (long long row = (long long)blockIdx.x * rows + threadIdx.x / row_threads; row < n_rows; row += (long long)gridDim.x * rows) {
        float n[CHUNKS][WIDTH], q[CHUNKS][WIDTH], sum_q = 0.0f, sum_qn = 0.0f;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            load(n[j], x + row * n_channels, first + j * step, n_channels);
            load(q[j], dy + row * n_channels, first + j * step, n_channels);
        }
        const float row_mean = mean[row], row_r = r[row];
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            float g[WIDTH];
            load(g, gamma, first + j * step, n_channels);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                n[j][k] = (n[j][k] - row_mean) * row_r;
                dgamma[warp][j * WIDTH + k][lane] += q[j][k] * n[j][k];  // here q is still dy, and past the end 0
                dbeta[warp][j * WIDTH + k][lane] += q[j][k];
                q[j][k] *= g[k];
                sum_q += q[j][k];
                sum_qn += q[j][k] * n[j][k];
            }
        }
        const float mean_q = row_sum(sum_q, row_threads) / n_channels, mean_qn = row_sum(sum_qn, row_threads) / n_channels;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) q[j][k] = row_r * (q[j][k] - mean_q - n[j][k] * mean_qn);
            store(dx + row * n_channels, first + j * step, n_channels, q[j]);
        }
    }
    __syncthreads();
    add_up(parts + (long long)blockIdx.x * n_channels, dgamma, n_channels, row_threads);
    add_up(parts + ((long long)gridDim.x + blockIdx.x) * n_channels, dbeta, n_channels, row_threads);
}

// RMS norm is layer norm without the mean and without beta; the scale is offset + weight.
extern "C" __global__ void rms_norm_forward(
    storage* y, float* r, const storage* x, const parameter* weight, float offset, long long n_rows, int n_channels, float eps,
    int row_threads) {
    const long long row = (long long)blockIdx.x * (blockDim.x / row_threads) + threadIdx.x / row_threads;
    if (row >= n_rows) return;
    const int first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    float v[CHUNKS][WIDTH], squares = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) load(v[j], x + row * n_channels, first + j * step, n_channels);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) squares += v[j][k] * v[j][k];  // past the end v is 0
    const float row_r = 1.0f / sqrtf(row_sum(squares, row_threads) / n_channels + eps);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        float g[WIDTH];
        load(g, weight, first + j * step, n_channels);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[j][k] = (offset + g[k]) * (v[j][k] * row_r);
        store(y + row * n_channels, first + j * step, n_channels, v[j]);
    }
    if (threadIdx.x % row_threads == 0) r[row] = row_r;
}

// As layer_norm_backward; parts is (blocks, channels), of dweight.
extern "C" __global__ __launch_bounds__(128, 3) void rms_norm_backward(
    storage* dx, float* parts, const storage* x, const float* r, const parameter* weight, float offset, const storage* dy,
    long long n_rows, int n_channels, int row_threads) {
    __shared__ Sums dweight;
    const int rows = blockDim.x / row_threads, first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < CHUNKS * WIDTH; i++) dweight[warp][i][lane] = 0.0f;

    for (long long row = (long long)blockIdx.x * rows + threadIdx.x / row_threads; row < n_rows; row += (long long)gridDim.x * rows) {
        float n[CHUNKS][WIDTH], q[CHUNKS][WIDTH], sum_qn = 0.0f;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            load(n[j], x + row * n_channels, first + j * step, n_channels);
            load(q[j], dy + row * n_channels, first + j * step, n_channels);
        }
        const float row_r = r[row];
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            float g[WIDTH];
            load(g, weight, first + j * step, n_channels);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                n[j][k] *= row_r;
                dweight[warp][j * WIDTH + k][lane] += q[j][k] * n[j][k];  // here q is still dy, and past the end 0
                q[j][k] *= offset + g[k];
                sum_qn += q[j][k] * n[j][k];
            }
        }
        const float mean_qn = row_sum(sum_qn, row_threads) / n_channels;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) q[j][k] = row_r * (q[j][k] - n[j][k] * mean_qn);
            store(dx + row * n_channels, first + j * step, n_channels, q[j]);
        }
    }
    __syncthreads();
    add_up(parts + (long long)blockIdx.x * n_channels, dweight, n_channels, row_threads);
}
