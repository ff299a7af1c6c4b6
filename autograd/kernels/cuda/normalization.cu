// Layer norm, RMS norm and their gradients. Reference: ops/normalization.py, classes LayerNorm and RMSNorm; same letters.
//
// Layout  `row_threads` threads per row, 32 if it fits: then a block takes several rows, each summed by its warp alone. A thread
//         holds CHUNKS times 16 bytes of its row in registers, so a row is read once, and takes row after row in steps of the grid:
//         of 16-bit numbers the next row is on its way while this one is computed.
// Bytes   per element, b = 4 (float) or 2 (16 bits): forward reads x, writes y: 2 b; backward reads x, dy, writes dx: 3 b.
#include "common.cuh"

#ifndef CHUNKS
#define CHUNKS 3
#endif
#ifndef FORWARD_AHEAD
#define FORWARD_AHEAD (sizeof(storage) == 2)
#endif
#ifndef FORWARD_KEEP
#define FORWARD_KEEP 1
#endif
#ifndef FORWARD_BLOCKS
#define FORWARD_BLOCKS 3
#endif
#ifndef BACKWARD_AHEAD
#define BACKWARD_AHEAD (sizeof(storage) == 2)
#endif
#ifndef BACKWARD_KEEP
#define BACKWARD_KEEP (sizeof(storage) == 2)
#endif
#ifndef BACKWARD_BLOCKS
#define BACKWARD_BLOCKS 3
#endif
constexpr int MAX_WARPS = 4;

// The part of a row that this thread holds, as it is stored.
struct Part {
    uint4 words[CHUNKS];
};

template <bool PLAIN>
__device__ inline void load_part(Part& part, const storage* row, int first, int step, int n_channels) {
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) part.words[j] = load_packed<PLAIN>(row, first + j * step, n_channels);
}

// y = g n + beta of layer norm, if CENTERED, or (offset + g) n of RMS norm, which is layer norm without the mean and without beta.
template <bool PLAIN, bool CENTERED>
__device__ inline void forward(
    storage* y, float* mean, float* r, const storage* x, const parameter* gamma, const parameter* beta, float offset,
    long long n_rows, int n_channels, float eps, int row_threads) {
    const int rows = blockDim.x / row_threads, first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    const long long stride = (long long)gridDim.x * rows;
    long long row = (long long)blockIdx.x * rows + threadIdx.x / row_threads;
    if (row >= n_rows) return;
    Part part;
    load_part<PLAIN>(part, x + row * n_channels, first, step, n_channels);
    float g[CHUNKS][WIDTH], b[CHUNKS][WIDTH];
    if (FORWARD_KEEP) {
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            load_chunk<PLAIN>(g[j], gamma, first + j * step, n_channels);
            if (CENTERED) load_chunk<PLAIN>(b[j], beta, first + j * step, n_channels);
        }
    }
    for (; row < n_rows; row += stride) {
        float v[CHUNKS][WIDTH], sum = 0.0f, squares = 0.0f, row_mean = 0.0f;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) unpack(part.words[j], v[j], x);
        if (FORWARD_AHEAD && row + stride < n_rows) load_part<PLAIN>(part, x + (row + stride) * n_channels, first, step, n_channels);
        if (CENTERED) {
#pragma unroll
            for (int j = 0; j < CHUNKS; j++)
#pragma unroll
                for (int k = 0; k < WIDTH; k++) sum += v[j][k];  // past the end v is 0
            row_mean = row_sum(sum, row_threads) / n_channels;
        }
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            if (!CENTERED || !PLAIN || first + j * step < n_channels) {
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    v[j][k] -= row_mean;
                    if (PLAIN || !CENTERED || first + j * step + k < n_channels) squares += v[j][k] * v[j][k];
                }
            }
        const float row_r = 1.0f / sqrtf(row_sum(squares, row_threads) / n_channels + eps);
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            if (!FORWARD_KEEP) {
                load_chunk<PLAIN>(g[j], gamma, first + j * step, n_channels);
                if (CENTERED) load_chunk<PLAIN>(b[j], beta, first + j * step, n_channels);
            }
