// The bias of a linear layer, and the sums of columns that are its gradient.
// Reference: ops/matmul.py, class Linear.
//
// Layout  a thread takes 16 bytes of neighbouring columns; add_bias: in every gridDim.y-th row; column_sums: in rows of its warp.
// Bytes   per element, b = 4 (float) or 2 (16 bits): add_bias reads and writes y: 2 b; column_sums reads x: b.
#include "common.cuh"

// y[row, c] += bias[c]
extern "C" __global__ void add_bias(storage* y, const storage* bias, long long n_rows, int n_columns) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    float v[WIDTH], b[WIDTH];
    load(b, bias, c, n_columns);
    for (long long row = blockIdx.y; row < n_rows; row += gridDim.y) {
        load(v, y + row * n_columns, c, n_columns);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] += b[k];
        store(y + row * n_columns, c, n_columns, v);
    }
}

constexpr int MAX_WARPS = 16;

// parts[j, c] = sum of x[row, c] over block j's rows; `sum_parts` adds them up: no atomics, the same bits every time. A block takes
// 32 * WIDTH neighbouring columns, its warps every (number of warps)-th row.
extern "C" __global__ void column_sums(float* parts, const storage* x, long long n_rows, int n_columns) {
    __shared__ float of_warp[MAX_WARPS][32 * WIDTH];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32, c = (blockIdx.x * 32 + lane) * WIDTH;
    float v[WIDTH], sum[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0.0f;
#pragma unroll 4
    for (long long row = (long long)blockIdx.y * n_warps + warp; row < n_rows; row += (long long)gridDim.y * n_warps) {
        load(v, x + row * n_columns, c, n_columns);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] += v[k];
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) of_warp[warp][k * 32 + lane] = sum[k];  // neighbouring lanes in neighbouring banks
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * WIDTH; i += blockDim.x) {
        const int column = (blockIdx.x * 32 + i % 32) * WIDTH + i / 32;
        float total = 0.0f;
        for (int w = 0; w < n_warps; w++) total += of_warp[w][i];
        if (column < n_columns) parts[(long long)blockIdx.y * n_columns + column] = total;
    }
}

// total[i, c] = sum over parts of parts[i, part, c], i = blockIdx.y. One warp's lanes take 32 neighbouring columns, the block's
// warps every (number of warps)-th part; the warps' sums are then added in order.
extern "C" __global__ void sum_parts(parameter* total, const float* parts, int n_parts, int n_columns) {
    __shared__ float of_warp[32][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32, c = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    parts += (long long)blockIdx.y * n_parts * n_columns;
    if (c < n_columns)
        for (int part = warp; part < n_parts; part += n_warps) sum += parts[(long long)part * n_columns + c];
    of_warp[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < n_columns) {
        for (int w = 1; w < n_warps; w++) sum += of_warp[w][lane];
        from_float(sum, total[(long long)blockIdx.y * n_columns + c]);
    }
}
