// Maxima and means over windows (src/ops/pooling.rs). Letters: R = B·C planes.
//
// max_pool, means: grid (⌈P'/256⌉, R), block 256: one place out a thread.
// large_means: grid (P', R), block 128: a block makes one place, for windows of many places.
//
// ResNet's maximum on 64 · 128²: 5.2 MB, 1.7 µs at 3.0 TB/s.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int MEAN_THREADS = 128;

// NaN wins.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// 3 × 3, stride 2, padding 1, which counts as −∞.
extern "C" __global__ void __launch_bounds__(THREADS)
    max_pool(const float* __restrict__ from /* [R, H, W] */,
             float* __restrict__ to /* [R, ⌈H/2⌉, ⌈W/2⌉] */, int height, int width) {
    const int out_height = ceil_div(height, 2), out_width = ceil_div(width, 2);
    const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i >= out_height * out_width) return;
    const size_t plane = blockIdx.y;
    const float* const own = from + plane * height * width;
    const int row = i / out_width * 2, column = i % out_width * 2;
    float most = __ldg(own + row * width + column);
    for (int dy = -1; dy <= 1; dy++) {
        const int y = row + dy;
        if (y < 0 || height <= y) continue;
        for (int dx = -1; dx <= 1; dx++) {
            const int x = column + dx;
            if (x < 0 || width <= x) continue;
            most = larger(most, __ldg(own + y * width + x));
        }
    }
    to[plane * out_height * out_width + i] = most;
}

// Of windows [h, w] that do not overlap.
extern "C" __global__ void __launch_bounds__(THREADS)
    means(const float* __restrict__ from /* [R, H'·h, W'·w] */,
          float* __restrict__ to /* [R, H', W'] */, int out_height, int out_width, int window_height, int window_width) {
    const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (i >= out_height * out_width) return;
    const size_t plane = blockIdx.y;
    const int width = out_width * window_width;
    const float* const own = from + plane * out_height * window_height * width +
                             i / out_width * window_height * width + i % out_width * window_width;
    float sum = 0.0f;
    for (int y = 0; y < window_height; y++) {
        for (int x = 0; x < window_width; x++) sum += __ldg(own + y * width + x);
    }
    to[plane * out_height * out_width + i] =
        sum / static_cast<float>(window_height * window_width);
}

extern "C" __global__ void __launch_bounds__(MEAN_THREADS)
    large_means(const float* __restrict__ from /* [R, H'·h, W'·w] */,
                float* __restrict__ to /* [R, H', W'] */, int out_height, int out_width,
                int window_height, int window_width) {
    SHARED(float, warps, [MEAN_THREADS / 32]);
    const int i = static_cast<int>(blockIdx.x);
    const size_t plane = blockIdx.y;
    const int width = out_width * window_width, count = window_height * window_width;
    const float* const own = from + plane * out_height * window_height * width +
                             i / out_width * window_height * width + i % out_width * window_width;
    float sum = 0.0f;
    for (int at = threadIdx.x; at < count; at += MEAN_THREADS) {
        sum += __ldg(own + at / window_width * width + at % window_width);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float all = 0.0f;
    for (int w = 0; w < MEAN_THREADS / 32; w++) all += warps[w];
    to[plane * out_height * out_width + i] = all / static_cast<float>(count);
}
