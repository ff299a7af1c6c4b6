// Sums of two arrays of one shape. Reference: ops/elementwise.py, class Add.
//
// Layout  a thread takes 16 bytes at a time, in steps of the whole grid.
// Bytes   per element, b = 4 (float) or 2 (bf16): reads a, b, writes y: 3 b.
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
