#include <algorithm>

#include "../cases.h"
#include "common.cuh"

namespace pooling_kernel {
#include "pooling.cu"
}

namespace pooling_cases {

using namespace pooling_kernel;
using cases::Buffer;

static void maxima(int planes, int height, int width) {
    const char* const what = "maximum";
    auto values = cases::noise(size_t(planes) * height * width, 1);
    // The first that a window sees, and the last.
    if (planes > 1) values[size_t(planes - 1) * height * width] = NAN;
    if (planes > 1) values[values.size() - 1] = NAN;
    // Has to lose to all numbers, but not to what is outside the map.
    values[0] = -INFINITY;
    const int out_height = (height + 1) / 2, out_width = (width + 1) / 2;
    const int places = out_height * out_width;
    std::vector<double> want;
    for (int i = 0; i < planes * places; i++) {
        const int row = i % places / out_width * 2, column = i % out_width * 2;
        double most = -INFINITY;
        for (int y = std::max(row - 1, 0); y <= std::min(row + 1, height - 1); y++) {
            for (int x = std::max(column - 1, 0); x <= std::min(column + 1, width - 1); x++) {
                const double value = values[(size_t(i / places) * height + y) * width + x];
                if (std::isnan(value) || value > most) most = value;
                if (std::isnan(most)) break;
            }
            if (std::isnan(most)) break;
        }
        want.push_back(most);
    }
    Buffer<float> from(values), to(want.size());
    cases::launch(what, max_pool, dim3(cases::ceil_div(places, THREADS), planes), dim3(THREADS), 0,
                  from.at, to.at, height, width);
    cases::expect_close_or_nan(to, want, 0, what);
}

// Of `height` × `width` windows, large enough for a block each or not.
static void averages(int planes, int height, int width, int window_height, int window_width,
                     bool large) {
    const char* const what = large ? "means of large windows" : "means";
    const int count = window_height * window_width, places = height * width;
    auto values = cases::noise(size_t(planes) * places * count, 2);
    if (planes > 1) values[values.size() - 1] = NAN;
    std::vector<double> want;
    for (int i = 0; i < planes * places; i++) {
        const int top = i / width * window_height, left = i % width * window_width;
        double sum = 0;
        for (int at = 0; at < count; at++) {
            const size_t row = size_t(top) + at / window_width;
            sum += values[row * width * window_width + left + at % window_width];
        }
        want.push_back(sum / count);
    }
    Buffer<float> from(values), to(want.size());
    const dim3 grid(large ? places : cases::ceil_div(places, THREADS), planes);
    cases::launch(what, large ? large_means : means, grid, dim3(large ? MEAN_THREADS : THREADS), 0,
                  from.at, to.at, height, width, window_height, window_width);
    cases::expect_close_or_nan(to, want, 1e-6, what);
}

void run() {
    maxima(1, 1, 1);
    maxima(2, 1, 33);
    maxima(2, 31, 1);
    maxima(3, 33, 34);
    averages(1, 1, 1, 1, 1, false);
    averages(2, 31, 9, 2, 3, false);
    averages(3, 1, 257, 1, 1, false);
    averages(2, 3, 1, 1, 31, false);
    averages(1, 1, 1, 8, 16, true);
    averages(2, 3, 2, 31, 33, true);
    averages(3, 1, 3, 1, 257, true);
    averages(2, 2, 1, 129, 1, true);
}

}  // namespace pooling_cases
