// For each query patch the prototype closest to it, by squared L2 distance
// (src/ops/nearest_prototype.rs). Letters: Q queries, N prototypes, D dimensions, K ≥ D those of
// the codes, a multiple of 32, S splits of the prototypes.
//
// A search goes through the prototypes in S splits side by side and names a winner of each, as
// (distance, index) in one number, so that equal distances go to the lower index. It keeps the best
// in registers, the Q × N matrix is nowhere. `measure_winners` then measures the four best of a
// query's winners as Σ(q − p)² in f32, in the order of the CPU's squared_distance, so that a
// distance has the CPU's bits; the nearest of these is the answer. Nothing depends on the order of
// blocks.
//
// search_bf16: ‖p‖² − 2q·p of codes, the rows less a common centre rounded to bf16, by tensor
//   cores. Grid (⌈Q/128⌉, S), block 256: 8 warps, each 32 queries × 32 prototypes of a tile of 128
//   × 64; 32 dimensions at a time, three stages of cp.async. Q = 1024, N = 16384, K = 384: 12.9
//   GFLOP: 16 µs at 798 TFLOP/s (mma.sync reaches about 60 % of that), 13 MB: 4 µs at 3.0 TB/s.
// search_f32: Σ(q − p)². Grid (⌈Q/64⌉, S), block 256: 4 × 4 pairs a thread, 16 dimensions at a
//   time. The same sizes: 12.9 GFLOP (a difference, a fused square): 0.4 ms at half of 67 TFLOP/s.
// measure_winners: grid ⌈Q/8⌉, block 256: a warp a query, half a warp a winner. 1024 · 4 · 384
//   numbers: 6 MB from the L2 cache, 2 µs.
// image_score: grid (B), block 512: the worst patch of a picture and its score, re-weighted by the
//   distances to the prototypes around the nearest (src/detector/patch_prototypes.rs). A launch.
// rank_some, rank_all: the k ≤ 9 prototypes nearest to one row, in blocks of 256, then of all. N ·
//   D numbers: 25 MB, 8 µs at 3.0 TB/s.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr unsigned long long NONE = ~0ull;

// Σ(a − b)², in each of 16 lanes: lane i of them adds places i, 16 + i, ..., then the sums are
// added from the first to the last, then what no lane had. All lanes of the warp must be here.
__device__ __forceinline__ float squared_distance(const float* __restrict__ a,
                                                  const float* __restrict__ b, int dims) {
    const int lane = threadIdx.x % 16, whole = dims - dims % 16;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = lane; i < whole; i += 16) {
        const float apart = __fsub_rn(a[i], b[i]);
        sum = __fadd_rn(sum, __fmul_rn(apart, apart));
    }
    float all = 0.0f, rest = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) all = __fadd_rn(all, __shfl_sync(ALL_LANES, sum, i, 16));
    for (int i = whole; i < dims; i++) {
        const float apart = __fsub_rn(a[i], b[i]);
        rest = __fadd_rn(rest, __fmul_rn(apart, apart));
    }
    return __fadd_rn(all, rest);
}

// ---------- search by tensor cores ----------

