//! Every operation of a graph but convolutions, each as a network of its own.

use inspectd::nn::graph::{Dims, Distance, Graph, LevelRule, Neighbour, Resample, Value};
use inspectd::ops::interpolate::Align;

use crate::networks::{check, nan_shows};

/// A network of the maps of `inputs` [C, H, W], the first of which is no picture, and what is made
/// of them.
fn network(inputs: &[[usize; 3]], make: impl FnOnce(&mut Graph, &[Value]) -> Vec<Value>) -> Graph {
    let (mut g, _) = Graph::new(1, 1);
    let values: Vec<Value> = inputs
        .iter()
        .map(|&[channels, height, width]| g.input(Dims { channels, height, width }))
        .collect();
    let outputs = make(&mut g, &values);
    g.set_outputs(outputs.clone());
    g.to_outputs(&outputs)
}

const RULES: [LevelRule; 2] = [LevelRule::Paper, LevelRule::Reference];

#[test]
fn place_by_place() {
    for (images, shape) in [(1, [1, 1, 1]), (2, [3, 31, 33]), (1, [4, 16, 17]), (3, [1, 5, 205])] {
        let g = network(&[shape, shape], |g, xs| {
            let sum = g.add(xs[0], xs[1]);
            let both = g.add(xs[0], xs[0]);
            let normed = g.batch_norm(xs[1], "bn");
            let normed_too = g.batch_norm(xs[0], "bn2");
            vec![
                g.relu(xs[0]),
                g.leaky_relu(xs[1], 0.1),
                g.sigmoid(xs[0]),
                g.leaky_relu(sum, 0.2),
                both,
                g.mul(xs[0], xs[1]),
                g.relu(normed),
                normed_too,
                g.repeat_channels(xs[1], 3),
                g.concat(&[xs[0], xs[1], xs[0]]),
            ]
        });
        check("place by place", &g, images, 1e-6);
        nan_shows("place by place", &g, images);
    }
}

#[test]
fn windows_and_sizes() {
    for (images, shape) in [(1, [1, 1, 1]), (2, [3, 31, 33]), (1, [5, 8, 2])] {
        let g = network(&[shape], |g, xs| {
            let size = (9, 37);
            vec![
                g.max_pool(xs[0]),
                g.upsample(xs[0], size, Resample::Nearest),
                g.upsample(xs[0], size, Resample::Bilinear(Align::HalfPixel)),
                g.upsample(xs[0], size, Resample::Bilinear(Align::Corners)),
                g.region_mean(xs[0], 1),
                g.place_softmax(xs[0]),
            ]
        });
        check("windows", &g, images, 2e-6);
    }
    let g = network(&[[3, 24, 48]], |g, xs| {
        vec![g.average_pool(xs[0], 4), g.region_mean(xs[0], 2), g.average_pool(xs[0], 8)]
    });
    check("means", &g, 2, 1e-6);
    nan_shows("means", &g, 1);
}

#[test]
fn comparisons() {
    for (images, channels) in [(1, 33), (2, 5)] {
        let (fine, coarse) = ([channels, 7, 9], [2 * channels, 4, 4]);
        let g = network(&[fine, fine, coarse, coarse], |g, xs| {
            let mut outputs = Vec::new();
            for rule in [Distance::OneMinusCosine, Distance::HalfSquared] {
                outputs.push(g.cosine_distance(xs[0], xs[1], rule));
                outputs.push(g.cosine_distance(xs[2], xs[3], rule));
            }
            outputs.push(g.cosine_product(xs[0], xs[1]));
            outputs.push(g.cosine_product(xs[3], xs[2]));
            outputs.push(g.prototype_residual(xs[0], "prototypes", 5));
            outputs
        });
        check("comparisons", &g, images, 2e-6);
        nan_shows("comparisons", &g, images);
    }
}

#[test]
fn attentions() {
    for (images, channels, (height, width), patch) in
        [(1, 3, (4, 4), 4), (2, 5, (6, 4), 2), (1, 33, (3, 13), 1), (1, 40, (12, 8), 4)]
    {
        let shape = [channels, height, width];
        let g = network(&[shape, shape, shape], |g, xs| {
            let attended = g.patch_attention([xs[0], xs[1], xs[2]], patch, 0.1);
            vec![attended, g.patch_affine(xs[0], "affine", patch)]
        });
        check("patch attention", &g, images, 4e-6);
        nan_shows("patch attention", &g, images);
    }
    for (images, groups, channels) in [(1, 1, 3), (2, 4, 36), (1, 8, 128)] {
        let (logits, values) = ([9 * groups, 7, 19], [channels, 7, 19]);
        let g = network(&[logits, values], |g, xs| vec![g.window_attention(xs[0], xs[1])]);
        check("window attention", &g, images, 2e-6);
        nan_shows("window attention", &g, images);
    }
    let g = network(&[[20, 1, 33], [20, 1, 33], [35, 1, 33]], |g, xs| {
        vec![g.level_attention(xs[0], xs[1], xs[2])]
    });
    check("level attention", &g, 2, 1e-5);
    nan_shows("level attention", &g, 2);
}

#[test]
fn textures() {
    // None of these cosines lies within rounding of the edge of one of the paper's levels.
    for (images, side, regions, levels) in
        [(1, (4, 8), 2, 3), (2, (9, 33), 3, 20), (1, (31, 31), 1, 4)]
    {
        let map = [1, side.0, side.1];
        let (rows, columns) = (regions * regions, levels);
        let inputs = [
            map,
            [19, side.0, side.1],
            [19, regions, regions],
            [5, rows, columns],
            [18, 1, levels],
        ];
        let g = network(&inputs, |g, xs| {
            let mut outputs = vec![
                g.cosine_to_mean(xs[1], xs[2]),
                g.repeat_regions(xs[2], 5),
                g.mean_regions(xs[3]),
            ];
            for rule in RULES {
                outputs.push(g.level_counts(xs[0], levels, rule));
                outputs.push(g.spread_levels(xs[0], xs[4], rule));
                for neighbour in [Neighbour::Diagonal, Neighbour::Right] {
                    outputs.push(g.co_occurrence(xs[0], levels, regions, (rule, neighbour)));
                }
            }
            outputs
        });
        check("textures", &g, images, 5e-6);
    }
    // Whatever reads a cosine map is NaN all over, or where the region is.
    let g = network(&[[1, 6, 6], [3, 1, 4]], |g, xs| {
        let rules = (LevelRule::Paper, Neighbour::Diagonal);
        vec![
            g.level_counts(xs[0], 4, LevelRule::Paper),
            g.spread_levels(xs[0], xs[1], LevelRule::Reference),
            g.co_occurrence(xs[0], 3, 2, rules),
        ]
    });
    nan_shows("textures", &g, 1);
}