#pragma unroll
            for (int k = 0; k < WIDTH; k++)
                v[j][k] = CENTERED ? g[j][k] * (v[j][k] * row_r) + b[j][k] : (offset + g[j][k]) * (v[j][k] * row_r);
            store_chunk<PLAIN>(y + row * n_channels, first + j * step, n_channels, v[j]);
        }
        if (threadIdx.x % row_threads == 0) {
            if (CENTERED) mean[row] = row_mean;
            r[row] = row_r;
        }
        if (!FORWARD_AHEAD && row + stride < n_rows) load_part<PLAIN>(part, x + (row + stride) * n_channels, first, step, n_channels);
    }
}

extern "C" __global__ __launch_bounds__(128, FORWARD_BLOCKS) void layer_norm_forward(
    storage* y, float* mean, float* r, const storage* x, const parameter* gamma, const parameter* beta, long long n_rows,
    int n_channels, float eps, int row_threads) {
    if (plain_rows(n_channels, x, y) && plain_rows(n_channels, gamma, beta))
        forward<true, true>(y, mean, r, x, gamma, beta, 0.0f, n_rows, n_channels, eps, row_threads);
    else forward<false, true>(y, mean, r, x, gamma, beta, 0.0f, n_rows, n_channels, eps, row_threads);
}

extern "C" __global__ __launch_bounds__(128, FORWARD_BLOCKS) void rms_norm_forward(
    storage* y, float* r, const storage* x, const parameter* weight, float offset, long long n_rows, int n_channels, float eps,
    int row_threads) {
    if (plain_rows(n_channels, x, y) && plain_rows(n_channels, weight))
        forward<true, false>(y, nullptr, r, x, weight, nullptr, offset, n_rows, n_channels, eps, row_threads);
    else forward<false, false>(y, nullptr, r, x, weight, nullptr, offset, n_rows, n_channels, eps, row_threads);
}

// part[c] = the block's sum for channel c: its warps' sums, each thread's of its own channels, added in order.
__device__ inline void add_up(float* part, const float (&sums)[CHUNKS][WIDTH], int n_channels, int row_threads) {
    __shared__ float of_warp[MAX_WARPS][CHUNKS * WIDTH][32];  // neighbouring lanes in neighbouring banks
    __syncthreads();  // of an earlier call
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) of_warp[threadIdx.x / 32][j * WIDTH + k][threadIdx.x % 32] = sums[j][k];
    __syncthreads();
    for (int c = threadIdx.x; c < n_channels; c += blockDim.x) {
        const int owner = c / WIDTH % row_threads;  // the thread of a row that has this channel
        float sum = 0.0f;
        for (int w = owner / 32; w < blockDim.x / 32; w += row_threads / 32)
            sum += of_warp[w][c / (row_threads * WIDTH) * WIDTH + c % WIDTH][owner % 32];
        part[c] = sum;
    }
}

