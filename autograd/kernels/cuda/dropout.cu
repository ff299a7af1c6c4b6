// Dropout, forward and backward alike: y = x m with a mask m computed by a hash of each element's number, never stored.
// Reference: ops/dropout.py, class Dropout; the hash: common.cuh.
//
// Layout  a thread takes 16 bytes at a time, in steps of the whole grid.
// Bytes   per element, b = 4 (float) or 2 (bf16): reads x, writes y: 2 b.
#include "common.cuh"

extern "C" __global__ void dropout(
    storage* y, const storage* x, long long n, unsigned long long key, unsigned int threshold, float scale) {
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float v[WIDTH];
        load(v, x, i, n);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] *= dropout_factor(key, i + k, threshold, scale);
        store(y, i, n, v);
    }
}
