// Texture statistics of MLFF (src/ops/texture.rs): cosines to region means, levels of cosines,
// their counts alone and in neighbouring pairs, and what is learned of levels spread back to places.
// Letters: B pictures, P = H·W places, N levels, S × S regions of h × w places, R = S².
//
// Levels are worked out from the bounds of a region where they are needed, in the CPU's operations
// (no fused ones), so that a value at the edge of a level falls to the same side.
//
// cosine_to_mean: grid (⌈P/32⌉, B), block 256: 32 places, the block's warps share the channels.
// level_bounds: grid (R, B), block 128.
// level_counts: grid (N, B), block 128: the sum of one level; level_shares: grid (B), block 128.
// co_occurrence: grid (R, B), block 256: a region's values in shared memory, a thread has every
//   256th pair of levels.
// mean_regions: grid (⌈rows/8⌉), block 256: a row a warp.
// spread_levels: grid (⌈P/128⌉, ⌈C/16⌉, B), block 128: a thread finds its place's levels, which
//   stand side by side, and makes 16 channels of it.
//
// MLFF at 256 × 256, cosines of 384 · 32²: 1.6 MB, 0.5 µs at 3.0 TB/s; 128 levels counted: 1.3
// MFLOP; the rest less. All are bound by their launches.
#include "common.cuh"

constexpr int PLACES = 32;
constexpr int COSINE_THREADS = 256;
constexpr int COSINE_WARPS = COSINE_THREADS / 32;
constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr int PAIR_THREADS = 256;
constexpr int CHUNK = 512;  // places of a region that are in shared memory at once
constexpr int CHANNELS = 16;

__device__ __forceinline__ float norm(float squares) {
    const float root = sqrtf(squares);
    return root < 1e-12f ? 1e-12f : root;
}

// The cosine between each place and the mean of its region.
extern "C" __global__ void __launch_bounds__(COSINE_THREADS)
    cosine_to_mean(const float* __restrict__ from /* [B, C, H, W] */,
                   const float* __restrict__ means /* [B, C, S, S] */,
                   float* __restrict__ to /* [B, 1, H, W] */, int channels, int height, int width,
                   int regions) {
    SHARED(float, parts, [COSINE_WARPS][3][PLACES]);
    const int lane = threadIdx.x % PLACES, warp = threadIdx.x / PLACES;
    const int i = static_cast<int>(blockIdx.x) * PLACES + lane;
    const int places = height * width;
    const size_t image = blockIdx.y;
    float dot = 0.0f, xx = 0.0f, gg = 0.0f;
    if (i < places) {
        const int region =
            i / width / (height / regions) * regions + i % width / (width / regions);
        const float* const x = from + image * channels * places + i;
        const float* const g = means + image * channels * regions * regions + region;
        for (int c = warp; c < channels; c += COSINE_WARPS) {
            const float value = __ldg(x + static_cast<size_t>(c) * places);
            const float mean = __ldg(g + static_cast<size_t>(c) * regions * regions);
            dot = fmaf(value, mean, dot);
            xx = fmaf(value, value, xx);
            gg = fmaf(mean, mean, gg);
        }
    }
    parts[warp][0][lane] = dot;
    parts[warp][1][lane] = xx;
    parts[warp][2][lane] = gg;
    __syncthreads();
    if (warp != 0 || i >= places) return;
    for (int w = 1; w < COSINE_WARPS; w++) {
        dot += parts[w][0][lane];
        xx += parts[w][1][lane];
        gg += parts[w][2][lane];
    }
    to[image * places + i] = dot / (norm(xx) * norm(gg));
}

