// Shared by the kernels: storage types, 16-byte loads and stores, sums over a block, the hash behind dropout.
//
// Arithmetic is float throughout. Arrays are stored as `storage`: float, or bf16 or f16 when compiled with -DSTORAGE=bf16 or f16.
// Nothing is included, so NVRTC needs only this text; `module.py` inserts it where a .cu file includes it.
#pragma once

struct bf16 {  // the upper half of a float: same range, 8 bits of precision
    unsigned short bits;
};

struct f16 {  // IEEE 754's half: 11 bits of precision, from 6e-8 to 65504
    unsigned short bits;
};

#ifndef STORAGE
#define STORAGE float
#endif
#ifndef PARAMETER
#define PARAMETER STORAGE
#endif
typedef STORAGE storage;      // activations and their gradients
typedef PARAMETER parameter;  // gamma, beta and their gradients

// Elements in 16 bytes, the most that one thread can load or store at once.
constexpr int WIDTH = 16 / sizeof(storage);

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

// e^x, and 1 / x for x >= 1: for 16 bits, which round more coarsely than they do, by the hardware's own instructions.
__device__ inline float exp_for(float x, const float*) { return expf(x); }
__device__ inline float exp_by_hardware(float x) {
#if defined(__CUDA_ARCH__)
    float y;  // two instructions; __expf takes five, for results below 2^-126, which are 0 here
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));  // log2 e
    return y;
#else
    return expf(x);
#endif
}
__device__ inline float exp_for(float x, const bf16*) { return exp_by_hardware(x); }
__device__ inline float exp_for(float x, const f16*) { return exp_by_hardware(x); }
__device__ inline float inverse_for(float x, const float*) { return 1.0f / x; }
__device__ inline float inverse_for(float x, const bf16*) { return __fdividef(1.0f, x); }
__device__ inline float inverse_for(float x, const f16*) { return __fdividef(1.0f, x); }
#define EXP(x) exp_for(x, (const storage*)0)
#define INVERSE(x) inverse_for(x, (const storage*)0)

// bf16, f16 and back ------------------------------------------------------------------------------------------------------

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned int)x.bits << 16); }

__device__ inline void from_float(float x, float& y) { y = x; }
__device__ inline void from_float(float x, bf16& y) {  // to nearest, ties to even
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const unsigned int u = __float_as_uint(x);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;  // rounding could carry a NaN into infinity
    y.bits = (unsigned short)(is_nan ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
}

__device__ inline float to_float(f16 x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#else
    const unsigned int sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
    if (rest >= 0x0f800000u) return __uint_as_float(sign | 0x7f800000u | rest);  // infinity and NaN
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));  // the exponents' biases differ by 112
#endif
}
__device__ inline void from_float(float x, f16& y) {  // to nearest, ties to even; from 65520 on to infinity
#if defined(__CUDA_ARCH__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const unsigned int u = __float_as_uint(x), size = u & 0x7fffffffu;
    unsigned int bits;
    if (size > 0x7f800000u) bits = 0x7fffu;
    else if (size >= 0x477ff000u) bits = 0x7c00u;
    else if (size < 0x38800000u) bits = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u;  // 0.5 has the spacing 2^-24
    else bits = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    y.bits = (unsigned short)((u >> 16 & 0x8000u) | bits);
#endif
}

// One 32-bit word holds one float or two 16-bit numbers, the first in the lower half.
__device__ inline void unpack(unsigned int word, float* v, const float*) { v[0] = __uint_as_float(word); }
__device__ inline void unpack(unsigned int word, float* v, const bf16*) {
    v[0] = __uint_as_float(word << 16);
    v[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline void unpack(unsigned int word, float* v, const f16*) {
    v[0] = to_float(f16{(unsigned short)word});
    v[1] = to_float(f16{(unsigned short)(word >> 16)});
}
__device__ inline unsigned int pack(const float* v, const float*) { return __float_as_uint(v[0]); }
template <class T>
__device__ inline unsigned int pack_one_by_one(const float* v) {
    T low, high;
    from_float(v[0], low);
    from_float(v[1], high);
    return (unsigned int)high.bits << 16 | low.bits;
}
__device__ inline unsigned int pack(const float* v, const bf16*) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned int word;  // one instruction for two numbers
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
    return word;
#else
    return pack_one_by_one<bf16>(v);
#endif
}
__device__ inline unsigned int pack(const float* v, const f16*) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned int word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
    return word;
#else
    return pack_one_by_one<f16>(v);
#endif
}

