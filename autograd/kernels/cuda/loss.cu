// Cross-entropy of logits that become their own gradient in place. Reference: ops/loss.py, classes CrossEntropy, LinearCrossEntropy.
//
//     loss = lse - sum w z + z_loss lse^2                        per row, lse = ln sum e^z; 0 where the target is ignored
//     dz = (softmax(z) (1 + 2 z_loss lse) - w) * gradient_scale
//     w = (1 - a) onehot(target) + a / n_classes                 a: label smoothing
//
// Layout  a block takes row after row; each thread takes 16 bytes at a time, BATCH times before it computes. A row, or what fits of it,
//         waits in shared memory between its two passes. While its gradient is written, the next row is read into the memory that it
//         leaves, so that loads and stores alternate all the time. Probabilities are never stored.
// Bytes   per logit, b = 4 (float) or 2 (16 bits): reads z, writes dz: 2 b.
#include "common.cuh"

// Of 16 bits before sm_90, whose conversions take more registers, and of float16: one, so that nothing spills.
template <class T> constexpr int batch_of = 1;
template <> constexpr int batch_of<float> = 2;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
template <> constexpr int batch_of<bf16> = 2;
#endif
constexpr int BATCH = batch_of<storage>;

struct Options {
    int n_classes, n_cached;  // n_cached, a multiple of WIDTH: how much of a row `cache` holds
    long long ignore_index;
    float label_smoothing, z_loss, gradient_scale;
    bool want_gradient;
};

// What one thread knows of a row after its first pass.
struct Seen {
    OnlineSoftmax softmax;
    float total = 0.0f;  // of the scores, for label smoothing

    template <bool PLAIN>
    __device__ void add(const uint4& words, const storage* type, int i, const Options& o) {
        float v[WIDTH];
        unpack(words, v, type);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            if (o.label_smoothing != 0.0f) total += v[k];  // past the end 0
            if (!PLAIN && i + k >= o.n_classes) v[k] = minus_infinity();
        }
        softmax.add(v);
    }
};

template <bool PLAIN>
__device__ inline void losses_of_rows(float* losses, storage* z, const long long* targets, int n_rows, const Options& o, uint4* cache) {
    const int n = o.n_classes, step = blockDim.x * WIDTH, first = threadIdx.x * WIDTH;
    const float at_target = 1.0f - o.label_smoothing, at_all = o.label_smoothing / n;
    Seen next;
    // The first round only reads: its `row` is before the block's first.
    for (int row = (int)blockIdx.x - (int)gridDim.x; row < n_rows; row += gridDim.x) {
        storage* mine = z + (long long)row * n;
        const storage* next_z = z + ((long long)row + gridDim.x) * n;
        const int n_next = row + (int)gridDim.x < n_rows ? n : 0;
        const long long target = row < 0 ? -1 : targets[row];
        const bool counted = row >= 0 && target != o.ignore_index;
        float shift = 0.0f, log_sum = 0.0f, factor = 0.0f, extra = 0.0f;
        if (counted) {  // the same for the block, so its barriers are met by all or none
            next.softmax.join_block();
            shift = next.softmax.shift();
            log_sum = logf(next.softmax.sum);
            const float lse = log_sum + shift;
            if (o.label_smoothing != 0.0f) extra = o.label_smoothing * shift - at_all * block_sum(next.total);
            extra += o.z_loss * lse * lse;
            factor = o.gradient_scale / next.softmax.sum * (1.0f + 2.0f * o.z_loss * lse);
        } else if (row >= 0 && threadIdx.x == 0) {
            losses[row] = 0.0f;
        }
        next = Seen();
        for (int begin = first; begin < n; begin += BATCH * step) {
            uint4 words[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) words[b] = load_packed<PLAIN>(next_z, begin + b * step, n_next);
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int i = begin + b * step;
                const bool has_target = counted && i <= target && target < i + WIDTH;
                if (row < 0 || i >= n || !(o.want_gradient || has_target)) continue;
                float v[WIDTH], score = 0.0f;
                unpack(i < o.n_cached ? cache[i / WIDTH] : load_packed<PLAIN>(mine, i, n), v, z);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    if (has_target && i + k == target) score = v[k] - shift;
                    v[k] = counted ? EXP(v[k] - shift) * factor - at_all * o.gradient_scale : 0.0f;
                }
                if (has_target) {
                    losses[row] = log_sum - at_target * score + extra;
#pragma unroll
                    for (int k = 0; k < WIDTH; k++)
                        if (i + k == target) v[k] -= at_target * o.gradient_scale;
                }
                if (o.want_gradient) store_chunk<PLAIN>(mine, i, n, v);
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                const int i = begin + b * step;
                if (i >= n_next) continue;
                if (i < o.n_cached) cache[i / WIDTH] = words[b];
                next.add<PLAIN>(words[b], z, i, o);
            }
        }
    }
}

// Launched with n_cached * sizeof(storage) bytes of dynamic shared memory.
extern "C" __global__ __launch_bounds__(1024, 1) void cross_entropy_in_place(
    float* losses, storage* z, const long long* targets, int n_rows, int n_classes, long long ignore_index, float label_smoothing,
    float z_loss, float gradient_scale, int want_gradient, int n_cached) {
    extern __shared__ uint4 cache[];
    const Options options = {n_classes, n_cached, ignore_index, label_smoothing, z_loss, gradient_scale, want_gradient != 0};
    if (plain_rows(n_classes, z)) losses_of_rows<true>(losses, z, targets, n_rows, options, cache);
    else losses_of_rows<false>(losses, z, targets, n_rows, options, cache);
}
