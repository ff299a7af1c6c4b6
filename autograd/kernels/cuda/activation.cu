// GELU, the tanh form, gated products, and their gradients. Reference: ops/activation.py, classes GELU and GatedProduct.
//
//     y = x (1 + tanh u) / 2 = x s,  s = 1 / (1 + e^-2u),  u = a (x + c x^3)        one exponential costs less than tanh
//     dx = dy (s + 2 x s (1 - s) u'),  u' = a (1 + 3 c x^2)                          since (1 - tanh^2 u) / 4 = s (1 - s)
//
// Layout  a thread takes 16 bytes at a time, in steps of the whole grid.
// Bytes   per element, b = 4 (float) or 2 (16 bits): forward reads x, writes y: 2 b; backward reads x, dy, writes dx: 3 b.
//         Gated products: forward reads gate, up, writes y: 3 b; backward reads gate, up, dy, writes dgate, dup: 5 b.
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

// f(x) and f'(x) of the activation with that number in ops/activation.py's ACTIVATIONS. All threads take the same branch.
struct Activated {
    float value, slope;
};

__device__ inline Activated activate(int activation, float x) {
    const float positive = fmaxf(x, 0.0f);
    switch (activation) {
        case 0: return {positive, x > 0.0f ? 1.0f : 0.0f};  // relu
        case 1: return {gelu(x), gelu_slope(x)};
        case 2: {  // gelu_exact
            const float below = 0.5f * erfcf(-0.7071067811865476f * x);  // sqrt(1 / 2)
            return {x * below, below + x * 0.3989422804014327f * expf(-0.5f * x * x)};  // 1 / sqrt(2 pi)
        }
        case 3: {  // silu
            const float s = 1.0f / (1.0f + expf(-x));
            return {x * s, s * (1.0f + x * (1.0f - s))};
        }
        default: return {positive * positive, 2.0f * positive};  // squared_relu
    }
}

extern "C" __global__ void gated_product_forward(storage* y, const storage* gate, const storage* up, long long n, int activation) {
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float g[WIDTH], u[WIDTH];
        load(g, gate, i, n);
        load(u, up, i, n);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) u[k] *= activate(activation, g[k]).value;
        store(y, i, n, u);
    }
}

extern "C" __global__ void gated_product_backward(
    storage* dgate, storage* dup, const storage* gate, const storage* up, const storage* dy, long long n, int activation) {
    const long long step = (long long)gridDim.x * blockDim.x * WIDTH;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH; i < n; i += step) {
        float g[WIDTH], u[WIDTH], d[WIDTH];
        load(g, gate, i, n);
        load(u, up, i, n);
        load(d, dy, i, n);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            const Activated a = activate(activation, g[k]);
            g[k] = d[k] * u[k] * a.slope;
            u[k] = d[k] * a.value;
        }
        store(dgate, i, n, g);
        store(dup, i, n, u);
    }
}
