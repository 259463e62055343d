#include "../cases.h"
#include "common.cuh"

namespace window_attention_kernel {
#include "window_attention.cu"
}

namespace window_attention_cases {

using namespace window_attention_kernel;
using cases::Buffer;

// `own`: channels of a group.
static void attention(int images, int groups, int own, int height, int width) {
    const char* const what = "window attention";
    const int channels = groups * own, places = height * width;
    auto given = cases::noise(size_t(images) * groups * WINDOW * places, 1);
    auto values = cases::noise(size_t(images) * channels * places, 2);
    // e²⁰⁰ is above what an f32 can be.
    for (float& logit : given) logit = 200 + 3 * logit;
    given[given.size() / 3] = -INFINITY;
    if (images > 1) {
        // The first spoils a place of a group, the other a window of a channel.
        given[0] = NAN;
        values[values.size() - 1] = NAN;
    }
    std::vector<double> want;
    for (size_t i = 0; i < values.size(); i++) {
        const size_t image = i / places / channels, channel = i / places % channels;
        const int place = static_cast<int>(i % places);
        const size_t group = image * groups + channel % groups;
        double sum = 0, mixed = 0;
        for (int o = 0; o < WINDOW; o++) {
            const double weight = std::exp(double(given[(group * WINDOW + o) * places + place]));
            const int y = place / width + o / 3 - 1, x = place % width + o % 3 - 1;
            sum += weight;
            if (y < 0 || height <= y || x < 0 || width <= x) continue;
            mixed += weight * values[(image * channels + channel) * places + y * width + x];
        }
        want.push_back(mixed / sum);
    }
    Buffer<float> logits(given), from(values), to(want.size());
    const unsigned parts = cases::ceil_div(own, CHANNELS);
    cases::launch(what, window_attention,
                  dim3(cases::ceil_div(places, THREADS), groups, images * parts), dim3(THREADS), 0,
                  logits.at, from.at, to.at, channels, height, width);
    cases::expect_close_or_nan(to, want, 2e-6, what);
}

void run() {
    attention(1, 1, 1, 1, 1);
    attention(2, 3, 9, 5, 7);
    attention(1, 2, 8, 11, 13);
    attention(2, 16, 1, 1, 33);
    attention(2, 1, 17, 31, 1);
    attention(1, 2, 3, 1, 257);
}

}  // namespace window_attention_cases
