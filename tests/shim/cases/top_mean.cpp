#include <algorithm>

#include "../cases.h"
#include "common.cuh"

namespace top_mean_kernel {
#include "top_mean.cu"
}

namespace top_mean_cases {

using namespace top_mean_kernel;
using cases::Buffer;

static void means(int count, int top) {
    const char* const what = "top mean";
    // Noise, and a map of few different values.
    auto values = cases::noise(size_t(2) * count, 8);
    for (int i = 0; i < count; i++) values[i] = std::round(values[i] * 4) / 4;
    std::vector<double> want;
    for (int map = 0; map < 2; map++) {
        std::vector<float> own(values.begin() + map * count, values.begin() + (map + 1) * count);
        std::sort(own.rbegin(), own.rend());
        own.resize(std::min(top, count));
        double sum = 0;
        for (const float value : own) sum += value;
        want.push_back(sum / own.size());
    }
    Buffer<float> maps(values), to(2);
    cases::launch(what, top_mean, dim3(2), dim3(THREADS), 0, maps.at, to.at, count, top);
    cases::expect_close(to, want, 1e-6, what);
}

void run() {
    for (const int top : {1, 100}) {
        for (const int count : {1, 33, 1025}) means(count, top);
    }
}

}  // namespace top_mean_cases
