// Layer norm, RMS norm and their gradients. Reference: ops/normalization.py, classes LayerNorm and RMSNorm; same letters.
//
// Layout  one block per row at a time; each thread holds 16 bytes of the row in registers, so a row is read once. With 1024
//         threads at most, rows are limited to 1024 * WIDTH channels.
// Bytes   per element, b = 4 (float) or 2 (bf16): forward reads x, writes y: 2 b; backward reads x, dy, writes dx: 3 b.
#include "common.cuh"

extern "C" __global__ void layer_norm_forward(
    storage* y, float* mean, float* r, const storage* x, const parameter* gamma, const parameter* beta, int n_channels, float eps) {
    const long long row = blockIdx.x;
    const int c = threadIdx.x * WIDTH;
    float v[WIDTH], g[WIDTH], b[WIDTH];
    load(v, x + row * n_channels, c, n_channels);

    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum += v[k];  // past the end v is 0
    const float row_mean = block_sum(sum) / n_channels;

    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        v[k] -= row_mean;
        if (c + k < n_channels) squares += v[k] * v[k];
    }
    const float row_r = 1.0f / sqrtf(block_sum(squares) / n_channels + eps);

    load(g, gamma, c, n_channels);
    load(b, beta, c, n_channels);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) v[k] = g[k] * (v[k] * row_r) + b[k];
    store(y + row * n_channels, c, n_channels, v);
    if (threadIdx.x == 0) {
        mean[row] = row_mean;
        r[row] = row_r;
    }
}

// dx of all rows; and for each block the sums over its rows of dy n and dy, which `sum_blocks` adds up: no atomics,
// so the same bits every time. dgamma_parts and dbeta_parts are (blocks, channels).
extern "C" __global__ void layer_norm_backward(
    storage* dx, float* dgamma_parts, float* dbeta_parts, const storage* x, const float* mean, const float* r,
    const parameter* gamma, const storage* dy, long long n_rows, int n_channels) {
    const int c = threadIdx.x * WIDTH;
    float g[WIDTH], dgamma[WIDTH], dbeta[WIDTH];
    load(g, gamma, c, n_channels);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) dgamma[k] = dbeta[k] = 0.0f;

    for (long long row = blockIdx.x; row < n_rows; row += gridDim.x) {
        float n[WIDTH], q[WIDTH];
        load(n, x + row * n_channels, c, n_channels);
        load(q, dy + row * n_channels, c, n_channels);
        const float row_mean = mean[row], row_r = r[row];
        float sum_q = 0.0f, sum_qn = 0.0f;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            n[k] = (n[k] - row_mean) * row_r;
            dgamma[k] += q[k] * n[k];  // here q is still dy, and past the end 0
            dbeta[k] += q[k];
            q[k] *= g[k];
            sum_q += q[k];
            sum_qn += q[k] * n[k];
        }
        const float mean_q = block_sum(sum_q) / n_channels, mean_qn = block_sum(sum_qn) / n_channels;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) q[k] = row_r * (q[k] - mean_q - n[k] * mean_qn);
        store(dx + row * n_channels, c, n_channels, q);
    }
    store(dgamma_parts + (long long)blockIdx.x * n_channels, c, n_channels, dgamma);
    store(dbeta_parts + (long long)blockIdx.x * n_channels, c, n_channels, dbeta);
}

// RMS norm is layer norm without the mean and without beta; the scale is offset + weight.
extern "C" __global__ void rms_norm_forward(
    storage* y, float* r, const storage* x, const parameter* weight, float offset, int n_channels, float eps) {
    const long long row = blockIdx.x;
    const int c = threadIdx.x * WIDTH;
    float v[WIDTH], g[WIDTH];
    load(v, x + row * n_channels, c, n_channels);

    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) squares += v[k] * v[k];  // past the end v is 0
    const float row_r = 1.0f / sqrtf(block_sum(squares) / n_channels + eps);

    load(g, weight, c, n_channels);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) v[k] = (offset + g[k]) * (v[k] * row_r);
    store(y + row * n_channels, c, n_channels, v);
    if (threadIdx.x == 0) r[row] = row_r;
}

// dx of all rows; and for each block the sums over its rows of dy n, (blocks, channels), which `sum_blocks` adds up.
extern "C" __global__ void rms_norm_backward(
    storage* dx, float* dweight_parts, const storage* x, const float* r, const parameter* weight, float offset, const storage* dy,
    long long n_rows, int n_channels) {
    const int c = threadIdx.x * WIDTH;
    float g[WIDTH], dweight[WIDTH];
    load(g, weight, c, n_channels);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        g[k] += offset;
        dweight[k] = 0.0f;
    }

    for (long long row = blockIdx.x; row < n_rows; row += gridDim.x) {
        float n[WIDTH], q[WIDTH];
        load(n, x + row * n_channels, c, n_channels);
        load(q, dy + row * n_channels, c, n_channels);
        const float row_r = r[row];
        float sum_qn = 0.0f;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            n[k] *= row_r;
            dweight[k] += q[k] * n[k];  // here q is still dy, and past the end 0
            q[k] *= g[k];
            sum_qn += q[k] * n[k];
        }
        const float mean_qn = block_sum(sum_qn) / n_channels;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) q[k] = row_r * (q[k] - n[k] * mean_qn);
        store(dx + row * n_channels, c, n_channels, q);
    }
    store(dweight_parts + (long long)blockIdx.x * n_channels, c, n_channels, dweight);
}

// total[c] = sum over parts of parts[part][c]. One warp's lanes take 32 neighbouring channels, the block's warps every
// (number of warps)-th part; the warps' sums are then added in order. Blocks of 32 to 1024 threads.
extern "C" __global__ void sum_blocks(parameter* total, const float* parts, int n_parts, int n_channels) {
    __shared__ float of_warp[32][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (c < n_channels)
        for (int part = warp; part < n_parts; part += n_warps) sum += parts[(long long)part * n_channels + c];
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < n_channels) {
        for (int w = 1; w < n_warps; w++) sum += of_warp[w][lane];
        from_float(sum, total[c]);
    }
}
