// The residual of a feature map to its nearest prototype (src/ops/prototype_residual.rs): |x − p*|
// with p* that of P prototypes whose squared L2 distance to the whole map is smallest, ties to the
// lowest index. Distances are sums of (x − p)², f32 within a block's part of the map, f64 from part
// to part, always in the same order. Letters: B maps of M numbers, P prototypes, G parts of 2048
// numbers.
//
// map_distances: grid (G, ⌈B/4⌉), block 256: a thread keeps 8 numbers of up to four maps in
//   registers, and each prototype is read once for all four.
// map_residuals: grid (⌈M/8192⌉, B), block 256: each block adds up the P · G parts of its map,
//   which lie in the L2 cache, finds the nearest and goes on; the host is not asked.
//
// PRN at 256 × 256, 30 prototypes of 64·64² + 128·32² + 256·16² numbers: 55 MB, 41 MFLOP: 18 µs at
// 3.0 TB/s; the residual 5.5 MB: 2 µs.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int MAPS = 4;      // that share a prototype
constexpr int VECTORS = 2;   // of 4 numbers, of a thread and map
constexpr int PART = THREADS * VECTORS * 4;
// Prototypes between two barriers.
constexpr int TOGETHER = 32;

// Four numbers from `at` on; 0 where they are not among the `left`.
__device__ __forceinline__ void load_four(const float* __restrict__ at, int left, bool aligned,
                                          float (&to)[4]) {
    if (aligned && left >= 4) {
        unpack(load_16(at), to);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) to[i] = i < left ? __ldg(at + i) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    map_distances(const float* __restrict__ maps /* [B, M] */,
                  const float* __restrict__ prototypes /* [P, M] */,
                  float* __restrict__ parts /* [B, P, G] */, int map_count, int prototype_count,
                  int length) {
    SHARED(float, warps, [WARPS][TOGETHER][MAPS]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first = static_cast<int>(blockIdx.x) * PART;
    const int map = static_cast<int>(blockIdx.y) * MAPS;
    const bool aligned = length % 4 == 0 && is_aligned_16(maps) && is_aligned_16(prototypes);
    float own[MAPS][VECTORS][4];
#pragma unroll
    for (int b = 0; b < MAPS; b++) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
            const int at = first + (v * THREADS + static_cast<int>(threadIdx.x)) * 4;
            // Behind the last map: the last once more, which nobody stores.
            const int there = map + b < map_count ? map + b : map_count - 1;
            load_four(maps + static_cast<size_t>(there) * length + at, length - at, aligned,
                      own[b][v]);
        }
    }
    for (int from = 0; from < prototype_count; from += TOGETHER) {
        const int end = from + TOGETHER < prototype_count ? from + TOGETHER : prototype_count;
        for (int p = from; p < end; p++) {
            float sums[MAPS] = {};
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                const int at = first + (v * THREADS + static_cast<int>(threadIdx.x)) * 4;
                float prototype[4];
                load_four(prototypes + static_cast<size_t>(p) * length + at, length - at, aligned,
                          prototype);
#pragma unroll
                for (int b = 0; b < MAPS; b++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const float apart = own[b][v][i] - prototype[i];
                        sums[b] = fmaf(apart, apart, sums[b]);
                    }
                }
            }
#pragma unroll
            for (int b = 0; b < MAPS; b++) {
                const float sum = warp_sum(sums[b]);
                if (lane == 0) warps[warp][p - from][b] = sum;
            }
        }
        __syncthreads();
        const int p = static_cast<int>(threadIdx.x) / MAPS;
        const int b = static_cast<int>(threadIdx.x) % MAPS;
        if (from + p < end && map + b < map_count) {
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += warps[w][p][b];
            const size_t row = static_cast<size_t>(map + b) * prototype_count + from + p;
            parts[row * gridDim.x + blockIdx.x] = sum;
        }
        // The warps' sums have been read.
        __syncthreads();
    }
}

// Whether a prototype is nearer than another: the lower of two as far; a NaN is farther than all.
__device__ __forceinline__ bool nearer(double distance, int index, double other, int other_index) {
    return distance < other || (distance == other && index < other_index) ||
           (other != other && distance == distance);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    map_residuals(const float* __restrict__ maps /* [B, M] */,
                  const float* __restrict__ prototypes /* [P, M] */,
                  const float* __restrict__ parts /* [B, P, G] */, int part_count,
                  int prototype_count, int length, float* __restrict__ residuals /* [B, M] */) {
    SHARED(double, distances, [WARPS]);
    SHARED(int, nearest, [WARPS]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t map = blockIdx.y;
    double best = 0.0;
    int index = -1;
    for (int p = warp; p < prototype_count; p += WARPS) {
        const float* const own = parts + (map * prototype_count + p) * part_count;
        double sum = 0.0;
        for (int i = lane; i < part_count; i += 32) sum += static_cast<double>(own[i]);
#pragma unroll
        for (int apart = 16; apart > 0; apart >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
        if (index < 0 || nearer(sum, p, best, index)) {
            best = sum;
            index = p;
        }
    }
    if (lane == 0) {
        distances[warp] = best;
        nearest[warp] = index;
    }
    __syncthreads();
    index = nearest[0];
    best = distances[0];
    for (int w = 1; w < WARPS && w < prototype_count; w++) {
        if (nearer(distances[w], nearest[w], best, index)) {
            best = distances[w];
            index = nearest[w];
        }
    }
    const float* const x = maps + map * length;
    const float* const prototype = prototypes + static_cast<size_t>(index) * length;
    float* const to = residuals + map * length;
    const bool aligned = length % 4 == 0 && is_aligned_16(maps) && is_aligned_16(prototypes) &&
                         is_aligned_16(residuals);
    const int stride = static_cast<int>(gridDim.x) * THREADS * 4;
    for (int at = (static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x)) * 4;
         at < length; at += stride) {
        float a[4], b[4];
        load_four(x + at, length - at, aligned, a);
        load_four(prototype + at, length - at, aligned, b);
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = fabsf(a[i] - b[i]);
        if (aligned) {
            *reinterpret_cast<float4*>(to + at) = make_float4(a[0], a[1], a[2], a[3]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (at + i < length) to[at + i] = a[i];
            }
        }
    }
}