// The smallest and largest of each region; NaN if one of its places is.
extern "C" __global__ void __launch_bounds__(THREADS)
    level_bounds(const float* __restrict__ cosines /* [B, H, W] */,
                 float* __restrict__ bounds /* [B, R, 2] */, int height, int width, int regions) {
    SHARED(float, lows, [WARPS]);
    SHARED(float, highs, [WARPS]);
    SHARED(float, odds, [WARPS]);
    const int region = static_cast<int>(blockIdx.x);
    const size_t image = blockIdx.y;
    const int h = height / regions, w = width / regions;
    const float* const own = cosines + image * height * width +
                             region / regions * h * width + region % regions * w;
    float low = INFINITY, high = -INFINITY, odd = 0.0f;
    for (int i = threadIdx.x; i < h * w; i += THREADS) {
        const float value = __ldg(own + i / w * width + i % w);
        low = value < low ? value : low;
        high = value > high ? value : high;
        // Zero, or NaN where the value is none.
        odd = fmaf(value, 0.0f, odd);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart >>= 1) {
        const float other_low = __shfl_xor_sync(ALL_LANES, low, apart);
        const float other_high = __shfl_xor_sync(ALL_LANES, high, apart);
        low = other_low < low ? other_low : low;
        high = other_high > high ? other_high : high;
        odd += __shfl_xor_sync(ALL_LANES, odd, apart);
    }
    if (threadIdx.x % 32 == 0) {
        lows[threadIdx.x / 32] = low;
        highs[threadIdx.x / 32] = high;
        odds[threadIdx.x / 32] = odd;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < WARPS; i++) {
        low = lows[i] < low ? lows[i] : low;
        high = highs[i] > high ? highs[i] : high;
        odd += odds[i];
    }
    float* const to = bounds + (image * regions * regions + region) * 2;
    to[0] = low + odd;
    to[1] = high + odd;
}

// The levels between two bounds, and what decides whether a value is of one.
struct Levels {
    float low;
    float high;
    int count;
    bool paper;
    float bound;

    __device__ __forceinline__ Levels(const float* bounds, int count, bool paper)
        : low(__ldg(bounds)), high(__ldg(bounds + 1)), count(count), paper(paper) {
        bound = paper ? 0.5f / static_cast<float>(count) : 1.0f - (level(1) - level(0));
    }

    __device__ __forceinline__ float level(int n) const {
        const float all = static_cast<float>(count), step = static_cast<float>(n);
        const float range = high - low;
        const float part = paper ? __fmul_rn(range / all, step + 1.0f)
                                 : __fmul_rn((2.0f * step + 1.0f) / (2.0f * all), range);
        return __fadd_rn(part, low);
    }

    // How much of the value is in the level: NaN where one of them is.
    __device__ __forceinline__ float share(float level, float value) const {
        const float apart = level - value;
        const float near = 1.0f - fabsf(apart);
        const bool taken = paper ? apart >= -bound && apart < bound : bound < near;
        return near * (taken ? 1.0f : 0.0f);
    }
};

// The sum over a block, in its first thread.
__device__ __forceinline__ float block_sum(float x, float (&warps)[WARPS]) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < WARPS; w++) sum += warps[w];
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    level_counts(const float* __restrict__ cosines /* [B, P] */,
                 const float* __restrict__ bounds /* [B, 2] */,
                 float* __restrict__ sums /* [B, N] */,
                 float* __restrict__ to /* [B, 2, N], the levels */, int places, int paper) {
    SHARED(float, warps, [WARPS]);
    const int n = static_cast<int>(blockIdx.x), count = static_cast<int>(gridDim.x);
    const size_t image = blockIdx.y;
    const Levels levels(bounds + image * 2, count, paper != 0);
    const float level = levels.level(n);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < places; i += THREADS) {
        sum += levels.share(level, __ldg(cosines + image * places + i));
    }
    sum = block_sum(sum, warps);
    if (threadIdx.x != 0) return;
    sums[image * count + n] = sum;
    to[image * 2 * count + n] = level;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    level_shares(const float* __restrict__ sums /* [B, N] */,
                 float* __restrict__ to /* [B, 2, N], the counts */, int count) {
    const size_t image = blockIdx.x;
    const float* const own = sums + image * count;
    double total = 1e-12;
    for (int n = 0; n < count; n++) total += static_cast<double>(__ldg(own + n));
    for (int n = threadIdx.x; n < count; n += THREADS) {
        to[(image * 2 + 1) * count + n] =
            static_cast<float>(static_cast<double>(__ldg(own + n)) / total);
    }
}

