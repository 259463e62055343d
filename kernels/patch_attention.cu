// Attention between patches (src/ops/patch_attention.rs): maps q, k [B, C, H, W] and v
// [B, Cv, H, W] cut into N = (H/p)·(W/p) tokens of p × p places; token i of the result is Σ_j A_ij v_j, A the
// softmax of the rows of scale · QKᵀ. D = C·p² numbers of a token.
//
// patch_scores: grid (⌈N/32⌉², S, B), block 64: 32 × 32 sums, 4 × 4 a thread, over one of S slices
//   of the depth D, so that few long tokens keep a card busy; slices are added up in their order.
// patch_softmax: grid (N, B), block 128: a block adds the slices of a row and makes its softmax,
//   where the first slice lay.
// patch_mix: grid (⌈Cv·p²/32⌉, ⌈N/32⌉, B), block 64: 32 × 32 numbers of the result.
//
// PRN on 64 · 64² in four heads of 16 channels, whose patches are the map, its half, quarter and
// eighth: N = 1, 4, 16, 64 and D = 65536 to 1024; 17 MFLOP a head at most, and 4.2 MB of all: 1.4
// µs at 3.0 TB/s. Tiles of few tokens are mostly empty, which costs less than a launch.
#include "common.cuh"

constexpr int TILE = 32;
constexpr int STEP = 16;
constexpr int THREADS = 64;
constexpr int ROW = TILE + 4;  // keeps 16-byte loads aligned and columns in different banks
constexpr int SOFTMAX_THREADS = 128;
constexpr int SOFTMAX_WARPS = SOFTMAX_THREADS / 32;

// NaN wins.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// How maps are cut.
struct Cut {
    int height;
    int width;
    int patch;

    __device__ __forceinline__ int tokens() const { return height / patch * (width / patch); }

    // Where number d of a token lies in a picture's map.
    __device__ __forceinline__ int at(int token, int d) const {
        const int columns = width / patch, square = patch * patch;
        const int y = token / columns * patch + d % square / patch;
        const int x = token % columns * patch + d % patch;
        return (d / square * height + y) * width + x;
    }
};

