// The gradient of an embedding table: rows of dy that had the same id are added up. Reference: ops/embedding.py, class Embedding.
//
// Positions are sorted by id: chunks of 1,024 each by a block, then up to 32 sorted runs at a time are merged, each key going where
// the number of smaller keys says. In that order the rows of an id follow each other. A warp adds up those that begin in its 32
// positions; an id so frequent that it fills other warps' positions is first summed by each of these, and then by a kernel of its own.
// No atomics: each number is summed by one thread, in one order, so the same run gives the same bits.
//
// Layout  sort: one block per chunk, in shared memory. Merge: a thread per key. Sums: a lane takes 16 bytes of channels, the warps of
//         a block different channels.
// Bytes   per element of dy, b = 4 (float) or 2 (16 bits): reads dy: b; per element of the table: writes dweight: b.
#include "common.cuh"

constexpr int CHUNK = 1024, FAN = 32, SPAN = 32;  // positions of a block that sorts, runs that are merged, positions of a warp that sums
constexpr int BATCH = 16 / WIDTH;                  // rows on their way at once
typedef unsigned long long Key;                    // id in the upper half, position in the lower
constexpr Key NOTHING = ~0ull;

__device__ inline unsigned int id_of(Key key) { return (unsigned int)(key >> 32); }

// Blocks of CHUNK / 2 threads. Batcher's bitonic network: each step compares and exchanges pairs at a distance.
extern "C" __global__ void embedding_sort(Key* keys, const long long* ids, long long n) {
    __shared__ Key sorted[CHUNK];
    const long long begin = (long long)blockIdx.x * CHUNK;
    for (int j = threadIdx.x; j < CHUNK; j += CHUNK / 2) sorted[j] = begin + j < n ? (Key)ids[begin + j] << 32 | (begin + j) : NOTHING;
    __syncthreads();
    for (int size = 2; size <= CHUNK; size *= 2)
        for (int distance = size / 2; distance > 0; distance /= 2) {
            if (distance >= 32) __syncthreads();
            else __syncwarp();  // a warp's pairs are its own 64 numbers
            const int low = threadIdx.x / distance * distance * 2 + threadIdx.x % distance, high = low + distance;
            const Key a = sorted[low], b = sorted[high];
            if ((a > b) == ((low & size) == 0)) sorted[low] = b, sorted[high] = a;
        }
    __syncthreads();
    for (int j = threadIdx.x; j < CHUNK; j += CHUNK / 2)
        if (begin + j < n) keys[begin + j] = sorted[j];
}

// FAN neighboring runs of `run` sorted keys, a power of two, become one. Eight runs are searched at once: each load waits for the last.
extern "C" __global__ void embedding_merge(Key* merged, const Key* keys, long long run, long long n) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, group = i / (run * FAN) * run * FAN;
    if (i >= n) return;
    const long long end = group + run * FAN < n ? group + run * FAN : n;
    const Key key = keys[i];
    long long rank = group;
    for (long long other = group; other < end; other += 8 * run) {
        long long n_less[8] = {};
        for (long long step = run; step > 0; step /= 2)
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const long long last = other + k * run + n_less[k] + step - 1;
                if (n_less[k] + step <= run && last < end && keys[last] < key) n_less[k] += step;
            }
#pragma unroll
        for (int k = 0; k < 8; k++) rank += n_less[k];
    }
    merged[rank] = key;
}

// What a warp adds up of its SPAN positions from `begin` on: positions first .. end - 1, from where an id begins to where the last one ends,
// which may be behind the span. An id that fills the next span too is long, and left to embedding_long; it begins at `last`.
struct Span {
    long long first, last, end;
    bool is_long, is_filled;  // is_filled: by an id that began earlier
};

__device__ inline Span span_of(const Key* keys, long long begin, long long n) {
    const long long mine = begin + threadIdx.x % 32, next = mine + SPAN;
    const bool begins_here = mine < n && (mine == 0 || id_of(keys[mine]) != id_of(keys[mine - 1]));
    const unsigned int begins = __ballot_sync(0xffffffffu, begins_here);
    if (!begins) return {begin, begin, begin, false, begin + SPAN <= n};
    const long long last = begin + 31 - __clz(begins);
    const int n_more = __popc(__ballot_sync(0xffffffffu, next < n && id_of(keys[next]) == id_of(keys[last])));  // sorted: the first ones
    const long long end = n_more == SPAN ? last : begin + SPAN < n ? begin + SPAN + n_more : n;
    return {begin + __ffs(begins) - 1, last, end, n_more == SPAN, false};
}

// Channels c .. c + WIDTH - 1 of n: a thread's.
struct Channels {
    int c, n;
};

