// CUDA's words for a host compiler, as far as kernels/*.cu use them: the same sources under
// sanitizers.
//
// One thread of the system carries out a launch; each thread of the kernel is a fiber. Barriers and
// what a warp does together are events of the scheduler, which complains where threads do not meet.
// Under AddressSanitizer shared arrays and buffers have red zones; under ThreadSanitizer each fiber
// is a thread of its own and only barriers order what they do, so that a missing one is a reported
// race whatever the schedule. What nobody wrote is 0xff, a NaN. An asynchronous copy lands only
// when it is waited for.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#if defined(__SANITIZE_ADDRESS__)
#define HOST_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define HOST_TSAN 1
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace host {

enum class Order { ascending, descending, shuffled };

// Of the thread that is running.
const uint3& thread_index();
const uint3& block_index();
const dim3& block_size();
const dim3& grid_size();
unsigned lane();

// Stops the launch.
[[noreturn]] void fail(const std::string& what);

// `site` tells places of a kernel apart.
void barrier(uint64_t site);
// All lanes of `mask` give `bytes` at `own`, at most 64; what lane i gave is at peer(i) until the
// next time.
void meet(unsigned mask, uint64_t site, const char* what, const void* own, size_t bytes);
const void* peer(unsigned lane);
void order_warp(unsigned mask, uint64_t site);

// The block's array of that key, made when a thread first asks for it.
void* shared_array(const void* key, size_t bytes);
void* dynamic_shared();

// Every thread of every block through `body`; what was wrong, or nothing.
std::string run(dim3 grid, dim3 block, size_t shared_bytes, Order order,
                const std::function<void()>& body);

template <class T>
T peer_as(unsigned lane) {
    T value;
    memcpy(&value, peer(lane), sizeof value);
    return value;
}

// What lane `from` has of `own`, or `own` where there is no such lane.
template <class T>
T shuffle(unsigned mask, T own, int from, bool there, uint64_t site) {
    meet(mask, site, "a shuffle", &own, sizeof own);
    if (!there) return own;
    if ((mask >> from & 1) == 0) fail("a shuffle from a lane that is not in its mask");
    return peer_as<T>(static_cast<unsigned>(from));
}

template <class T>
T shuffle_from(uint64_t site, unsigned mask, T own, int from, int width = 32) {
    const int base = static_cast<int>(lane()) & ~(width - 1);
    return shuffle(mask, own, base | (from & (width - 1)), true, site);
}

template <class T>
T shuffle_xor(uint64_t site, unsigned mask, T own, int apart) {
    return shuffle(mask, own, static_cast<int>(lane()) ^ apart, true, site);
}

template <class T>
T shuffle_up(uint64_t site, unsigned mask, T own, int apart) {
    const int from = static_cast<int>(lane()) - apart;
    return shuffle(mask, own, from, from >= 0, site);
}

template <class T>
T shuffle_down(uint64_t site, unsigned mask, T own, int apart) {
    const int from = static_cast<int>(lane()) + apart;
    return shuffle(mask, own, from, from < 32, site);
}

inline unsigned ballot(uint64_t site, unsigned mask, bool own) {
    meet(mask, site, "a ballot", &own, sizeof own);
    unsigned all = 0;
    for (unsigned i = 0; i < 32; i++) {
        if ((mask >> i & 1) != 0 && peer_as<bool>(i)) all |= 1u << i;
    }
    return all;
}

}  // namespace host

#define HOST_SITE ((static_cast<uint64_t>(__LINE__) << 32) ^ reinterpret_cast<uintptr_t>(__FILE__))

#define threadIdx (host::thread_index())
#define blockIdx (host::block_index())
#define blockDim (host::block_size())
#define gridDim (host::grid_size())
#define __syncthreads() host::barrier(HOST_SITE)
#define __syncwarp(...) host::order_warp(0xffffffffu, HOST_SITE)
#define __shfl_sync(...) host::shuffle_from(HOST_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...) host::shuffle_xor(HOST_SITE, __VA_ARGS__)
#define __shfl_up_sync(...) host::shuffle_up(HOST_SITE, __VA_ARGS__)
#define __shfl_down_sync(...) host::shuffle_down(HOST_SITE, __VA_ARGS__)
#define __ballot_sync(mask, own) host::ballot(HOST_SITE, mask, own)

#define SHARED(type, name, ...)             \
    static const char name##_key = 0;       \
    using name##_array = type __VA_ARGS__;  \
    name##_array& name =                    \
        *static_cast<name##_array*>(host::shared_array(&name##_key, sizeof(name##_array)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(host::dynamic_shared())

template <class T>
T __ldg(const T* at) {
    return *at;
}

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The host compiler is told not to fuse.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

template <class T>
T atomicAdd(T* at, T value) {
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

// What kernels/common.cuh says in PTX.
void copy_async_16(void* to, const void* from, bool there);
void copy_async_commit();
void copy_async_wait(int left);
template <int LEFT>
void copy_async_wait() {
    copy_async_wait(LEFT);
}
void load_matrices(uint32_t (&to)[4], const void* row);
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
