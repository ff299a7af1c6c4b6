// Sums of two arrays of one shape, and casts between float and 16 bits. Reference: ops/elementwise.py, classes Add and Cast.
//
// Layout  a thread takes 16 bytes, or the eight elements of a cast, at a time, in steps of the whole grid.
// Bytes   per element, b = 4 (float) or 2 (16 bits): add reads a, b, writes y: 3 b; a cast 6.
#include "common.cuh"

extern "C" __global__ void add(storage* y, const storage* a, const storage* b, long long n) {
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float v[WIDTH], w[WIDTH];
        load(v, a, i, n);
        load(w, b, i, n);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] += w[k];
        store(y, i, n, v);
    }
}

template <class To, class From>
__device__ inline void cast(To* y, const From* x, long long n) {
    const long long step = (long long)gridDim.x * blockDim.x * 8;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < n; i += step) {
        float v[8];
        load(v, x, i, n);
        store(y, i, n, v);
    }
}

extern "C" __global__ void cast_to_bf16(bf16* y, const float* x, long long n) { cast(y, x, n); }

extern "C" __global__ void cast_from_bf16(float* y, const bf16* x, long long n) { cast(y, x, n); }

extern "C" __global__ void cast_to_f16(f16* y, const float* x, long long n) { cast(y, x, n); }

extern "C" __global__ void cast_from_f16(float* y, const f16* x, long long n) { cast(y, x, n); }
