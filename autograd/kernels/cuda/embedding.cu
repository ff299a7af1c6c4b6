// The gradient of an embedding table: rows of dy that had the same id are added up. Reference: ops/embedding.py, class Embedding.
//
// Two kernels. Positions are cut into chunks of 1,024, and each chunk is sorted by id, then position; a table tells where an id
// begins in each chunk. Then each id's rows are added up: the first of every chunk in order, the second of every chunk, and so on.
// No atomics: each number is summed by one thread, in one order, so the same run gives the same bits.
//
// Layout  sort: one block per chunk, in shared memory. Sum: one block per id (and group of chunks, of small tables), in which a
//         lane takes 16 bytes of channels, and the warps of a block different channels.
// Bytes   per element of dy, b = 4 (float) or 2 (16 bits): reads dy: b; per element of the table: writes dweight: b.
#include "common.cuh"

constexpr int CHUNK = 1024;  // positions; 10 bits
constexpr unsigned int NOTHING = 0xffffffffu;

// keys[j], of a chunk's j-th position in the order of (id, position): id * CHUNK + position within the chunk.
// starts[id, chunk] = 1 + the first j with that id; it is 0 beforehand. Blocks of CHUNK / 2 threads; ids below 2^22 - 1.
extern "C" __global__ void embedding_sort(
    unsigned int* keys, unsigned short* starts, const long long* ids, long long n_positions, int n_chunks) {
    __shared__ unsigned int sorted[CHUNK];
    const long long begin = (long long)blockIdx.x * CHUNK;
    for (int j = threadIdx.x; j < CHUNK; j += CHUNK / 2)
        sorted[j] = begin + j < n_positions ? (unsigned int)ids[begin + j] * CHUNK + j : NOTHING;
    __syncthreads();
    // Batcher's bitonic network: each step compares and exchanges pairs at a distance.
    for (int size = 2; size <= CHUNK; size *= 2)
        for (int distance = size / 2; distance > 0; distance /= 2) {
            if (distance >= 32) __syncthreads();
            else __syncwarp();  // a warp's pairs are its own 64 numbers
            const int low = threadIdx.x / distance * distance * 2 + threadIdx.x % distance, high = low + distance;
            const unsigned int a = sorted[low], b = sorted[high];
            if ((a > b) == ((low & size) == 0)) sorted[low] = b, sorted[high] = a;
        }
    __syncthreads();
    for (int j = threadIdx.x; j < CHUNK; j += CHUNK / 2) {
        const unsigned int key = sorted[j];
        keys[begin + j] = key;
        if (key != NOTHING && (j == 0 || sorted[j - 1] / CHUNK != key / CHUNK))
            starts[(long long)(key / CHUNK) * n_chunks + blockIdx.x] = (unsigned short)(j + 1);
    }
}

// Sums of the rows of `id` in chunks first_chunk .. end_chunk - 1, of channels c .. c + WIDTH - 1.
template <bool PLAIN>
__device__ inline void sum_of_id(
    float (&sum)[WIDTH], const storage* dy, const unsigned int* keys, const unsigned short* starts, unsigned int id, int first_chunk,
    int end_chunk, int n_chunks, int c, int n_channels) {
    constexpr int BATCH = 32 / WIDTH;  // rows on their way at once
    const int lane = threadIdx.x % 32;
    for (int begin = first_chunk; begin < end_chunk; begin += 32) {  // a lane looks after a chunk
        const int start = begin + lane < end_chunk ? starts[(long long)id * n_chunks + begin + lane] : 0;
        const unsigned int* mine = keys + (long long)(begin + lane) * CHUNK;
        unsigned int key = start ? mine[start - 1] : NOTHING;
        for (int j = start; ; j++) {
            unsigned int lanes = __ballot_sync(0xffffffffu, key / CHUNK == id);
            if (!lanes) break;
            const unsigned int next = key != NOTHING && j < CHUNK ? mine[j] : NOTHING;  // on its way while rows are added
            while (lanes) {
                float v[BATCH][WIDTH];
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    const int from = lanes ? __ffs(lanes) - 1 : 0;
                    const long long position = (long long)(begin + from) * CHUNK + __shfl_sync(0xffffffffu, key, from) % CHUNK;
                    load_chunk<PLAIN>(v[b], dy + position * n_channels, c, lanes ? n_channels : 0);
                    lanes &= lanes - 1;
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++)
#pragma unroll
                    for (int k = 0; k < WIDTH; k++) sum[k] += v[b][k];
            }
            key = next / CHUNK == id ? next : NOTHING;
        }
    }
}

// dweight[id] = the sum of its rows; of several groups of chunks, blockIdx.x / n_ids being the group, parts[group, id] instead.
extern "C" __global__ void embedding_backward(
    storage* dweight, float* parts, const storage* dy, const unsigned int* keys, const unsigned short* starts, int n_ids, int n_chunks,
    int n_channels) {
    const int n_groups = gridDim.x / n_ids, group = blockIdx.x / n_ids, id = blockIdx.x % n_ids;
    const int per_group = (n_chunks + n_groups - 1) / n_groups, first = group * per_group;
    const int end = first + per_group < n_chunks ? first + per_group : n_chunks, c = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    float sum[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0.0f;
    if (plain_rows(n_channels, dy)) sum_of_id<true>(sum, dy, keys, starts, id, first, end, n_chunks, c, n_channels);
    else sum_of_id<false>(sum, dy, keys, starts, id, first, end, n_chunks, c, n_channels);
    if (n_groups == 1) store(dweight + (long long)id * n_channels, c, n_channels, sum);
    else store(parts + (long long)blockIdx.x * n_channels, c, n_channels, sum);
}