// A thread's 4 × 4 sums over the STEP rows of both tiles.
__device__ __forceinline__ void multiply(const float (&a)[STEP][ROW], const float (&b)[STEP][ROW],
                                         float (&sums)[4][4]) {
    const int down = static_cast<int>(threadIdx.x) / 8 * 4;
    const int across = static_cast<int>(threadIdx.x) % 8 * 4;
#pragma unroll
    for (int d = 0; d < STEP; d++) {
        const float4 x = *reinterpret_cast<const float4*>(&a[d][down]);
        const float4 y = *reinterpret_cast<const float4*>(&b[d][across]);
        const float own[4] = {x.x, x.y, x.z, x.w}, other[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = fmaf(own[i], other[j], sums[i][j]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    patch_scores(const float* __restrict__ q /* [B, C, H, W] */,
                 const float* __restrict__ k /* [B, C, H, W] */,
                 float* __restrict__ scores /* [S, B, N, N] */, int channels, int height, int width,
                 int patch, int slice /* numbers of a token, a multiple of STEP */) {
    SHARED(float, rows, [STEP][ROW]);
    SHARED(float, columns, [STEP][ROW]);
    const Cut cut{height, width, patch};
    const int tokens = cut.tokens(), tiles = ceil_div(tokens, TILE);
    const int first_row = static_cast<int>(blockIdx.x) / tiles * TILE;
    const int first_column = static_cast<int>(blockIdx.x) % tiles * TILE;
    const size_t image = blockIdx.z;
    const int depth = channels * patch * patch;
    const float* const own_q = q + image * channels * height * width;
    const float* const own_k = k + image * channels * height * width;
    const int begin = static_cast<int>(blockIdx.y) * slice;
    const int end = begin + slice < depth ? begin + slice : depth;
    float sums[4][4] = {};
    for (int from = begin; from < end; from += STEP) {
#pragma unroll
        for (int i = 0; i < STEP * TILE / THREADS; i++) {
            const int d = static_cast<int>(threadIdx.x) % STEP;
            const int token = static_cast<int>(threadIdx.x) / STEP + i * (THREADS / STEP);
            const bool inside = from + d < end;
            rows[d][token] = inside && first_row + token < tokens
                                 ? __ldg(own_q + cut.at(first_row + token, from + d))
                                 : 0.0f;
            columns[d][token] = inside && first_column + token < tokens
                                    ? __ldg(own_k + cut.at(first_column + token, from + d))
                                    : 0.0f;
        }
        __syncthreads();
        multiply(rows, columns, sums);
        __syncthreads();
    }
    const size_t matrix = static_cast<size_t>(blockIdx.y) * gridDim.z + image;
    float* const to = scores + matrix * tokens * tokens;
    const int row = first_row + static_cast<int>(threadIdx.x) / 8 * 4;
    const int column = first_column + static_cast<int>(threadIdx.x) % 8 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (row + i < tokens && column + j < tokens) {
                to[static_cast<size_t>(row + i) * tokens + column + j] = sums[i][j];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(SOFTMAX_THREADS)
    patch_softmax(float* scores /* [S, B, N, N] */, int slices, int tokens, float scale) {
    SHARED(float, most_of, [SOFTMAX_WARPS]);
    SHARED(float, sum_of, [SOFTMAX_WARPS]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t all = static_cast<size_t>(gridDim.y) * tokens * tokens;
    float* const row = scores + (static_cast<size_t>(blockIdx.y) * tokens + blockIdx.x) * tokens;
    float most = -INFINITY;
    for (int j = threadIdx.x; j < tokens; j += SOFTMAX_THREADS) {
        float score = row[j];
        for (int s = 1; s < slices; s++) score += row[s * all + j];
        score *= scale;
        row[j] = score;
        most = larger(most, score);
    }
#pragma unroll
    for (int apart = 16; apart > 0; apart >>= 1) {
        most = larger(most, __shfl_xor_sync(ALL_LANES, most, apart));
    }
    if (lane == 0) most_of[warp] = most;
    __syncthreads();
    for (int w = 0; w < SOFTMAX_WARPS; w++) most = larger(most, most_of[w]);
    float sum = 0.0f;
    for (int j = threadIdx.x; j < tokens; j += SOFTMAX_THREADS) {
        const float weight = expf(row[j] - most);
        row[j] = weight;
        sum += weight;
    }
    sum = warp_sum(sum);
    if (lane == 0) sum_of[warp] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int w = 0; w < SOFTMAX_WARPS; w++) sum += sum_of[w];
    const float share = 1.0f / sum;
    for (int j = threadIdx.x; j < tokens; j += SOFTMAX_THREADS) row[j] *= share;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    patch_mix(const float* __restrict__ weights /* [B, N, N] */,
              const float* __restrict__ v /* [B, Cv, H, W] */,
              float* __restrict__ to /* [B, Cv, H, W] */, int channels, int height, int width,
              int patch) {
    SHARED(float, rows, [STEP][ROW]);
    SHARED(float, columns, [STEP][ROW]);
    const Cut cut{height, width, patch};
    const int tokens = cut.tokens(), depth = channels * patch * patch;
    const int first_row = static_cast<int>(blockIdx.y) * TILE;
    const int first_column = static_cast<int>(blockIdx.x) * TILE;
    const size_t image = blockIdx.z;
    const float* const own = weights + image * tokens * tokens;
    const float* const values = v + image * channels * height * width;
    float sums[4][4] = {};
    for (int from = 0; from < tokens; from += STEP) {
#pragma unroll
        for (int i = 0; i < STEP * TILE / THREADS; i++) {
            const int j = static_cast<int>(threadIdx.x) % STEP;
            const int token = static_cast<int>(threadIdx.x) / STEP + i * (THREADS / STEP);
            rows[j][token] = from + j < tokens && first_row + token < tokens
                                 ? __ldg(own + static_cast<size_t>(first_row + token) * tokens +
                                         from + j)
                                 : 0.0f;
            const int d = static_cast<int>(threadIdx.x) % TILE;
            const int other = static_cast<int>(threadIdx.x) / TILE + i * (THREADS / TILE);
            columns[other][d] = from + other < tokens && first_column + d < depth
                                    ? __ldg(values + cut.at(from + other, first_column + d))
                                    : 0.0f;
        }
        __syncthreads();
        multiply(rows, columns, sums);
        __syncthreads();
    }
    float* const made = to + image * channels * height * width;
    const int row = first_row + static_cast<int>(threadIdx.x) / 8 * 4;
    const int column = first_column + static_cast<int>(threadIdx.x) % 8 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (row + i < tokens && column + j < depth) {
                made[cut.at(row + i, column + j)] = sums[i][j];
            }
        }
    }
}