__device__ inline void clear(float (&sum)[WIDTH]) {
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0.0f;
}

// dweight[id] = sum, and 0 for ids up to next - 1, which never occur. Clears the sum.
__device__ inline void put(storage* dweight, long long id, long long next, const Channels& at, float (&sum)[WIDTH]) {
    for (; id < next; id++) {
        store(dweight + id * at.n, at.c, at.n, sum);
        clear(sum);
    }
}

// sum += rows of positions i .. end - 1; where the id changes, the sum is put into dweight. OF_PARTS: rows follow each other, of one id.
template <bool PLAIN, bool OF_PARTS, class T>
__device__ inline void add_rows(
    float (&sum)[WIDTH], storage* dweight, const T* rows, const Key* keys, long long& id, long long i, long long end, const Channels& at) {
    for (; i < end; i += BATCH) {
        float v[BATCH][WIDTH];
        Key key[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            key[b] = OF_PARTS ? i + b : i + b < end ? keys[i + b] : 0;
            const long long row = OF_PARTS ? i + b : (long long)(key[b] & 0xffffffffu);
            load_chunk<PLAIN>(v[b], rows + row * at.n, at.c, i + b < end ? at.n : 0);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (i + b >= end) break;
            if (!OF_PARTS && id_of(key[b]) != id) {
                put(dweight, id, id_of(key[b]), at, sum);
                id = id_of(key[b]);
            }
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum[k] += v[b][k];
        }
    }
}

template <bool PLAIN>
__device__ inline void sum_of_span(
    storage* dweight, float* parts, const storage* dy, const Key* keys, long long n, long long n_ids, const Channels& at) {
    const Span span = span_of(keys, (long long)blockIdx.x * SPAN, n);
    float sum[WIDTH];
    clear(sum);
    long long id = id_of(keys[span.first]);
    if (span.is_filled) {
        add_rows<PLAIN, false>(sum, dweight, dy, keys, id, span.first, span.first + SPAN, at);
        store(parts + (long long)blockIdx.x * at.n, at.c, at.n, sum);
    } else if (span.first < span.end || span.is_long) {
        put(dweight, span.first > 0 ? id_of(keys[span.first - 1]) + 1ll : 0, id, at, sum);  // ids below the first never occur
        add_rows<PLAIN, false>(sum, dweight, dy, keys, id, span.first, span.end, at);
        if (span.first < span.end) put(dweight, id, span.is_long ? id_of(keys[span.last]) : span.end == n ? n_ids : id + 1, at, sum);
    }
}

// dweight, but for ids that are long, of which parts[span] has the sums of the spans that they fill. One block per SPAN positions.
extern "C" __global__ void embedding_backward(
    storage* dweight, float* parts, const storage* dy, const Key* keys, long long n, long long n_ids, int n_channels) {
    const Channels at = {(int)(blockIdx.y * blockDim.x + threadIdx.x) * WIDTH, n_channels};
    if (plain_rows(n_channels, dy)) sum_of_span<true>(dweight, parts, dy, keys, n, n_ids, at);
    else sum_of_span<false>(dweight, parts, dy, keys, n, n_ids, at);
}

// The rows of dweight of long ids: the rest of the span where one begins, the spans that it fills, the rows in the span after these.
extern "C" __global__ void embedding_long(
    storage* dweight, const float* parts, const storage* dy, const Key* keys, long long n, long long n_ids, int n_channels) {
    const Channels at = {(int)(blockIdx.y * blockDim.x + threadIdx.x) * WIDTH, n_channels};
    const Span span = span_of(keys, (long long)blockIdx.x * SPAN, n);
    if (!span.is_long) return;
    long long id = id_of(keys[span.last]), filled = blockIdx.x + 1, same = 32;
    float sum[WIDTH];
    clear(sum);
    add_rows<false, false>(sum, dweight, dy, keys, id, span.last, filled * SPAN, at);
    for (; same == 32; filled += same) {
        const long long end = (filled + threadIdx.x % 32 + 1) * SPAN;
        same = __popc(__ballot_sync(0xffffffffu, end <= n && id_of(keys[end - 1]) == id));
    }
    add_rows<false, true>(sum, dweight, parts, keys, id, blockIdx.x + 1, filled, at);
    const long long begin = filled * SPAN, mine = begin + threadIdx.x % 32;
    const long long end = begin + __popc(__ballot_sync(0xffffffffu, mine < n && id_of(keys[mine]) == id));
    add_rows<false, false>(sum, dweight, dy, keys, id, begin, end, at);
    put(dweight, id, end == n ? n_ids : id + 1, at, sum);
}
