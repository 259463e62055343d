// The mean of the T largest values of a map (src/detector/network.rs, top_mean); NaN where a value
// is not finite. Letters: B maps of N values.
//
// Grid (B), block 512: the T-th largest is found digit by digit, eleven bits of its key at a time,
// by counting; then all above it are added in f64, always in the same order, and it itself as often
// as is missing. Counts are whole numbers, so no order of theirs matters. Values side by side in a
// map mostly have the same digit: a thread counts those on its own and adds once.
//
// 256 × 256: 1.0 MB from the L2 cache in four passes by one block, 64 bytes a clock: 10 µs.
#include "common.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int BITS = 11;
constexpr int DIGITS = 1 << BITS;
// Digits that a thread looks through for the one wanted.
constexpr int OWN = DIGITS / THREADS;

// As `ordered`, and above all others what is not finite.
__device__ __forceinline__ uint32_t key_of(float x) {
    return fabsf(x) <= 3.402823466e38f ? ordered(x) : 0xffffffffu;
}

// Values before those of this thread, if each has `own` of them.
__device__ __forceinline__ int counted_before(int own, int (&warps)[WARPS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int sum = own;
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2) {
        const int lower = __shfl_up_sync(ALL_LANES, sum, apart);
        if (lane >= apart) sum += lower;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    int before = sum - own;
#pragma unroll
    for (int w = 0; w < WARPS; w++) before += w < warp ? warps[w] : 0;
    return before;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    top_mean(const float* __restrict__ maps /* [B, N] */, float* __restrict__ means /* [B] */,
             int count, int top) {
    SHARED(int, counts, [DIGITS]);
    SHARED(int, warps, [WARPS]);
    SHARED(double, sums, [WARPS]);
    // Of the T-th largest: the bits that are known, and how many of the values that have them are
    // still among the T largest.
    SHARED(uint32_t, known, [1]);
    SHARED(int, wanted, [1]);
    const float* const map = maps + static_cast<size_t>(blockIdx.x) * count;
    if (threadIdx.x == 0) {
        known[0] = 0;
        wanted[0] = top < count ? top : count;
    }
    uint32_t mask = 0;
    for (int shift = 32 - BITS; mask != 0xffffffffu; shift = shift > BITS ? shift - BITS : 0) {
        for (int i = threadIdx.x; i < DIGITS; i += THREADS) counts[i] = 0;
        __syncthreads();
        const uint32_t bits = known[0];
        int digit = 0, same = 0;
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const uint32_t key = key_of(__ldg(map + i));
            if ((key & mask) != bits) continue;
            // Largest first.
            const int next = DIGITS - 1 - static_cast<int>((key & ~mask) >> shift);
            if (next != digit && same > 0) {
                atomicAdd(&counts[digit], same);
                same = 0;
            }
            digit = next;
            same++;
        }
        if (same > 0) atomicAdd(&counts[digit], same);
        __syncthreads();
        int own = 0;
#pragma unroll
        for (int i = 0; i < OWN; i++) own += counts[threadIdx.x * OWN + i];
        const int still = wanted[0];
        int left = still - counted_before(own, warps);
        // One thread has the digit where the count reaches what is wanted.
        if (left > 0 && left <= own) {
            int i = static_cast<int>(threadIdx.x) * OWN;
            while (left > counts[i]) left -= counts[i++];
            known[0] = bits | static_cast<uint32_t>(DIGITS - 1 - i) << shift;
            wanted[0] = left;
        }
        mask = ~((1u << shift) - 1u);
        __syncthreads();
    }
    const uint32_t threshold = known[0];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const uint32_t key = key_of(__ldg(map + i));
        if (key > threshold) sum += static_cast<double>(unordered(key));
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = static_cast<double>(wanted[0]) * static_cast<double>(unordered(threshold));
        for (int w = 0; w < WARPS; w++) all += sums[w];
        means[blockIdx.x] = static_cast<float>(all / (top < count ? top : count));
    }
}
