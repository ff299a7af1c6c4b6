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
constexpr int BATCH = 32 / WIDTH;                  // rows on their way at once
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

// The positions first .. end - 1 that a warp adds up. `last` is where the last id that begins in its span does; if that id fills the
// next span too, it is long and left to embedding_long: end = last. An id that began earlier is not this warp's: first is behind it.
struct Span {
    long long first, last, end;
    bool is_long, is_filled;  // is_filled: by one id that began earlier
};

__device__ inline Span span_of(const Key* keys, long long begin, long long n) {
    const int lane = threadIdx.x % 32;
    const Key mine = begin + lane < n ? keys[begin + lane] : NOTHING, before = begin + lane > 0 && begin + lane <= n ? keys[begin + lane - 1] : NOTHING;
    const unsigned int begins = __ballot_sync(0xffffffffu, mine != NOTHING && (begin + lane == 0 || id_of(mine) != id_of(before)));
    if (!begins) return {begin, begin, begin, false, begin + SPAN <= n};
    const long long last = begin + 31 - __clz(begins), next = begin + SPAN + lane;
    const unsigned int id = id_of(keys[last]);
    const int n_more = __popc(__ballot_sync(0xffffffffu, next < n && id_of(keys[next]) == id));  // sorted: the first so many
    const long long end = begin + SPAN < n ? begin + SPAN + n_more : n;
    return {begin + __ffs(begins) - 1, last, n_more == SPAN ? last : end, n_more == SPAN, false};
}

struct Channels {
    int c, n;
};

__device__ inline void put(storage* dweight, long long id, const Channels& at, float (&sum)[WIDTH]) {
    store(dweight + id * at.n, at.c, at.n, sum);
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0.0f;
}

// sum += the rows of positions i .. end - 1; where the id changes, the sum is put into the row of dweight that is done, and ids between
// the two get 0. With parts, which follow each other, instead of dy: no ids.
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
                put(dweight, id, at, sum);
                for (id++; id < id_of(key[b]); id++) put(dweight, id, at, sum);
            }
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sum[k] += v[b][k];
        }
    }
}

template <bool PLAIN>
__device__ inline void sum_of_span(
    storage* dweight, float* parts, const storage* dy, const Key* keys, long long n, long long n_ids, const Channels& at) {
    const long long begin = (long long)blockIdx.x * SPAN;
    const Span span = span_of(keys, begin, n);
    float sum[WIDTH], nothing[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = nothing[k] = 0.0f;
    if (span.is_filled) {
        long long id = id_of(keys[begin]);
        add_rows<PLAIN, false>(sum, dweight, dy, keys, id, begin, begin + SPAN, at);
        store(parts + (long long)blockIdx.x * at.n, at.c, at.n, sum);
        return;
    }
    long long id, gap = span.first > 0 ? (long long)id_of(keys[span.first - 1]) + 1 : 0;
    if (span.first < span.end || span.is_long)  // an id begins here
        for (id = id_of(keys[span.first]); gap < id; gap++) put(dweight, gap, at, nothing);
    if (span.first < span.end) {
        add_rows<PLAIN, false>(sum, dweight, dy, keys, id, span.first, span.end, at);
        put(dweight, id, at, sum);
    }
    if (span.is_long)
        for (id++; id < id_of(keys[span.last]); id++) put(dweight, id, at, nothing);
    if (span.end == n && span.first < span.end)
        for (id++; id < n_ids; id++) put(dweight, id, at, nothing);
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
    const long long begin = (long long)blockIdx.x * SPAN;
    const Span span = span_of(keys, begin, n);
    if (!span.is_long) return;
    long long id = id_of(keys[span.last]), filled = blockIdx.x + 1, same = 32;
    float sum[WIDTH];
#pragma unroll
    for (int k = 0; k < WIDTH; k++) sum[k] = 0.0f;
    add_rows<false, false>(sum, dweight, dy, keys, id, span.last, begin + SPAN, at);
    for (; same == 32; filled += same) {
        const long long end = (filled + threadIdx.x % 32 + 1) * SPAN;
        same = __popc(__ballot_sync(0xffffffffu, end <= n && id_of(keys[end - 1]) == id));
    }
    add_rows<false, true>(sum, dweight, parts, keys, id, blockIdx.x + 1, filled, at);
    long long end = filled * SPAN;
    const long long lane = end + threadIdx.x % 32;
    end += __popc(__ballot_sync(0xffffffffu, lane < n && id_of(keys[lane]) == id));
    add_rows<false, false>(sum, dweight, dy, keys, id, filled * SPAN, end, at);
    put(dweight, id, at, sum);
    if (end == n)
        for (id++; id < n_ids; id++) put(dweight, id, at, sum);
}
