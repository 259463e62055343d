#include <algorithm>

#include "../cases.h"
#include "common.cuh"

namespace texture_kernel {
#include "texture.cu"
}

namespace texture_cases {

using namespace texture_kernel;
using cases::Buffer;

// Levels of STLNet's rule, and how much of a value is in each.
struct Plain {
    std::vector<double> levels;

    Plain(double low, double high, int count) {
        for (int n = 0; n < count; n++) {
            levels.push_back((2.0 * n + 1.0) / (2.0 * count) * (high - low) + low);
        }
    }

    double share(int n, double value) const {
        const double apart = std::fabs(levels[n] - value);
        return apart < levels[1] - levels[0] ? 1.0 - apart : 0.0;
    }
};

static void levels(int height, int width, int count, int channels) {
    const int places = height * width;
    const auto values = cases::noise(places, 5), rows = cases::noise(size_t(channels) * count, 6);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const Plain plain(*low, *high, count);
    std::vector<double> sums(count), want_counts(plain.levels), want_spread;
    double total = 0;
    for (int n = 0; n < count; n++) {
        for (const float value : values) sums[n] += plain.share(n, value);
        total += sums[n];
    }
    for (const double sum : sums) want_counts.push_back(sum / total);
    for (int c = 0; c < channels; c++) {
        for (const float value : values) {
            double sum = 0;
            for (int n = 0; n < count; n++) sum += rows[c * count + n] * plain.share(n, value);
            want_spread.push_back(sum);
        }
    }
    std::vector<double> first, second, pairs(size_t(count) * count);
    double all = 1e-6;
    for (int i = 0; i < count * count; i++) {
        first.push_back(plain.levels[i / count]);
        second.push_back(plain.levels[i % count]);
        for (int y = 0; y + 1 < height; y++) {
            for (int x = 0; x + 1 < width; x++) {
                pairs[i] += plain.share(i / count, values[y * width + x]) *
                            plain.share(i % count, values[(y + 1) * width + x + 1]);
            }
        }
        all += pairs[i];
    }
    std::vector<double> want_pairs(first);
    want_pairs.insert(want_pairs.end(), second.begin(), second.end());
    for (const double pair : pairs) want_pairs.push_back(pair / all);

    Buffer<float> cosines(values), bounds(2), own(count), counts(size_t(2) * count), d(rows);
    Buffer<float> spread(size_t(channels) * places), together(size_t(3) * count * count);
    cases::launch("bounds", level_bounds, dim3(1), dim3(THREADS), 0, cosines.at, bounds.at, height,
                  width, 1);
    cases::launch("counts", level_counts, dim3(count), dim3(THREADS), 0, cosines.at, bounds.at,
                  own.at, counts.at, places, 0);
    cases::launch("counts", level_shares, dim3(1), dim3(THREADS), 0, own.at, counts.at, count);
    cases::expect_close(counts, want_counts, 1e-5, "counts of levels");
    const dim3 grid(cases::ceil_div(places, THREADS), cases::ceil_div(channels, CHANNELS));
    cases::launch("spread", spread_levels, grid, dim3(THREADS), 0, cosines.at, d.at, bounds.at,
                  spread.at, channels, count, places, 0);
    cases::expect_close(spread, want_spread, 1e-5, "levels spread");
    cases::launch("pairs", co_occurrence, dim3(1), dim3(PAIR_THREADS), 0, cosines.at, bounds.at,
                  together.at, height, width, 1, count, 0, 1, 1);
    cases::expect_close(together, want_pairs, 1e-5, "pairs of levels");
}

static void regions(int channels) {
    const int height = 6, width = 9, side = 3, places = height * width;
    const auto values = cases::noise(size_t(channels) * places, 7);
    const auto averages = cases::noise(size_t(channels) * side * side, 8);
    std::vector<double> want, want_means;
    for (int i = 0; i < places; i++) {
        const int region = i / width / (height / side) * side + i % width / (width / side);
        double dot = 0, xx = 0, gg = 0;
        for (int c = 0; c < channels; c++) {
            const double x = values[c * places + i], g = averages[c * side * side + region];
            dot += x * g;
            xx += x * x;
            gg += g * g;
        }
        want.push_back(dot / std::sqrt(xx) / std::sqrt(gg));
    }
    for (int row = 0; row < channels * height; row++) {
        double sum = 0;
        for (int x = 0; x < width; x++) sum += values[row * width + x];
        want_means.push_back(sum / width);
    }
    Buffer<float> from(values), means(averages), to(places), rows(size_t(channels) * height);
    cases::launch("cosines", cosine_to_mean, dim3(cases::ceil_div(places, PLACES)),
                  dim3(COSINE_THREADS), 0, from.at, means.at, to.at, channels, height, width, side);
    cases::expect_close(to, want, 1e-5, "cosines to means");
    cases::launch("means", mean_regions, dim3(cases::ceil_div(rows.count, COSINE_WARPS)),
                  dim3(COSINE_THREADS), 0, from.at, rows.at, int(rows.count), width);
    cases::expect_close(rows, want_means, 1e-5, "means of regions");
}

void run() {
    levels(6, 9, 5, 3);
    levels(31, 33, 19, 17);
    for (const int channels : {1, 33}) regions(channels);
}

}  // namespace texture_cases
