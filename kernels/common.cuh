// What every kernel includes: CUDA's own words under nvcc, those of tests/shim under a host
// compiler, and on both the few things that several kernels need.
//
// Rules of the house: shared memory only by SHARED and DYNAMIC_SHARED, inline PTX only here, no
// float atomics, no fast-math, and a comparison is written so that a NaN stays one: `x < 0 ? 0 :
// x`, not fmaxf.
#pragma once

#ifdef __CUDACC__
#include <stdint.h>

// An array in shared memory, aligned to 16 bytes: SHARED(float, tile, [16][68]).
#define SHARED(type, name, ...) __shared__ __align__(16) type name __VA_ARGS__
// The shared memory that a launch brings along, as an array of `type`; once a kernel.
#define DYNAMIC_SHARED(type, name)                             \
    extern __shared__ __align__(128) uint8_t dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared)

__device__ __forceinline__ uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// 16 bytes from global to shared memory, both aligned to them, without waiting; zeros where not
// `there` (`from` must be an address all the same, and is not read).
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// Closes the group of copies begun since the last one.
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits for this thread's copies until at most LEFT groups are under way.
template <int LEFT>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory");
}

// Four 8×8 matrices of 16-bit numbers from shared memory; lane i gives the address of row i % 8 of
// matrix i / 8, and gets of each matrix numbers 2·(lane % 4) and the next of row lane / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sums [16, 8] += a [16, 16] · b [16, 8] in bf16, sums in f32; fragments as PTX lays out m16n8k16.
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
#include "cuda_host.h"
#endif

#define ALL_LANES 0xffffffffu

// A bf16 as it lies in memory.
struct Bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(Bf16 x) {
    return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ Bf16 to_bf16(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return Bf16{0x7fff};
    return Bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// 16 bytes that nobody writes while the kernel runs; `at` is aligned to them.
__device__ __forceinline__ uint4 load_16(const void* at) {
    return __ldg(reinterpret_cast<const uint4*>(at));
}

// The numbers in 16 bytes: 4 of f32, 8 of bf16.
template <class T>
struct Lanes {
    static constexpr int count = 16 / static_cast<int>(sizeof(T));
};

__device__ __forceinline__ void unpack(uint4 from, float (&to)[4]) {
    to[0] = __uint_as_float(from.x);
    to[1] = __uint_as_float(from.y);
    to[2] = __uint_as_float(from.z);
    to[3] = __uint_as_float(from.w);
}

__device__ __forceinline__ void unpack(uint4 from, float (&to)[8]) {
    const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(pairs[i] << 16);
        to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ bool is_aligned_16(const void* at) {
    return (reinterpret_cast<uintptr_t>(at) & 15) == 0;
}

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The sum over the lanes of a warp, in each of them, always in the same order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart >>= 1) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

__device__ __forceinline__ unsigned long long smaller(unsigned long long a, unsigned long long b) {
    return b < a ? b : a;
}

__device__ __forceinline__ unsigned long long warp_min(unsigned long long x) {
#pragma unroll
    for (int apart = 16; apart > 0; apart >>= 1) {
        x = smaller(x, __shfl_xor_sync(ALL_LANES, x, apart));
    }
    return x;
}

// A whole number that orders as x does, −∞ first; NaN is above all numbers, whatever its sign.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// What `ordered` was made of; all NaN are one.
__device__ __forceinline__ float unordered(uint32_t key) {
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Smaller values first, and of equal ones the lower index.
__device__ __forceinline__ unsigned long long keyed(float value, uint32_t index) {
    return static_cast<unsigned long long>(ordered(value)) << 32 | index;
}

// Where place i of `to` looks in `from` places (src/ops/interpolate.rs): two neighbours and the
// weight of the higher one. In whole numbers, so that a place is never a rounding away from its
// neighbour; sides are below 2¹⁵.
struct Tap {
    int low;
    int high;
    float weight;
};

__device__ __forceinline__ Tap tap(int i, int from, int to, bool corners) {
    const int last = from - 1;
    // at = over / under
    int over = corners ? i * last : (2 * i + 1) * from - to;
    const int under = corners ? (to == 1 ? 1 : to - 1) : 2 * to;
    if (over < 0) over = 0;
    const int whole = over / under;
    const int low = whole < last ? whole : last;
    const int high = low < last ? low + 1 : last;
    return Tap{low, high, static_cast<float>(over - low * under) / static_cast<float>(under)};
}

// Between four neighbours, as src/ops/upsample.rs: rows first, then columns.
__device__ __forceinline__ float between(const float* __restrict__ plane, int width, Tap row,
                                         Tap column) {
    const float* const upper = plane + static_cast<size_t>(row.low) * width;
    const float* const lower = plane + static_cast<size_t>(row.high) * width;
    const float up = 1.0f - row.weight;
    const float left = fmaf(__ldg(lower + column.low), row.weight, __ldg(upper + column.low) * up);
    const float right =
        fmaf(__ldg(lower + column.high), row.weight, __ldg(upper + column.high) * up);
    return fmaf(right, column.weight, left * (1.0f - column.weight));
}