extern "C" __global__ void __launch_bounds__(PAIR_THREADS)
    co_occurrence(const float* __restrict__ cosines /* [B, H, W] */,
                  const float* __restrict__ bounds /* [B, R, 2] */,
                  float* __restrict__ to /* [B, 3, R, N²] */, int height, int width, int regions,
                  int count, int paper, int below, int right) {
    SHARED(float, first, [CHUNK]);
    SHARED(float, second, [CHUNK]);
    SHARED(float, warps, [PAIR_THREADS / 32]);
    const int region = static_cast<int>(blockIdx.x);
    const size_t image = blockIdx.y;
    const int h = height / regions, w = width / regions, all = regions * regions;
    const Levels levels(bounds + (image * all + region) * 2, count, paper != 0);
    const float* const own = cosines + image * height * width +
                             region / regions * h * width + region % regions * w;
    const int pairs = count * count;
    float* const low_to = to + (image * 3 * all + region) * pairs;
    float* const high_to = low_to + static_cast<size_t>(all) * pairs;
    float* const pair_to = high_to + static_cast<size_t>(all) * pairs;
    // Places that have a neighbour in the region.
    const int rows = h - below, columns = w - right, places = rows * columns;
    for (int pair = threadIdx.x; pair < pairs; pair += PAIR_THREADS) {
        low_to[pair] = levels.level(pair / count);
        high_to[pair] = levels.level(pair % count);
        pair_to[pair] = 0.0f;
    }
    for (int from = 0; from < places; from += CHUNK) {
        const int length = places - from < CHUNK ? places - from : CHUNK;
        for (int i = threadIdx.x; i < length; i += PAIR_THREADS) {
            const int y = (from + i) / columns, x = (from + i) % columns;
            first[i] = __ldg(own + y * width + x);
            second[i] = __ldg(own + (y + below) * width + x + right);
        }
        __syncthreads();
        for (int pair = threadIdx.x; pair < pairs; pair += PAIR_THREADS) {
            const float a = levels.level(pair / count), b = levels.level(pair % count);
            float sum = pair_to[pair];
            for (int i = 0; i < length; i++) {
                sum = fmaf(levels.share(a, first[i]), levels.share(b, second[i]), sum);
            }
            pair_to[pair] = sum;
        }
        __syncthreads();
    }
    float sum = 0.0f;
    for (int pair = threadIdx.x; pair < pairs; pair += PAIR_THREADS) sum += pair_to[pair];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < PAIR_THREADS / 32; i++) total += warps[i];
    total += 1e-6f;
    for (int pair = threadIdx.x; pair < pairs; pair += PAIR_THREADS) {
        pair_to[pair] = pair_to[pair] / total;
    }
}

// The mean of each row.
extern "C" __global__ void __launch_bounds__(COSINE_THREADS)
    mean_regions(const float* __restrict__ from /* [rows, T] */,
                 float* __restrict__ to /* [rows] */, int rows, int length) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int row = static_cast<int>(blockIdx.x) * COSINE_WARPS + warp;
    float sum = 0.0f;
    if (row < rows) {
        const float* const own = from + static_cast<size_t>(row) * length;
        for (int i = threadIdx.x % 32; i < length; i += 32) sum += __ldg(own + i);
    }
    sum = warp_sum(sum);
    if (row < rows && threadIdx.x % 32 == 0) to[row] = sum / static_cast<float>(length);
}

// Σ_n d_n E_n of each place.
extern "C" __global__ void __launch_bounds__(THREADS)
    spread_levels(const float* __restrict__ cosines /* [B, P] */,
                  const float* __restrict__ d /* [B, C, N] */,
                  const float* __restrict__ bounds /* [B, 2] */,
                  float* __restrict__ to /* [B, C, P] */,
                  int channels, int count, int places, int paper) {
    const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i >= places) return;
    const size_t image = blockIdx.z;
    const Levels levels(bounds + image * 2, count, paper != 0);
    const float value = __ldg(cosines + image * places + i);
    int first = count, end = 0;
    for (int n = 0; n < count; n++) {
        const float share = levels.share(levels.level(n), value);
        // A level that has some of it, or NaN.
        if (share != 0.0f) {
            first = first < n ? first : n;
            end = n + 1;
        }
    }
    const int last = static_cast<int>(blockIdx.y + 1) * CHANNELS;
    for (int c = last - CHANNELS; c < last && c < channels; c++) {
        const float* const own = d + (image * channels + c) * count;
        float sum = 0.0f;
        for (int n = first; n < end; n++) {
            sum = fmaf(levels.share(levels.level(n), value), __ldg(own + n), sum);
        }
        to[(image * channels + c) * places + i] = sum;
    }
}
