#include "../cases.h"
#include "common.cuh"

namespace place_softmax_kernel {
#include "place_softmax.cu"
}

namespace place_softmax_cases {

using namespace place_softmax_kernel;
using cases::Buffer;

static void shares(int places) {
    const char* const what = "softmax over places";
    const int planes = 4;
    auto values = cases::noise(size_t(planes) * places, 1);
    // e¹⁰⁰ is above what an f32 can be: only apart from the largest is it taken.
    for (int i = 0; i < places; i++) values[places + i] = 100 + 5 * values[places + i];
    if (places > 1) values[2 * places] = -INFINITY;
    // Takes its plane with it, and no other.
    values[size_t(planes) * places - 1] = NAN;
    std::vector<double> want;
    for (int plane = 0; plane < planes; plane++) {
        const float* const own = values.data() + plane * places;
        double sum = 0;
        for (int i = 0; i < places; i++) sum += std::exp(double(own[i]));
        for (int i = 0; i < places; i++) want.push_back(std::exp(double(own[i])) / sum);
    }
    Buffer<float> from(values), to(want.size());
    cases::launch(what, place_softmax, dim3(planes), dim3(THREADS), 0, from.at, to.at, places);
    cases::expect_close_or_nan(to, want, 1e-6, what);
}

void run() {
    for (const int places : {1, 31, 33, 257, 1025}) shares(places);
}

}  // namespace place_softmax_cases