constexpr int QUERIES = 128;    // of a block
constexpr int PROTOTYPES = 64;  // of a tile
constexpr int DEPTH = 32;       // dimensions at a time
constexpr int STAGES = 3;
// Rows in shared memory, 16 bytes longer than they need be: those of a matrix lie in different
// banks.
constexpr int PITCH = DEPTH + 8;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    search_bf16(const Bf16* __restrict__ queries /* [Q, K] */,
                const Bf16* __restrict__ prototypes /* [N, K] */,
                const float* __restrict__ norms2 /* [N] of the codes */,
                unsigned long long* __restrict__ winners /* [S, Q] */, int query_count,
                int prototype_count, int dims, int split) {
    SHARED(Bf16, query_tile, [STAGES][QUERIES][PITCH]);
    SHARED(Bf16, prototype_tile, [STAGES][PROTOTYPES][PITCH]);
    SHARED(unsigned long long, halves, [2][QUERIES]);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    // Of the warp: a quarter of the queries, a half of the prototypes.
    const int quarter = warp % 4 * 32, half = warp / 4 * 32;
    const int first_query = static_cast<int>(blockIdx.x) * QUERIES;
    const int begin = static_cast<int>(blockIdx.y) * split;
    const int end = begin + split < prototype_count ? begin + split : prototype_count;
    const int tiles = ceil_div(end - begin, PROTOTYPES), depths = dims / DEPTH;

    // Which part of which tile is loaded next, and where to.
    int next_tile = 0, next_depth = 0, next_stage = 0;
    auto load_next = [&] {
        if (next_tile < tiles) {
            const int row = thread / 4, column = thread % 4 * 8;
            const int dim = next_depth * DEPTH + column;
#pragma unroll
            for (int i = 0; i < QUERIES; i += THREADS / 4) {
                const int query = first_query + row + i;
                const bool there = query < query_count;
                copy_async_16(&query_tile[next_stage][row + i][column],
                              queries + static_cast<size_t>(there ? query : 0) * dims + dim, there);
            }
            const int prototype = begin + next_tile * PROTOTYPES + row;
            const bool there = prototype < end;
            copy_async_16(&prototype_tile[next_stage][row][column],
                          prototypes + static_cast<size_t>(there ? prototype : 0) * dims + dim,
                          there);
            next_stage = next_stage + 1 == STAGES ? 0 : next_stage + 1;
            if (++next_depth == depths) {
                next_depth = 0;
                next_tile++;
            }
        }
        // A group, empty as it may be: the waits count them.
        copy_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load_next();

    unsigned long long best[4] = {NONE, NONE, NONE, NONE};
    float sums[2][4][4] = {};
    int stage = 0;
    for (int tile = 0; tile < tiles; tile++) {
        for (int depth = 0; depth < depths; depth++) {
            copy_async_wait<STAGES - 2>();
            // All have this stage, and all are done with the one that is loaded next.
            __syncthreads();
            load_next();
#pragma unroll
            for (int k = 0; k < DEPTH; k += 16) {
                uint32_t a[2][4], b[4][2];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    load_matrices(a[i], &query_tile[stage][quarter + i * 16 + lane % 16]
                                                   [k + lane / 16 * 8]);
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    uint32_t two[4];  // of 16 prototypes
                    const int row = half + j * 16 + lane % 8 + lane / 16 * 8;
                    load_matrices(two, &prototype_tile[stage][row][k + lane / 8 % 2 * 8]);
                    b[2 * j][0] = two[0];
                    b[2 * j][1] = two[1];
                    b[2 * j + 1][0] = two[2];
                    b[2 * j + 1][1] = two[3];
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) multiply_add(sums[i][j], a[i], b[j]);
                }
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        // Sum e of a fragment: query lane / 4, + 8 from the third on; prototype 2·(lane % 4) + e %
        // 2.
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int index = begin + tile * PROTOTYPES + half + j * 8 + lane % 4 * 2 + e;
                const float norm2 = index < end ? __ldg(norms2 + index) : 0.0f;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float& sum = sums[i / 2][j][i % 2 * 2 + e];
                    if (index < end) {
                        best[i] = smaller(best[i], keyed(fmaf(-2.0f, sum, norm2), index));
                    }
                    sum = 0.0f;
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        best[i] = smaller(best[i], __shfl_xor_sync(ALL_LANES, best[i], 1));
        best[i] = smaller(best[i], __shfl_xor_sync(ALL_LANES, best[i], 2));
        if (lane % 4 == 0) halves[warp / 4][quarter + i * 8 + lane / 4] = best[i];
    }
    __syncthreads();
    if (thread < QUERIES && first_query + thread < query_count) {
        winners[static_cast<size_t>(blockIdx.y) * query_count + first_query + thread] =
            smaller(halves[0][thread], halves[1][thread]);
    }
}

// ---------- search in f32 ----------

constexpr int SIDE = 64;     // queries and prototypes of a tile
constexpr int F32_DEPTH = 16;  // dimensions at a time

// SIDE rows from `first` on, F32_DEPTH dimensions from `dim` on, turned; 0 where there are none.
__device__ __forceinline__ void load_turned(const float* __restrict__ rows, int first, int end,
                                            int dim, int dims,
                                            float (&to)[F32_DEPTH][SIDE + 4]) {
    const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 4;
    const float* const from = rows + static_cast<size_t>(first + row) * dims + dim + column;
    float values[4] = {};
    if (first + row < end) {
        if (dims % 4 == 0 && is_aligned_16(rows)) {
            if (dim + column < dims) unpack(load_16(from), values);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (dim + column + i < dims) values[i] = from[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) to[column + i][row] = values[i];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    search_f32(const float* __restrict__ queries /* [Q, D] */,
               const float* __restrict__ prototypes /* [N, D] */,
               unsigned long long* __restrict__ winners /* [S, Q] */, int query_count,
               int prototype_count, int dims, int split) {
    SHARED(float, query_tile, [F32_DEPTH][SIDE + 4]);
    SHARED(float, prototype_tile, [F32_DEPTH][SIDE + 4]);
    // Of 16 × 16 threads, each with 4 × 4 pairs.
    const int across = threadIdx.x % 16 * 4, down = threadIdx.x / 16 * 4;
    const int first_query = static_cast<int>(blockIdx.x) * SIDE;
    const int begin = static_cast<int>(blockIdx.y) * split;
    const int end = begin + split < prototype_count ? begin + split : prototype_count;
    unsigned long long best[4] = {NONE, NONE, NONE, NONE};
    for (int first = begin; first < end; first += SIDE) {
        float sums[4][4] = {};
        for (int dim = 0; dim < dims; dim += F32_DEPTH) {
            load_turned(queries, first_query, query_count, dim, dims, query_tile);
            load_turned(prototypes, first, end, dim, dims, prototype_tile);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < F32_DEPTH; k++) {
                float a[4], b[4];
                unpack(*reinterpret_cast<const uint4*>(&query_tile[k][down]), a);
                unpack(*reinterpret_cast<const uint4*>(&prototype_tile[k][across]), b);
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const float apart = a[i] - b[j];
                        sums[i][j] = fmaf(apart, apart, sums[i][j]);
                    }
                }
            }
            // All are done with the tiles.
            __syncthreads();
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int index = first + across + j;
            if (index < end) {
#pragma unroll
                for (int i = 0; i < 4; i++) best[i] = smaller(best[i], keyed(sums[i][j], index));
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int apart = 8; apart > 0; apart >>= 1) {
            best[i] = smaller(best[i], __shfl_xor_sync(ALL_LANES, best[i], apart));
        }
        const int query = first_query + down + i;
        if (threadIdx.x % 16 == 0 && query < query_count) {
            winners[static_cast<size_t>(blockIdx.y) * query_count + query] = best[i];
        }
    }
}

// ---------- what the winners are worth ----------

// Winners of a query that are measured: those next to the best may be nearer than a rounding says.
constexpr int MEASURED = 4;

extern "C" __global__ void __launch_bounds__(THREADS)
    measure_winners(const unsigned long long* __restrict__ winners /* [S, Q], S ≤ 32 */, int splits,
                    const float* __restrict__ queries /* [Q, D] */,
                    const float* __restrict__ prototypes /* [N, D] */, int query_count, int dims,
                    uint32_t* __restrict__ nearest /* [Q] */,
                    float* __restrict__ distances /* [Q], not squared */) {
    const int lane = threadIdx.x % 32;
    const int query = static_cast<int>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
    // The whole warp goes.
    if (query >= query_count) return;
    unsigned long long left =
        lane < splits ? winners[static_cast<size_t>(lane) * query_count + query] : NONE;
    unsigned long long best = NONE;
    const float* const row = queries + static_cast<size_t>(query) * dims;
    for (int i = 0; i < MEASURED; i += 2) {
        const unsigned long long first = warp_min(left);
        if (first == NONE) break;
        if (left == first) left = NONE;
        unsigned long long second = warp_min(left);
        if (left == second) left = NONE;
        if (second == NONE) second = first;
        const uint32_t index = static_cast<uint32_t>(lane < 16 ? first : second);
        const float distance2 =
            squared_distance(row, prototypes + static_cast<size_t>(index) * dims, dims);
        best = smaller(best, keyed(distance2, index));
    }
    best = smaller(best, __shfl_xor_sync(ALL_LANES, best, 16));
    if (lane == 0) {
        nearest[query] = static_cast<uint32_t>(best);
        distances[query] = sqrtf(unordered(static_cast<uint32_t>(best >> 32)));
    }
}

// ---------- the score of a picture ----------

constexpr int SCORERS = 512;
// b of eq. 7, as many as half warps have room for.
constexpr int MOST_NEIGHBOURS = SCORERS / 16;

extern "C" __global__ void __launch_bounds__(SCORERS)
    image_score(const float* __restrict__ rows /* [B, P, D] */,
                const float* __restrict__ distances /* [B, P] */,
                const uint32_t* __restrict__ nearest /* [B, P] */,
                const float* __restrict__ prototypes /* [N, D] */,
                const uint32_t* __restrict__ neighbours /* [N, b], nearest first */, int patches,
                int dims, int around, float* __restrict__ scores /* [B] */) {
    SHARED(unsigned long long, farthest, [SCORERS / 32]);
    SHARED(float, others, [MOST_NEIGHBOURS]);
    const size_t before = static_cast<size_t>(blockIdx.x) * patches;
    // The largest distance, the first of such; a NaN before all.
    unsigned long long key = NONE;
    for (int i = threadIdx.x; i < patches; i += SCORERS) {
        const uint32_t reversed = ~ordered(distances[before + i]);
        key = smaller(key, static_cast<unsigned long long>(reversed) << 32 | i);
    }
    key = warp_min(key);
    if (threadIdx.x % 32 == 0) farthest[threadIdx.x / 32] = key;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SCORERS / 32; i++) key = smaller(key, farthest[i]);
    const size_t patch = before + static_cast<uint32_t>(key);
    const uint32_t* const found = neighbours + static_cast<size_t>(nearest[patch]) * around;
    const int own = threadIdx.x / 16;
    // Half warps that have none measure the first once more.
    const uint32_t index = found[own < around ? own : 0];
    const float distance2 =
        squared_distance(rows + patch * dims, prototypes + static_cast<size_t>(index) * dims, dims);
    if (threadIdx.x % 16 == 0) others[own] = sqrtf(distance2);
    __syncthreads();
    if (threadIdx.x == 0) {
        const float distance = distances[patch];
        // Exponentials of plain distances overflow from 88; only their differences matter.
        float sum = 0.0f;
        for (int i = 1; i < around; i++) sum += expf(others[i] - distance);
        scores[blockIdx.x] = distance * (1.0f - 1.0f / (1.0f + sum));
    }
}

// ---------- the few prototypes nearest to one row ----------

constexpr int MOST_RANKED = 9;
constexpr int RANKED_TOGETHER = 256;  // prototypes of a block

// The `count` smallest of the block's keys, one a thread and all different but NONE, to `to` in
// order.
__device__ __forceinline__ void rank(unsigned long long key, int count,
                                     unsigned long long (&warps)[THREADS / 32],
                                     unsigned long long* to) {
    for (int i = 0; i < count; i++) {
        const unsigned long long own = warp_min(key);
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
        __syncthreads();
        unsigned long long least = NONE;
#pragma unroll
        for (int w = 0; w < THREADS / 32; w++) least = smaller(least, warps[w]);
        if (key == least) key = NONE;
        if (threadIdx.x == 0) to[i] = least;
        // All have read the warps' keys.
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rank_some(const float* __restrict__ row /* [D] */,
              const float* __restrict__ prototypes /* [N, D] */, int prototype_count, int dims,
              int count, unsigned long long* __restrict__ ranked /* [blocks, count] */) {
    SHARED(unsigned long long, keys, [RANKED_TOGETHER]);
    SHARED(unsigned long long, warps, [THREADS / 32]);
    const int first = static_cast<int>(blockIdx.x) * RANKED_TOGETHER;
    for (int i = threadIdx.x / 16; i < RANKED_TOGETHER; i += THREADS / 16) {
        const int index = first + i;
        // Behind the last: that one once more, which is not kept.
        const int measured = index < prototype_count ? index : prototype_count - 1;
        const float distance2 =
            squared_distance(row, prototypes + static_cast<size_t>(measured) * dims, dims);
        if (threadIdx.x % 16 == 0) {
            keys[i] = index < prototype_count ? keyed(distance2, index) : NONE;
        }
    }
    __syncthreads();
    rank(keys[threadIdx.x], count, warps, ranked + static_cast<size_t>(blockIdx.x) * count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rank_all(const unsigned long long* __restrict__ ranked /* [candidates] */, int candidates,
             int count, uint32_t* __restrict__ indices /* [count] */,
             float* __restrict__ distances2 /* [count] */) {
    SHARED(unsigned long long, warps, [THREADS / 32]);
    SHARED(unsigned long long, all, [MOST_RANKED]);
    // Larger than what has been ranked, a thread looks for its smallest each time.
    unsigned long long last = 0;
    for (int i = 0; i < count; i++) {
        unsigned long long key = NONE;
        for (int j = threadIdx.x; j < candidates; j += THREADS) {
            if (i == 0 || ranked[j] > last) key = smaller(key, ranked[j]);
        }
        rank(key, 1, warps, all + i);
        last = all[i];
    }
    if (static_cast<int>(threadIdx.x) < count) {
        indices[threadIdx.x] = static_cast<uint32_t>(all[threadIdx.x]);
        distances2[threadIdx.x] = unordered(static_cast<uint32_t>(all[threadIdx.x] >> 32));
    }
}
