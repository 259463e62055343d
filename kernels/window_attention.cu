// Attention over 3 × 3 windows (src/ops/window_attention.rs): y of channel c is the sum over the
// window's places o of a[c mod G, o] · value at o, a the softmax over o of logits [G·9, H, W], zero
// outside the map.
//
// Grid (⌈H·W/128⌉, G, B·⌈C/(8·G)⌉), block 128: a thread makes one place of eight channels of a
// group, whose nine weights it keeps in registers. 128 channels of 32² in 8 groups: 1.3 MB, 0.5 µs
// at 3.0 TB/s.
#include "common.cuh"

constexpr int THREADS = 128;
constexpr int WINDOW = 9;
constexpr int CHANNELS = 8;

// NaN wins.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

extern "C" __global__ void __launch_bounds__(THREADS)
    window_attention(const float* __restrict__ logits /* [B, G·9, H, W] */,
                     const float* __restrict__ values /* [B, C, H, W] */,
                     float* __restrict__ to /* [B, C, H, W] */, int channels, int height,
                     int width) {
    const int i = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    const int places = height * width;
    if (i >= places) return;
    const int groups = static_cast<int>(gridDim.y), group = static_cast<int>(blockIdx.y);
    const int parts = ceil_div(channels / groups, CHANNELS);
    const size_t image = blockIdx.z / parts;
    const int part = static_cast<int>(blockIdx.z) % parts;
    const float* const own = logits + (image * groups + group) * WINDOW * places + i;
    float weights[WINDOW];
#pragma unroll
    for (int o = 0; o < WINDOW; o++) weights[o] = __ldg(own + static_cast<size_t>(o) * places);
    float most = weights[0];
#pragma unroll
    for (int o = 1; o < WINDOW; o++) most = larger(most, weights[o]);
    float sum = 0.0f;
#pragma unroll
    for (int o = 0; o < WINDOW; o++) {
        weights[o] = expf(weights[o] - most);
        sum += weights[o];
    }
    const float share = 1.0f / sum;
    const int row = i / width, column = i % width;
    for (int at = part * CHANNELS; at < (part + 1) * CHANNELS; at++) {
        const int channel = at * groups + group;
        if (channel >= channels) return;
        const size_t plane = (image * channels + channel) * places;
        float mixed = 0.0f;
#pragma unroll
        for (int o = 0; o < WINDOW; o++) {
            const int y = row + o / 3 - 1, x = column + o % 3 - 1;
            const bool inside = 0 <= y && y < height && 0 <= x && x < width;
            const float value = inside ? __ldg(values + plane + y * width + x) : 0.0f;
            mixed = fmaf(weights[o], value, mixed);
        }
        to[plane + i] = mixed * share;
    }
}