// dx of all rows; and for each block the sums over its rows of dy n and, if CENTERED, dy, which `sum_parts` of matmul.cu adds up: no
// atomics, so the same bits every time. parts is (2 or 1, blocks, channels): of dgamma, then of dbeta. Blocks of at most MAX_WARPS warps.
template <bool PLAIN, bool CENTERED>
__device__ inline void backward(
    storage* dx, float* parts, const storage* x, const float* mean, const float* r, const parameter* gamma, float offset,
    const storage* dy, long long n_rows, int n_channels, int row_threads) {
    const int rows = blockDim.x / row_threads, first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    const long long stride = (long long)gridDim.x * rows;
    long long row = (long long)blockIdx.x * rows + threadIdx.x / row_threads;
    float dgamma[CHUNKS][WIDTH], dbeta[CHUNKS][WIDTH], g[CHUNKS][WIDTH];
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) dgamma[j][k] = dbeta[j][k] = 0.0f;
        if (BACKWARD_KEEP) load_chunk<PLAIN>(g[j], gamma, first + j * step, n_channels);
    }
    Part next_x, next_dy;
    float next_mean = 0.0f, next_r = 0.0f;
    if (BACKWARD_AHEAD && row < n_rows) {
        load_part<PLAIN>(next_x, x + row * n_channels, first, step, n_channels);
        load_part<PLAIN>(next_dy, dy + row * n_channels, first, step, n_channels);
        if (CENTERED) next_mean = mean[row];
        next_r = r[row];
    }
    for (; row < n_rows; row += stride) {
        Part of_x, of_dy;
        float row_mean, row_r;
        if (BACKWARD_AHEAD) {
            of_x = next_x, of_dy = next_dy, row_mean = next_mean, row_r = next_r;
        }
        const long long wanted = BACKWARD_AHEAD ? row + stride : row;
        if (wanted < n_rows) {
            load_part<PLAIN>(next_x, x + wanted * n_channels, first, step, n_channels);
            load_part<PLAIN>(next_dy, dy + wanted * n_channels, first, step, n_channels);
            if (CENTERED) next_mean = mean[wanted];
            next_r = r[wanted];
        }
        if (!BACKWARD_AHEAD) of_x = next_x, of_dy = next_dy, row_mean = next_mean, row_r = next_r;
        if (!CENTERED) row_mean = 0.0f;
        float n[CHUNKS][WIDTH], q[CHUNKS][WIDTH], sum_q = 0.0f, sum_qn = 0.0f;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            if (!BACKWARD_KEEP) load_chunk<PLAIN>(g[j], gamma, first + j * step, n_channels);
            unpack(of_x.words[j], n[j], x);
            unpack(of_dy.words[j], q[j], x);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                n[j][k] = (n[j][k] - row_mean) * row_r;
                dgamma[j][k] += q[j][k] * n[j][k];  // here q is still dy, and past the end 0
                if (CENTERED) dbeta[j][k] += q[j][k];
                q[j][k] *= CENTERED ? g[j][k] : offset + g[j][k];
                if (CENTERED) sum_q += q[j][k];
                sum_qn += q[j][k] * n[j][k];
            }
        }
        const float mean_q = CENTERED ? row_sum(sum_q, row_threads) / n_channels : 0.0f;
        const float mean_qn = row_sum(sum_qn, row_threads) / n_channels;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) q[j][k] = row_r * (q[j][k] - mean_q - n[j][k] * mean_qn);
            store_chunk<PLAIN>(dx + row * n_channels, first + j * step, n_channels, q[j]);
        }
    }
    add_up(parts + (long long)blockIdx.x * n_channels, dgamma, n_channels, row_threads);
    if (CENTERED) add_up(parts + ((long long)gridDim.x + blockIdx.x) * n_channels, dbeta, n_channels, row_threads);
}

extern "C" __global__ __launch_bounds__(128, BACKWARD_BLOCKS) void layer_norm_backward(
    storage* dx, float* parts, const storage* x, const float* mean, const float* r, const parameter* gamma, const storage* dy,
    long long n_rows, int n_channels, int row_threads) {
    if (plain_rows(n_channels, x, dy, dx) && plain_rows(n_channels, gamma))
        backward<true, true>(dx, parts, x, mean, r, gamma, 0.0f, dy, n_rows, n_channels, row_threads);
    else backward<false, true>(dx, parts, x, mean, r, gamma, 0.0f, dy, n_rows, n_channels, row_threads);
}

extern "C" __global__ __launch_bounds__(128, BACKWARD_BLOCKS) void rms_norm_backward(
    storage* dx, float* parts, const storage* x, const float* r, const parameter* weight, float offset, const storage* dy,
    long long n_rows, int n_channels, int row_threads) {
    if (plain_rows(n_channels, x, dy, dx) && plain_rows(n_channels, weight))
        backward<true, false>(dx, parts, x, nullptr, r, weight, offset, dy, n_rows, n_channels, row_threads);
    else backward<false, false>(dx, parts, x, nullptr, r, weight, offset, dy, n_rows, n_channels, row_threads);
}
