// The rows that patch_prototypes looks up (src/ops/patch_features.rs): of each place the features
// of two levels, averaged over 3×3 places (zeros outside, always by 9), the deeper level brought to
// the places of the upper (bilinear, half-pixel), the two one behind the other. Beside them, where
// asked for, the same rows less a centre in bf16, filled up with zeros, for the search by tensor
// cores. Letters: B pictures, C2 and C3 channels, h × w places of the upper level, D = C2 + C3, K ≥
// D.
//
// Grid (⌈h·w/32⌉, ⌈K/32⌉, B), block 256: 32 places × 32 channels, averaged with lanes along the
// places, as maps lie, and stored with lanes along the channels, as rows lie; shared memory turns
// them. An average after a resize reads 4 × 4 places, which a cache has from the neighbours.
//
// ResNet-18 at 256 × 256 (128·32², 256·16², D = 384): 0.8 MB in, 1.6 + 0.8 MB out, 6 MFLOP: 1.1 µs
// at 3.0 TB/s.
#include "common.cuh"

constexpr int TILE = 32;
constexpr int THREADS = 256;

// x (picture, channel) of a level at (y, x), 0 outside of it.
struct Plane {
    const float* at;
    int height;
    int width;

    __device__ __forceinline__ float get(int y, int x) const {
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        return inside ? __ldg(at + static_cast<size_t>(y) * width + x) : 0.0f;
    }
};

// The nine places around (y, x), added.
__device__ __forceinline__ float around(const Plane& plane, int y, int x) {
    float sum = 0.0f;
#pragma unroll
    for (int i = -1; i <= 1; i++) {
        sum += plane.get(y + i, x - 1) + plane.get(y + i, x) + plane.get(y + i, x + 1);
    }
    return sum;
}

// The three places around x in row y and those around the next column that the tap looks at, mixed.
__device__ __forceinline__ float mixed_row(const Plane& plane, int y, const Tap& column) {
    const float both = plane.get(y, column.low) + plane.get(y, column.low + 1);
    const float low = plane.get(y, column.low - 1) + both;
    const float high = both + plane.get(y, column.low + 2);
    return fmaf(high, column.weight, low * (1.0f - column.weight));
}

// Nine times the average, between the places of the deeper level.
__device__ __forceinline__ float mixed(const Plane& plane, const Tap& row, const Tap& column) {
    const float both = mixed_row(plane, row.low, column) + mixed_row(plane, row.low + 1, column);
    const float low = mixed_row(plane, row.low - 1, column) + both;
    const float high = both + mixed_row(plane, row.low + 2, column);
    return fmaf(high, row.weight, low * (1.0f - row.weight));
}

// At the last place both neighbours are the same, whatever the weight.
__device__ __forceinline__ Tap inner_tap(int i, int from, int to) {
    Tap found = tap(i, from, to, false);
    if (found.high == found.low) found.weight = 0.0f;
    return found;
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    patch_features(const float* __restrict__ upper /* [B, C2, h, w] */,
                   const float* __restrict__ deeper /* [B, C3, deeper_height, deeper_width] */,
                   int upper_channels, int deeper_channels, int height, int width,
                   int deeper_height, int deeper_width, float* __restrict__ rows /* [B·h·w, D] */,
                   const float* __restrict__ centre /* [D], or nothing where codes is */,
                   Bf16* __restrict__ codes /* [B·h·w, K], or nothing */, int code_dims) {
    SHARED(float, turned, [TILE][TILE + 1]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int places = height * width, dims = upper_channels + deeper_channels;
    const int first = static_cast<int>(blockIdx.x) * TILE;
    const int left = static_cast<int>(blockIdx.y) * TILE;
    const int place = first + lane, picture = static_cast<int>(blockIdx.z);
    if (place < places) {
        const int y = place / width, x = place % width;
        const Tap row = inner_tap(y, deeper_height, height);
        const Tap column = inner_tap(x, deeper_width, width);
#pragma unroll 1
        for (int i = warp; i < TILE; i += THREADS / 32) {
            const int channel = left + i;
            float value = 0.0f;
            if (channel < upper_channels) {
                const size_t plane = static_cast<size_t>(picture) * upper_channels + channel;
                value = around(Plane{upper + plane * places, height, width}, y, x);
            } else if (channel < dims) {
                const size_t plane = static_cast<size_t>(picture) * deeper_channels + channel -
                                     upper_channels;
                const size_t deeper_places = static_cast<size_t>(deeper_height) * deeper_width;
                const Plane from{deeper + plane * deeper_places, deeper_height, deeper_width};
                value = mixed(from, row, column);
            }
            turned[i][lane] = value * (1.0f / 9.0f);
        }
    }
    __syncthreads();
    const int channel = left + lane;
    for (int i = warp; i < TILE && first + i < places; i += THREADS / 32) {
        const size_t to = static_cast<size_t>(picture) * places + first + i;
        const float value = turned[lane][i];
        if (channel < dims) rows[to * dims + channel] = value;
        if (codes != nullptr && channel < code_dims) {
            codes[to * code_dims + channel] =
                channel < dims ? to_bf16(value - __ldg(centre + channel)) : Bf16{0};
        }
    }
}
