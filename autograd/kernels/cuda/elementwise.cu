// Sums of two arrays of one shape, and casts between float and 16 bits. Reference: ops/elementwise.py, classes Add and Cast.
//
// Layout  a thread takes 16 bytes, or eight elements of a cast, at a time, in steps of the whole grid.
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

// To 16 bits: loads are two of 16 bytes per thread, the store is one.
template <class To>
__device__ inline void narrow(To* y, const float* x, long long n) {
    const long long step = (long long)gridDim.x * blockDim.x * 8;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < n; i += step) {
        float v[8];
        load(v, x, i, n);
        store(y, i, n, v);
    }
}

// From 16 bits: a thread takes twice 4 numbers, so that a store of a warp is contiguous: stores are the larger part. No steps: blocks
// that end make room for loads of others.
template <class From>
__device__ inline void widen(float* y, const From* x, long long n) {
    const long long i = ((long long)blockIdx.x * blockDim.x * 2 + threadIdx.x) * 4, second = i + blockDim.x * 4;
    float v[2][4];
    if (second + 4 <= n && (unsigned long long)(x + i) % 8 == 0) {
        const uint2 a = *(const uint2*)(x + i), b = *(const uint2*)(x + second);
        unpack(a.x, v[0], x);
        unpack(a.y, v[0] + 2, x);
        unpack(b.x, v[1], x);
        unpack(b.y, v[1] + 2, x);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            v[0][k] = i + k < n ? to_float(x[i + k]) : 0.0f;
            v[1][k] = second + k < n ? to_float(x[second + k]) : 0.0f;
        }
    }
    store(y, i, n, v[0]);
    store(y, second, n, v[1]);
}

extern "C" __global__ void cast_to_bf16(bf16* y, const float* x, long long n) { narrow(y, x, n); }

extern "C" __global__ void cast_from_bf16(float* y, const bf16* x, long long n) { widen(y, x, n); }

extern "C" __global__ void cast_to_f16(f16* y, const float* x, long long n) { narrow(y, x, n); }

extern "C" __global__ void cast_from_f16(float* y, const f16* x, long long n) { widen(y, x, n); }
