// How alike the feature maps of teacher and student are, place by place (src/ops/cosine_map.rs).
//
// With n(F) = F / (√Σ_c F² + 10⁻¹²): the distances 1 − Σ_c n(a)·n(b) and ½‖n(a) − n(b)‖², and the
// product −n(a)·n(b), channel by channel; all levels of a detector in one launch. Letters: B
// pictures, C channels, P = H·W places of a level.
//
// Grid (⌈max P / tile⌉, B, levels), block 256: a tile is 8 lanes of 16 bytes along the places (32
// of f32, 64 of bf16), and the block's 32 groups of 8 lanes share the channels, so that a level of
// few places and many channels keeps as many threads busy as one of many places. Each number is
// read once for a distance (for a product twice, the second time from a cache), as 128 bytes in a
// row.
//
// ResNet-18 at 256 × 256, levels 64·64², 128·32², 256·16², f32: 3.67 MB, 2.8 MFLOP; 1.2 µs at 3.0
// TB/s, less than a launch; bf16 half of it. The products write 1.8 MB more: 1.8 µs.
#include "common.cuh"

constexpr int MOST_LEVELS = 4;
constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
// Lanes side by side along the places.
constexpr int ACROSS = 8;
// Channels that a block has in hand at once.
constexpr int GROUPS = THREADS / ACROSS;

struct Level {
    const void* a;  // [B, C, P]
    const void* b;  // [B, C, P]
    float* to;      // [B, P], or [B, C, P] of a product
    int channels;
    int places;
};

struct Levels {
    Level levels[MOST_LEVELS];
};

// Dot product and squared norms of a place's two vectors.
struct Cosine {
    float dot;
    float aa;
    float bb;

    // 1/(|a| · |b|), by the one norm before the other: a product of two small ones is no normal
    // number.
    __device__ __forceinline__ float scale() const {
        return 1.0f / (sqrtf(aa) + 1e-12f) / (sqrtf(bb) + 1e-12f);
    }
};

// Places from `at` on, in f32; of those that are not among the `left`, 0. WHOLE: all are there, and
// `at` is aligned to 16 bytes.
template <bool WHOLE, class T, int N>
__device__ __forceinline__ void load_places(const T* __restrict__ at, int left, float (&to)[N]) {
    if constexpr (WHOLE) {
        unpack(load_16(at), to);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = i < left ? to_float(at[i]) : 0.0f;
    }
}

template <bool WHOLE, int N>
__device__ __forceinline__ void store_places(float* to, int left, const float (&from)[N]) {
    if constexpr (WHOLE) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            *reinterpret_cast<float4*>(to + i) =
                make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i < left) to[i] = from[i];
        }
    }
}

// This thread's part of the sums of its places: channels group, group + GROUPS, ...
template <bool WHOLE, class T, int N>
__device__ __forceinline__ void sum_channels(const T* __restrict__ a, const T* __restrict__ b,
                                             const Level& level, int left, float (&sums)[3][N]) {
    if (left <= 0) return;
#pragma unroll (WHOLE ? 4 : 1)
    for (int c = threadIdx.x / ACROSS; c < level.channels; c += GROUPS) {
        const size_t offset = static_cast<size_t>(c) * level.places;
        float x[N], y[N];
        load_places<WHOLE>(a + offset, left, x);
        load_places<WHOLE>(b + offset, left, y);
#pragma unroll
        for (int i = 0; i < N; i++) {
            sums[0][i] = fmaf(x[i], y[i], sums[0][i]);
            sums[1][i] = fmaf(x[i], x[i], sums[1][i]);
            sums[2][i] = fmaf(y[i], y[i], sums[2][i]);
        }
    }
}

// The sums of all threads: of place `threadIdx.x` of the tile, to the first ACROSS · N threads.
template <int N>
__device__ __forceinline__ Cosine combine(float (&sums)[3][N]) {
    SHARED(float, parts, [WARPS][3][ACROSS * N]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int k = 0; k < 3; k++) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float sum = sums[k][i];
#pragma unroll
            for (int apart = ACROSS; apart < 32; apart *= 2) {
                sum += __shfl_xor_sync(ALL_LANES, sum, apart);
            }
            if (lane < ACROSS) parts[warp][k][lane * N + i] = sum;
        }
    }
    __syncthreads();
    Cosine all{0.0f, 0.0f, 0.0f};
    if (threadIdx.x < ACROSS * N) {
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            all.dot += parts[w][0][threadIdx.x];
            all.aa += parts[w][1][threadIdx.x];
            all.bb += parts[w][2][threadIdx.x];
        }
    }
    return all;
}

