// From distances of places to an anomaly map: each level resized (bilinear) and smoothed
// (Gaussian), and the levels added or multiplied (src/ops/smooth_upsample.rs, gaussian.rs,
// interpolate.rs).
//
// Resizing and smoothing are linear and act on rows and columns alike, so of a level D [h, w] they
// make V · D · Xᵀ; row i of V [H, h] and of X [W, w] is not 0 at `taps` places from starts[i] on.
// map = Σ or ∏ over the levels. Letters: B pictures, h × w places of a level, H × W the map.
//
// Grid (⌈W/128⌉, ⌈H/4⌉, B), block 128: first V · D of the block's rows, for those columns of the
// level that its own look at, into shared memory; then a thread a column.
//
// 32² → 256², σ 4, one level: 7 taps a side; 0.27 MB, 2 MFLOP: 0.1 µs at 3.0 TB/s, so a launch.
#include "common.cuh"

constexpr int MOST_LEVELS = 4;
constexpr int COLUMNS = 128;
constexpr int ROWS = 4;

struct Level {
    const float* from;           // [B, h, w]
    const int* row_starts;       // [H]
    const float* row_weights;    // [H, row_taps]
    const int* column_starts;    // [W], none below the one before it
    const float* column_weights; // [column_taps, W]
    int height;
    int width;
    int row_taps;
    int column_taps;
};

struct Levels {
    Level levels[MOST_LEVELS];
};

extern "C" __global__ void __launch_bounds__(COLUMNS)
    fuse_levels(const __grid_constant__ Levels levels, int count, int multiplied,
                float* __restrict__ map /* [B, H, W] */, int height, int width) {
    DYNAMIC_SHARED(float, mixed);  // [ROWS, the columns that are looked at]
    const int left = static_cast<int>(blockIdx.x) * COLUMNS;
    const int x = left + static_cast<int>(threadIdx.x);
    const int right = (left + COLUMNS < width ? left + COLUMNS : width) - 1;
    const int top = static_cast<int>(blockIdx.y) * ROWS;
    float fused[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) fused[r] = multiplied != 0 ? 1.0f : 0.0f;
    for (int i = 0; i < count; i++) {
        const Level& level = levels.levels[i];
        const float* const from =
            level.from + static_cast<size_t>(blockIdx.z) * level.height * level.width;
        const int first = level.column_starts[left];
        const int span = level.column_starts[right] + level.column_taps - first;
        // The level before has been read.
        if (i > 0) __syncthreads();
        for (int r = 0; r < ROWS; r++) {
            // Below the map: its last row once more, which nobody stores.
            const int y = top + r < height ? top + r : height - 1;
            const float* const rows =
                from + static_cast<size_t>(level.row_starts[y]) * level.width + first;
            const float* const weights =
                level.row_weights + static_cast<size_t>(y) * level.row_taps;
            for (int c = threadIdx.x; c < span; c += COLUMNS) {
                float sum = 0.0f;
                for (int k = 0; k < level.row_taps; k++) {
                    sum = fmaf(weights[k], rows[k * level.width + c], sum);
                }
                mixed[r * span + c] = sum;
            }
        }
        __syncthreads();
        if (x < width) {
            const float* const looked = mixed + (level.column_starts[x] - first);
            float sums[ROWS] = {};
            for (int k = 0; k < level.column_taps; k++) {
                const float weight = level.column_weights[k * width + x];
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    sums[r] = fmaf(weight, looked[r * span + k], sums[r]);
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                fused[r] = multiplied != 0 ? fused[r] * sums[r] : fused[r] + sums[r];
            }
        }
    }
    if (x < width) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (top + r < height) {
                map[(static_cast<size_t>(blockIdx.z) * height + top + r) * width + x] = fused[r];
            }
        }
    }
}
