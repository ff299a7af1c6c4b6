// Dropout, forward and backward alike: y = x m with a mask m computed by a hash of each element's number, never stored.
// Reference: ops/dropout.py, class Dropout; the hash: common.cuh.
//
// Layout  a thread takes 16 bytes at a time, in steps of the whole grid.
// Bytes   per element, b = 4 (float) or 2 (16 bits): reads x, writes y: 2 b.
#include "common.cuh"

extern "C" __global__ void dropout(
    storage* y, const storage* x, long long n, unsigned long long key, long long start, unsigned int threshold, float scale) {
    const Mask mask = {key, start, threshold, scale};
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float v[WIDTH];
        load(v, x, i, n);
        mask.apply(v, i);
        store(y, i, n, v);
    }
}
