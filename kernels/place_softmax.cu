// Softmax over the places of each channel (src/ops/place_softmax.rs). Letters: R = B·C planes of P.
//
// Grid (R), block 256: a block's plane is read three times, twice from a cache. 64 planes of 64²:
// 2.1 MB, 0.7 µs at 3.0 TB/s; by latency a few.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

// NaN wins.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

extern "C" __global__ void __launch_bounds__(THREADS)
    place_softmax(const float* __restrict__ from /* [R, P] */, float* __restrict__ to /* [R, P] */,
                  int places) {
    SHARED(float, most_of, [WARPS]);
    SHARED(float, sum_of, [WARPS]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float* const own = from + static_cast<size_t>(blockIdx.x) * places;
    float* const made = to + static_cast<size_t>(blockIdx.x) * places;
    // Of a thread without places: what is among the plane's own.
    float most = __ldg(own);
    for (int i = threadIdx.x; i < places; i += THREADS) most = larger(most, __ldg(own + i));
#pragma unroll
    for (int apart = 16; apart > 0; apart >>= 1) {
        most = larger(most, __shfl_xor_sync(ALL_LANES, most, apart));
    }
    if (lane == 0) most_of[warp] = most;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) most = larger(most, most_of[w]);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < places; i += THREADS) {
        const float value = expf(__ldg(own + i) - most);
        made[i] = value;
        sum += value;
    }
    sum = warp_sum(sum);
    if (lane == 0) sum_of[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int w = 0; w < WARPS; w++) sum += sum_of[w];
    const float share = 1.0f / sum;
    for (int i = threadIdx.x; i < places; i += THREADS) made[i] *= share;
}
