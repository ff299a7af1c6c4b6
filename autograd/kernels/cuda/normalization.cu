// Layer norm, RMS norm and their gradients. Reference: ops/normalization.py, classes LayerNorm and RMSNorm; same letters.
//
// Layout  `row_threads` threads per row, 32 if it fits: then a block takes several rows, each summed by its warp alone. A thread
//         holds CHUNKS times 16 bytes of its row in registers, so a row is read once. Backward, which adds up over rows, takes row
//         after row in steps of the grid; the next one is on its way while this one is computed.
// Bytes   per element, b = 4 (float) or 2 (16 bits): forward reads x, writes y: 2 b; backward reads x, dy, writes dx: 3 b.
#include "common.cuh"

#ifndef CHUNKS
#define CHUNKS 3
#endif
constexpr int MAX_WARPS = 4;
// Blocks of a multiprocessor at once, which bounds the registers of a thread: more blocks wait for more bytes at once.
constexpr int FORWARD_BLOCKS = sizeof(storage) == 2 ? 8 : 4, BACKWARD_BLOCKS = sizeof(storage) == 2 ? 3 : 2;

// y = gamma n + beta of layer norm, if CENTERED; else (offset + gamma) n of RMS norm, which is layer norm without the mean and beta.
template <bool PLAIN, bool CENTERED>
__device__ inline void forward(
    storage* y, float* mean, float* r, const storage* x, const parameter* gamma, const parameter* beta, float offset,
    long long n_rows, int n_channels, float eps, int row_threads) {
    const long long row = (long long)blockIdx.x * (blockDim.x / row_threads) + threadIdx.x / row_threads;
    if (row >= n_rows) return;
    const int first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    float v[CHUNKS][WIDTH], sum = 0.0f, squares = 0.0f, row_mean = 0.0f;
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) load_chunk<PLAIN>(v[j], x + row * n_channels, first + j * step, n_channels);
    if (CENTERED) {
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum += v[j][k];  // past the end v is 0
        row_mean = row_sum(sum, row_threads) / n_channels;
    }
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            v[j][k] -= row_mean;
            if (first + j * step + (PLAIN ? 0 : k) < n_channels) squares += v[j][k] * v[j][k];
        }
    const float row_r = 1.0f / sqrtf(row_sum(squares, row_threads) / n_channels + eps);
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        float g[WIDTH], b[WIDTH];
        load_chunk<PLAIN>(g, gamma, first + j * step, n_channels);
        if (CENTERED) load_chunk<PLAIN>(b, beta, first + j * step, n_channels);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[j][k] = CENTERED ? g[k] * (v[j][k] * row_r) + b[k] : (offset + g[k]) * (v[j][k] * row_r);
        store_chunk<PLAIN>(y + row * n_channels, first + j * step, n_channels, v[j]);
    }
    if (threadIdx.x % row_threads == 0) {
        if (CENTERED) mean[row] = row_mean;
        r[row] = row_r;
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

// What the gradient of a row is computed from: this thread's chunks, as they are stored, and what forward saved.
struct RowIn {
    uint4 x[CHUNKS], dy[CHUNKS];
    float mean, r;
};

template <bool PLAIN, bool CENTERED>
__device__ inline void load_row(
    RowIn& in, const storage* x, const storage* dy, const float* mean, const float* r, long long row, int n_channels, int first, int step) {
#pragma unroll
    for (int j = 0; j < CHUNKS; j++) {
        in.x[j] = load_packed<PLAIN>(x + row * n_channels, first + j * step, n_channels);
        in.dy[j] = load_packed<PLAIN>(dy + row * n_channels, first + j * step, n_channels);
    }
    in.mean = CENTERED ? mean[row] : 0.0f;
    in.r = r[row];
}

// dx of all rows; and for each block the sums over its rows of dy n and, if CENTERED, dy, which `sum_parts` of matmul.cu adds up: no
// atomics, so the same bits every time. parts is (2 or 1, blocks, channels): of dgamma, then of dbeta. Blocks of at most MAX_WARPS warps.
template <bool PLAIN, bool CENTERED>
__device__ inline void backward(
    storage* dx, float* parts, const storage* x, const float* mean, const float* r, const parameter* gamma, float offset,
    const storage* dy, long long n_rows, int n_channels, int row_threads) {
    const int rows = blockDim.x / row_threads, first = threadIdx.x % row_threads * WIDTH, step = row_threads * WIDTH;
    const long long stride = (long long)gridDim.x * rows;
    float dgamma[CHUNKS][WIDTH], dbeta[CHUNKS][WIDTH];
#pragma unroll
    for (int j = 0; j < CHUNKS; j++)
#pragma unroll
        for (int k = 0; k < WIDTH; k++) dgamma[j][k] = dbeta[j][k] = 0.0f;
    RowIn next;
    long long row = (long long)blockIdx.x * rows + threadIdx.x / row_threads;
    if (row < n_rows) load_row<PLAIN, CENTERED>(next, x, dy, mean, r, row, n_channels, first, step);
    for (; row < n_rows; row += stride) {
        const RowIn in = next;
        if (row + stride < n_rows) load_row<PLAIN, CENTERED>(next, x, dy, mean, r, row + stride, n_channels, first, step);
        float n[CHUNKS][WIDTH], q[CHUNKS][WIDTH], sum_q = 0.0f, sum_qn = 0.0f;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
            float g[WIDTH];
            load_chunk<PLAIN>(g, gamma, first + j * step, n_channels);
            unpack(in.x[j], n[j], x);
            unpack(in.dy[j], q[j], dy);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                n[j][k] = (n[j][k] - in.mean) * in.r;
                dgamma[j][k] += q[j][k] * n[j][k];  // here q is still dy, and past the end 0
                if (CENTERED) dbeta[j][k] += q[j][k];
                q[j][k] *= CENTERED ? g[k] : offset + g[k];
                if (CENTERED) sum_q += q[j][k];
                sum_qn += q[j][k] * n[j][k];
            }
        }
        const float mean_q = CENTERED ? row_sum(sum_q, row_threads) / n_channels : 0.0f;
        const float mean_qn = row_sum(sum_qn, row_threads) / n_channels;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) q[j][k] = in.r * (q[j][k] - mean_q - n[j][k] * mean_qn);
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