// Of the block's tile: where its level's pictures begin, and what a thread has of it.
template <class T>
struct Tile {
    static constexpr int N = Lanes<T>::count;
    const T* a;
    const T* b;
    size_t offset;
    int first;  // place of the tile
    int place;  // of this thread
    int left;   // places from there on
    bool whole;

    __device__ __forceinline__ explicit Tile(const Level& level) {
        offset = static_cast<size_t>(blockIdx.y) * level.channels * level.places;
        a = static_cast<const T*>(level.a) + offset;
        b = static_cast<const T*>(level.b) + offset;
        first = static_cast<int>(blockIdx.x) * ACROSS * N;
        place = first + static_cast<int>(threadIdx.x) % ACROSS * N;
        left = level.places - place;
        whole = level.places % N == 0 && is_aligned_16(level.a) && is_aligned_16(level.b) &&
                is_aligned_16(level.to);
    }
};

template <class T>
__device__ __forceinline__ Cosine cosine(const Tile<T>& tile, const Level& level) {
    float sums[3][Tile<T>::N] = {};
    if (tile.whole) {
        sum_channels<true>(tile.a + tile.place, tile.b + tile.place, level, tile.left, sums);
    } else {
        sum_channels<false>(tile.a + tile.place, tile.b + tile.place, level, tile.left, sums);
    }
    return combine(sums);
}

template <class T>
__device__ __forceinline__ void distances(const Level& level, bool half_squared) {
    const Tile<T> tile(level);
    if (tile.first >= level.places) return;
    const Cosine found = cosine(tile, level);
    const int place = tile.first + threadIdx.x;
    if (threadIdx.x < ACROSS * Tile<T>::N && place < level.places) {
        const float halves =
            (0.0f < found.aa ? 0.5f : 0.0f) + (0.0f < found.bb ? 0.5f : 0.0f);
        const float most = half_squared ? halves : 1.0f;
        level.to[static_cast<size_t>(blockIdx.y) * level.places + place] =
            fmaf(-found.dot, found.scale(), most);
    }
}

template <bool WHOLE, class T>
__device__ __forceinline__ void multiply(const Tile<T>& tile, const Level& level,
                                         const float* scales) {
    constexpr int N = Tile<T>::N;
    if (tile.left <= 0) return;
    float scale[N];
#pragma unroll
    for (int i = 0; i < N; i++) scale[i] = scales[tile.place - tile.first + i];
#pragma unroll (WHOLE ? 2 : 1)
    for (int c = threadIdx.x / ACROSS; c < level.channels; c += GROUPS) {
        const size_t offset = static_cast<size_t>(c) * level.places + tile.place;
        float x[N], y[N];
        load_places<WHOLE>(tile.a + offset, tile.left, x);
        load_places<WHOLE>(tile.b + offset, tile.left, y);
        // Scaled before the product, which may be too small a number.
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = x[i] * -scale[i] * y[i];
        store_places<WHOLE>(level.to + tile.offset + offset, tile.left, x);
    }
}

template <class T>
__device__ __forceinline__ void products(const Level& level) {
    SHARED(float, scales, [ACROSS * Lanes<T>::count]);
    const Tile<T> tile(level);
    if (tile.first >= level.places) return;
    const Cosine found = cosine(tile, level);
    if (threadIdx.x < ACROSS * Tile<T>::N) scales[threadIdx.x] = found.scale();
    __syncthreads();
    if (tile.whole) {
        multiply<true>(tile, level, scales);
    } else {
        multiply<false>(tile, level, scales);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cosine_distances_f32(const __grid_constant__ Levels levels, int half_squared) {
    distances<float>(levels.levels[blockIdx.z], half_squared != 0);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cosine_distances_bf16(const __grid_constant__ Levels levels, int half_squared) {
    distances<Bf16>(levels.levels[blockIdx.z], half_squared != 0);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cosine_products_f32(const __grid_constant__ Levels levels) {
    products<float>(levels.levels[blockIdx.z]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cosine_products_bf16(const __grid_constant__ Levels levels) {
    products<Bf16>(levels.levels[blockIdx.z]);
}