// 16 bytes of an array, and the numbers in them.
template <int N, class T>
__device__ inline void unpack(const uint4& words, float (&v)[N], const T* type, int at = 0) {
    constexpr int PER_WORD = 4 / sizeof(T);
    unpack(words.x, v + at, type);
    unpack(words.y, v + at + PER_WORD, type);
    unpack(words.z, v + at + 2 * PER_WORD, type);
    unpack(words.w, v + at + 3 * PER_WORD, type);
}
template <int N, class T>
__device__ inline uint4 pack(const float (&v)[N], const T* type, int at = 0) {
    constexpr int PER_WORD = 4 / sizeof(T);
    uint4 words;
    words.x = pack(v + at, type);
    words.y = pack(v + at + PER_WORD, type);
    words.z = pack(v + at + 2 * PER_WORD, type);
    words.w = pack(v + at + 3 * PER_WORD, type);
    return words;
}

// Loads and stores: elements i .. i + N of an array of n, 16 bytes at a time where the address allows it, else one by one ---

template <int N, class T>
__device__ inline void load(float (&v)[N], const T* array, long long i, long long n, float past_the_end = 0.0f) {
    constexpr int PER_LOAD = 16 / sizeof(T);
    static_assert(N % PER_LOAD == 0, "N is a multiple of a 16-byte load");
    if (i + N <= n && (unsigned long long)(array + i) % 16 == 0) {
#pragma unroll
        for (int k = 0; k < N; k += PER_LOAD) unpack(*(const uint4*)(array + i + k), v, array, k);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = i + k < n ? to_float(array[i + k]) : past_the_end;
    }
}

template <int N, class T>
__device__ inline void store(T* array, long long i, long long n, const float (&v)[N]) {
    constexpr int PER_STORE = 16 / sizeof(T);
    static_assert(N % PER_STORE == 0, "N is a multiple of a 16-byte store");
    if (i + N <= n && (unsigned long long)(array + i) % 16 == 0) {
#pragma unroll
        for (int k = 0; k < N; k += PER_STORE) *(uint4*)(array + i + k) = pack(v, array, k);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (i + k < n) from_float(v[k], array[i + k]);
    }
}

// The same for rows. PLAIN: all rows begin on 16 bytes and are multiples of 16 bytes (`plain_rows` finds out once per kernel), so
// a chunk is inside or outside as one, and two instructions replace the checks above.

template <class... T>
__device__ inline bool plain_rows(int n_columns, const T*... arrays) {
    return (((unsigned long long)arrays | (unsigned long long)n_columns * sizeof(T)) | ...) % 16 == 0;
}

template <bool PLAIN, int N, class T>
__device__ inline void load_chunk(float (&v)[N], const T* row, int i, int n, float past_the_end = 0.0f) {
    if (!PLAIN) return load(v, row, i, n, past_the_end);
    if (i < n) {
#pragma unroll
        for (int k = 0; k < N; k += 16 / sizeof(T)) unpack(*(const uint4*)(row + i + k), v, row, k);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++) v[k] = past_the_end;
    }
}

// The 16 bytes as they are stored, half the registers of 16-bit numbers; past the end 0.
template <bool PLAIN, class T>
__device__ inline uint4 load_packed(const T* row, int i, int n) {
    uint4 words = {0, 0, 0, 0};
    if (PLAIN) {
        if (i < n) words = *(const uint4*)(row + i);
    } else {
        float v[16 / sizeof(T)];
        load(v, row, i, n);
        words = pack(v, row);
    }
    return words;
}

