// GELU, the tanh form, and its gradient. Reference: ops/activation.py, class GELU.
//
//     y = x (1 + tanh u) / 2 = x s,  s = 1 / (1 + e^-2u),  u = a (x + c x^3)        one exponential costs less than tanh
//     dx = dy (s + 2 x s (1 - s) u'),  u' = a (1 + 3 c x^2)                          since (1 - tanh^2 u) / 4 = s (1 - s)
//
// Layout  a thread takes 16 bytes at a time, in steps of the whole grid.
// Bytes   per element, b = 4 (float) or 2 (bf16): forward reads x, writes y: 2 b; backward reads x, dy, writes dx: 3 b.
#include "common.cuh"

constexpr float GELU_SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;

__device__ inline float sigmoid_of_2u(float x) {
    return INVERSE(1.0f + EXP(-2.0f * GELU_SCALE * (x + GELU_CUBIC * x * x * x)));
}

__device__ inline float gelu(float x) { return x * sigmoid_of_2u(x); }

__device__ inline float gelu_slope(float x) {
    const float s = sigmoid_of_2u(x);
    return s + 2.0f * x * s * (1.0f - s) * GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * x * x);
}

extern "C" __global__ void gelu_forward(storage* y, const storage* x, long long n) {
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float v[WIDTH];
        load(v, x, i, n);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) v[k] = gelu(v[k]);
        store(y, i, n, v);
    }
}

extern "C" __global__ void gelu_backward(storage* dx, const storage* x, const storage* dy, long long n) {
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float v[WIDTH], d[WIDTH];
        load(v, x, i, n);
        load(d, dy, i, n);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) d[k] *= gelu_slope(v[k]);
        store(dx, i, n, d);
    }
}
