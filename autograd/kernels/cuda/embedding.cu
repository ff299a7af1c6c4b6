// The gradient of an embedding table: rows of dy that had the same id are added up. Reference: ops/embedding.py, class Embedding.
//
// Positions are sorted by id first, so equal ids are contiguous, and the block at the first position of an id adds all of them.
// No atomics: each number is summed by one block, in one order, so the same run gives the same bits.
//
// Layout  one block per (position in the sorted order, slice of 32 * WIDTH channels); blocks that are not at the first position
//         of an id return at once. Lanes take 16 bytes of channels, warps every (number of warps)-th row; their sums are added in order.
// Bytes   per element of dy, b = 4 (float) or 2 (16 bits): reads dy: b; per element of a row looked up: writes dweight: b. The rest
//         of dweight is set to 0 beforehand.
#include "common.cuh"

constexpr int N_WARPS = 8;

// order[j]: which row of dy is at position j;  sorted_ids[j]: its id. Blocks of 32 * N_WARPS threads.
extern "C" __global__ void embedding_backward(
    storage* dweight, const storage* dy, const long long* sorted_ids, const long long* order, long long n_positions, int n_channels) {
    __shared__ float of_warp[N_WARPS][32 * WIDTH];
    const long long first = blockIdx.x, id = sorted_ids[first];
    if (first > 0 && sorted_ids[first - 1] == id) return;  // the same for the whole block
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = (blockIdx.y * 32 + lane) * WIDTH;
    float sum[WIDTH], v[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0.0f;
    for (long long j = first + warp; j < n_positions && sorted_ids[j] == id; j += N_WARPS) {
        load(v, dy + order[j] * n_channels, c, n_channels);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum[k] += v[k];
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) of_warp[warp][k * 32 + lane] = sum[k];  // neighbours in neighbouring banks
    __syncthreads();
    if (warp == 0) {
        for (int w = 1; w < N_WARPS; w++)
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum[k] += of_warp[w][k * 32 + lane];
        store(dweight + id * n_channels, c, n_channels, sum);
    }
}