template <bool PLAIN, int N, class T>
__device__ inline void store_chunk(T* row, int i, int n, const float (&v)[N]) {
    if (!PLAIN) return store(row, i, n, v);
    if (i < n)
#pragma unroll
        for (int k = 0; k < N; k += 16 / sizeof(T)) *(uint4*)(row + i + k) = pack(v, row, k);
}

// Sums and maxima over a block: all threads call, all get the result, the order is fixed -------------

struct Add {
    __device__ static float of(float a, float b) { return a + b; }
};
struct Max {
    __device__ static float of(float a, float b) { return fmaxf(a, b); }
};

template <class Operation>
__device__ inline float warp_reduce(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// Blocks are one-dimensional, a multiple of 32 threads; `nothing` is the neutral element: 0 of a sum, -infinity of a maximum.
template <class Operation>
__device__ inline float block_reduce(float x, float nothing) {
    __shared__ float of_warp[32];
    x = warp_reduce<Operation>(x);
    if (blockDim.x == 32) return x;
    __syncthreads();  // threads that still read the result of an earlier call finish
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_reduce<Operation>(threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : nothing);
}

__device__ inline float block_sum(float x) { return block_reduce<Add>(x, 0.0f); }
__device__ inline float block_max(float x) { return block_reduce<Max>(x, minus_infinity()); }

// Over the threads of a row: one warp, of which a block may have several, or the block.
__device__ inline float row_sum(float x, int row_threads) { return row_threads == 32 ? warp_reduce<Add>(x) : block_sum(x); }
__device__ inline float row_max(float x, int row_threads) { return row_threads == 32 ? warp_reduce<Max>(x) : block_max(x); }

// Softmax in one pass: the largest number so far, and the sum of e^(x - largest), rescaled whenever the largest grows --------
// Source  Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3.

struct OnlineSoftmax {
    float largest = minus_infinity(), sum = 0.0f;

    // A row that is -infinity throughout is shifted by 0: e^-infinity is 0, but infinity - infinity would be NaN.
    __device__ float shift() const { return largest == minus_infinity() ? 0.0f : largest; }

    template <int N>
    __device__ void add(const float (&v)[N]) {
        const float before = largest;
#pragma unroll
        for (int k = 0; k < N; k++) largest = fmaxf(largest, v[k]);
        sum *= EXP(before - shift());
#pragma unroll
        for (int k = 0; k < N; k++) sum += EXP(v[k] - shift());
    }

    // Combines the results of a block's threads; all of them then hold the same two numbers.
    __device__ void join_block() {
        const float mine = largest;
        largest = block_max(largest);
        sum = block_sum(sum * expf(mine - shift()));
    }
};

// Dropout: 16 random bits for each element, a pure function of the stream's key and the element's number ------------------------
// The same bits as `random_bits` of backend/_cupy.py, which names the source: one hash serves four neighbouring elements.

__device__ inline unsigned long long random_word(unsigned long long key, unsigned long long number) {
    unsigned long long z = number * 0x9E3779B97F4A7C15ull + key;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// The dropout mask of one draw: factors 0 with probability threshold / 65536, else `scale`. Its elements begin at `start`.
struct Mask {
    unsigned long long key;
    long long start;
    unsigned int threshold;
    float scale;

    // v[k] *= the factor of element i + k
    template <int N>
    __device__ void apply(float (&v)[N], long long i) const {
        const unsigned long long first = start + i;
        if (first % 4 == 0) {
#pragma unroll
            for (int k = 0; k < N; k += 4) {
                const unsigned long long word = random_word(key, (first + k) / 4);
#pragma unroll
                for (int j = 0; j < 4; j++) v[k + j] *= factor(word, j);
            }
        } else {
#pragma unroll
            for (int k = 0; k < N; k++) v[k] *= factor(random_word(key, (first + k) / 4), (first + k) % 4);
        }
    }

    __device__ float factor(unsigned long long word, int quarter) const {
        return ((unsigned int)(word >> 16 * quarter) & 0xffffu) >= threshold ? scale : 0.0f;
    }
};
