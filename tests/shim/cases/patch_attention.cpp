#include "../cases.h"
#include "common.cuh"

namespace patch_attention_kernel {
#include "patch_attention.cu"
}

namespace patch_attention_cases {

using namespace patch_attention_kernel;
using cases::Buffer;

static void attention(int images, int channels, int height, int width, int patch, int slices) {
    const char* const what = "patch attention";
    const Cut cut{height, width, patch};
    const int tokens = cut.tokens(), depth = channels * patch * patch;
    const int slice = ceil_div(ceil_div(depth, STEP), slices) * STEP;
    slices = ceil_div(depth, slice);
    const size_t picture = size_t(channels) * height * width, count = images * picture;
    const auto asked = cases::noise(count, 1), keys = cases::noise(count, 2);
    const auto given = cases::noise(count, 3);
    std::vector<double> want(count);
    for (int image = 0; image < images; image++) {
        for (int i = 0; i < tokens; i++) {
            std::vector<double> weights;
            double sum = 0;
            for (int j = 0; j < tokens; j++) {
                double score = 0;
                for (int d = 0; d < depth; d++) {
                    score += double(asked[image * picture + cut.at(i, d)]) *
                             keys[image * picture + cut.at(j, d)];
                }
                weights.push_back(std::exp(0.25 * score));
                sum += weights.back();
            }
            for (int d = 0; d < depth; d++) {
                double mixed = 0;
                for (int j = 0; j < tokens; j++) {
                    mixed += weights[j] / sum * given[image * picture + cut.at(j, d)];
                }
                want[image * picture + cut.at(i, d)] = mixed;
            }
        }
    }
    Buffer<float> q(asked), k(keys), v(given), to(count);
    Buffer<float> scores(size_t(slices) * images * tokens * tokens);
    const unsigned tiles = cases::ceil_div(tokens, TILE);
    cases::launch(what, patch_scores, dim3(tiles * tiles, slices, images), dim3(THREADS), 0, q.at,
                  k.at, scores.at, channels, height, width, patch, slice);
    cases::launch(what, patch_softmax, dim3(tokens, images), dim3(SOFTMAX_THREADS), 0, scores.at,
                  slices, tokens, 0.25f);
    cases::launch(what, patch_mix, dim3(cases::ceil_div(depth, TILE), tiles, images), dim3(THREADS),
                  0, scores.at, v.at, to.at, channels, height, width, patch);
    cases::expect_close(to, want, 2e-5, what);
}

void run() {
    attention(2, 3, 4, 6, 2, 1);
    attention(1, 2, 11, 3, 1, 1);
    attention(1, 5, 8, 8, 4, 3);
}

}  // namespace patch_attention_cases
