use std::collections::BTreeMap;

use candle_core::{Device, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::nn::graph::{Dims, Distance, LevelRule, Neighbour, Value};
use crate::nn::vectors::{Vector, flat};
use crate::ops::interpolate::Align;

fn dims(channels: usize, height: usize, width: usize) -> Dims {
    Dims { channels, height, width }
}

fn dims_of(xs: &Tensor) -> Dims {
    let (_, c, h, w) = xs.dims4().unwrap();
    dims(c, h, w)
}

fn no_weights() -> Weights {
    Weights::from_tensors("none", BTreeMap::new()).unwrap()
}

/// What `build` makes of `inputs`.
fn outputs(inputs: &[Tensor], build: impl Fn(&mut Graph, &[Value]) -> Vec<Value>) -> Vec<Tensor> {
    let mut g = Graph::default();
    let values: Vec<_> = inputs.iter().map(|xs| g.input(dims_of(xs))).collect();
    let outputs = build(&mut g, &values);
    g.set_outputs(outputs);
    run_on(&g, &no_weights(), inputs).unwrap()
}

fn random(shape: [usize; 4], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..shape.iter().product()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
    Tensor::from_vec::<_, f32>(values, shape.as_slice(), &Device::Cpu).unwrap()
}

#[test]
fn cosines_and_their_gradients_equal_the_vector() {
    let Some(vector) = Vector::open("destseg_features") else { return };
    for level in 1..=3 {
        let teacher = vector.input(&format!("teacher{level}"));
        let student = Var::from_tensor(&vector.input(&format!("student{level}"))).unwrap();
        let inputs = [teacher, student.as_tensor().clone()];
        let got = outputs(&inputs, |g, v| {
            vec![
                g.cosine_product(v[0], v[1]),
                g.cosine_distance(v[0], v[1], Distance::OneMinusCosine),
            ]
        });
        vector.assert_close(&format!("X{level}"), &got[0].neg().unwrap());
        vector.assert_close(&format!("D{level}"), &got[1]);
        let (_, _, h, w) = got[1].dims4().unwrap();
        let loss = (got[1].sum_all().unwrap() / (h * w) as f64).unwrap();
        let gradients = loss.backward().unwrap();
        let name = format!("grad_student{level}_of_loss_batchsum");
        vector.assert_close(&name, gradients.get(&student).unwrap());
    }
}

#[test]
fn distances_of_teacher_and_student_equal_the_vector() {
    let Some(vector) = Vector::open("ntsnet_loss_maps") else { return };
    for level in 1..=2 {
        let inputs = ["teacher", "student"].map(|net| vector.input(&format!("{net}{level}")));
        let got =
            outputs(&inputs, |g, v| vec![g.cosine_distance(v[0], v[1], Distance::HalfSquared)]);
        vector.assert_close(&format!("M{level}"), &got[0]);
    }
}

#[test]
fn a_zero_vector_has_no_gradient_and_distance_one() {
    let xs = Var::zeros((1, 2, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let inputs = [random([1, 2, 1, 1], 1), xs.as_tensor().clone()];
    let got =
        outputs(&inputs, |g, v| vec![g.cosine_distance(v[0], v[1], Distance::OneMinusCosine)]);
    assert_eq!(flat(&got[0]), [1.0]);
    let gradients = got[0].sum_all().unwrap().backward().unwrap();
    assert!(flat(gradients.get(&xs).unwrap()).iter().all(|x| x.is_finite()));
}

#[test]
fn prototype_residuals_equal_the_vector() {
    let Some(vector) = Vector::open("prn_prototypes") else { return };
    for scale in 1..=3 {
        let features = vector.input(&format!("F{scale}"));
        let prototypes = vector.input(&format!("P{scale}"));
        let mut g = Graph::default();
        let xs = g.input(dims_of(&features));
        let out = g.prototype_residual(xs, "prototypes", prototypes.dim(0).unwrap());
        let squared = g.mul(out, out);
        g.set_outputs(vec![out, squared]);
        let tensors = [("prototypes".to_owned(), prototypes)].into();
        let weights = Weights::from_tensors("vector", tensors).unwrap();
        let got = run_on(&g, &weights, &[features]).unwrap();
        vector.assert_close(&format!("res_abs{scale}"), &got[0]);
        vector.assert_close(&format!("res_sq{scale}"), &got[1]);
    }
}

#[test]
fn of_equally_near_prototypes_the_first_is_taken() {
    let prototypes = Tensor::new(&[[[[1f32]]], [[[-1.0]]]], &Device::Cpu).unwrap();
    let xs = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let xs = Var::from_tensor(&xs).unwrap();
    let got = prototype_residual(&xs, &prototypes).unwrap();
    let gradients = got.sum_all().unwrap().backward().unwrap();
    // the residual to 1 falls as x grows, that to −1 would rise
    assert_eq!(flat(gradients.get(&xs).unwrap()), [-1.0]);
}

#[test]
fn levels_and_counts_equal_the_vectors() {
    let rules = [("qco1d_paper", LevelRule::Paper), ("qco1d_reference", LevelRule::Reference)];
    for (name, rule) in rules {
        let Some(vector) = Vector::open(name) else { return };
        // each level's share of a place: E with its places last
        let eye = Tensor::eye(8, DType::F32, &Device::Cpu).unwrap();
        let eye = eye.reshape((1, 8, 1, 8)).unwrap().repeat((2, 1, 1, 1)).unwrap();
        let got = outputs(&[vector.input("x"), eye], |g, v| {
            let mean = g.region_mean(v[0], 1);
            let cosines = g.cosine_to_mean(v[0], mean);
            let counts = g.level_counts(cosines, 8, rule);
            vec![mean, cosines, counts, g.spread_levels(cosines, v[1], rule)]
        });
        vector.assert_close("g", &got[0]);
        vector.assert_close("M", &got[1].flatten_from(1).unwrap());
        vector.assert_close("L", &got[2].narrow(1, 0, 1).unwrap());
        vector.assert_close("counts", &got[2].narrow(1, 1, 1).unwrap());
        vector.assert_close("E", &got[3].flatten_from(2).unwrap().transpose(1, 2).unwrap());
    }
}

#[test]
fn co_occurrence_equals_the_vectors() {
    let rules = [("qco2d_paper", LevelRule::Paper), ("qco2d_reference", LevelRule::Reference)];
    for (name, rule) in rules {
        let Some(vector) = Vector::open(name) else { return };
        let got = outputs(&[vector.input("x")], |g, v| {
            let means = g.region_mean(v[0], 2);
            let cosines = g.cosine_to_mean(v[0], means);
            let neighbours = [Neighbour::Diagonal, Neighbour::Right];
            let pairs = neighbours.map(|to| g.co_occurrence(cosines, 4, 2, (rule, to)));
            vec![means, pairs[0], pairs[1]]
        });
        vector.assert_close("region_mean", &got[0]);
        let grid = got[1].reshape((3, 4, 4, 4)).unwrap(); // [3, S², m, n]
        let first = grid.narrow(0, 0, 1).unwrap().narrow(3, 2, 1).unwrap();
        let second = grid.narrow(0, 1, 1).unwrap().narrow(2, 1, 1).unwrap();
        vector.assert_close("L", &first.reshape((4, 4)).unwrap());
        vector.assert_close("L", &second.reshape((4, 4)).unwrap());
        vector.assert_close("P_off11", &grid.narrow(0, 2, 1).unwrap().squeeze(0).unwrap());
        let grid = got[2].reshape((3, 4, 4, 4)).unwrap();
        vector.assert_close("P_off01", &grid.narrow(0, 2, 1).unwrap().squeeze(0).unwrap());
    }
}

#[test]
fn equal_cosines_are_counted_without_dividing_by_zero() {
    let same = Tensor::full(0.5f32, (1, 1, 4, 4), &Device::Cpu).unwrap();
    for (rule, count) in [(LevelRule::Paper, 0.25), (LevelRule::Reference, 0.0)] {
        let got = outputs(std::slice::from_ref(&same), |g, v| {
            let pairs = g.co_occurrence(v[0], 4, 4, (rule, Neighbour::Diagonal));
            vec![g.level_counts(v[0], 4, rule), pairs]
        });
        assert_eq!(flat(&got[0]), [[0.5; 4], [count; 4]].concat());
        // regions of one place have no pairs
        let want = [[0.5f32; 512].as_slice(), &[0.0; 256]].concat();
        assert_eq!(flat(&got[1]), want);
    }
}

#[test]
fn of_equal_bounds_the_first_place_has_the_gradient() {
    let cosines = Var::from_slice(&[0.25f32, 0.5, 0.25, 0.5], (1, 1, 2, 2), &Device::Cpu).unwrap();
    let levels =
        levels::counts(&cosines, 4, LevelRule::Reference).unwrap().narrow(1, 0, 1).unwrap();
    let gradients = levels.sum_all().unwrap().backward().unwrap();
    // Levels at an eighth, three, five and seven of the way.
    assert_eq!(flat(gradients.get(&cosines).unwrap()), [2.0, 2.0, 0.0, 0.0]);
}

#[test]
fn maximum_ignores_what_is_outside() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (h, w) in [(1, 1), (2, 2), (5, 4), (4, 5), (7, 9)] {
        let plane: Vec<f32> = (0..h * w).map(|_| -1.0 - rng.random::<f32>()).collect();
        let xs = Tensor::from_slice(&plane, (1, 1, h, w), &Device::Cpu).unwrap();
        let got = outputs(&[xs], |g, v| vec![g.max_pool(v[0])]);
        let mut want = Vec::new();
        for (y, x) in (0..h).step_by(2).flat_map(|y| (0..w).step_by(2).map(move |x| (y, x))) {
            let near = |i: usize, at: usize| i.abs_diff(at) <= 1;
            let window = (0..h * w).filter(|i| near(i / w, y) && near(i % w, x));
            want.push(window.map(|i| plane[i]).fold(f32::NEG_INFINITY, f32::max));
        }
        assert_eq!(flat(&got[0]), want, "{h} × {w}");
    }
}

#[test]
fn nan_is_not_hidden() {
    let mut values = vec![-1.0f32; 16];
    for at in 0..16 {
        values[at] = f32::NAN;
        let xs = Tensor::from_slice(&values, (1, 1, 4, 4), &Device::Cpu).unwrap();
        let got = outputs(&[xs], |g, v| {
            let pooled = [g.max_pool(v[0]), g.average_pool(v[0], 4), g.region_mean(v[0], 2)];
            let mapped = [g.relu(v[0]), g.leaky_relu(v[0], 0.1), g.sigmoid(v[0])];
            [pooled, mapped].concat()
        });
        let words = ["max pool", "average pool", "region mean", "relu", "leaky relu", "sigmoid"];
        for (xs, op) in got.iter().zip(words) {
            assert!(flat(xs).iter().any(|x| x.is_nan()), "{op} at {at}");
        }
        values[at] = -1.0;
    }
}

#[test]
fn sizes_are_changed_as_the_plain_ops_do() {
    let xs = random([2, 3, 5, 7], 3);
    for align in [Align::HalfPixel, Align::Corners] {
        let rule = Resample::Bilinear(align);
        let got = outputs(std::slice::from_ref(&xs), |g, v| vec![g.upsample(v[0], (10, 13), rule)]);
        let want = bilinear_planes(&flat(&xs), (5, 7), (10, 13), align);
        for (got, want) in flat(&got[0]).iter().zip(&want) {
            // four products of numbers below one, added in another order
            assert!((got - want).abs() <= 8.0 * f32::EPSILON, "{got} {want}");
        }
    }
    let rule = Resample::Nearest;
    let got = outputs(std::slice::from_ref(&xs), |g, v| vec![g.upsample(v[0], (10, 14), rule)]);
    let want = xs.upsample_nearest2d(10, 14).unwrap();
    assert_eq!(flat(&got[0]), flat(&want));
}

#[test]
fn what_does_not_fit_the_network_is_refused() {
    let (mut g, xs) = Graph::new(8, 8);
    g.set_outputs(vec![xs]);
    let run = |xs: &[Tensor]| run_on(&g, &no_weights(), xs).err().map(|error| error.to_string());
    assert_eq!(run(&[random([1, 3, 8, 8], 1)]), None);
    let error = run(&[random([1, 3, 8, 9], 1)]).unwrap();
    assert!(error.contains("gives [3, 8, 9], the network was made for [3, 8, 8]"), "{error}");
    assert!(run(&[]).is_some());
    assert!(run(&[random([1, 3, 8, 8], 1), random([1, 3, 8, 8], 1)]).is_some());
}

/// An operation on two maps [4, 8, 8], and its name.
type Differentiable = (&'static str, fn(&mut Graph, Value, Value) -> Value);

fn differentiable() -> Vec<Differentiable> {
    vec![
        ("relu", |g, a, _| g.relu(a)),
        ("leaky relu", |g, a, _| g.leaky_relu(a, 0.1)),
        ("sigmoid", |g, a, _| g.sigmoid(a)),
        ("add", |g, a, b| g.add(a, b)),
        ("mul", |g, a, b| g.mul(a, b)),
        ("max pool", |g, a, _| g.max_pool(a)),
        ("average pool", |g, a, _| g.average_pool(a, 4)),
        ("region mean", |g, a, _| g.region_mean(a, 2)),
        ("nearest", |g, a, _| g.upsample(a, (16, 16), Resample::Nearest)),
        ("bilinear", |g, a, _| g.upsample(a, (16, 12), Resample::Bilinear(Align::HalfPixel))),
        ("concat", |g, a, b| g.concat(&[a, b])),
        ("repeat channels", |g, a, _| g.repeat_channels(a, 3)),
        ("cosine product", |g, a, b| g.cosine_product(a, b)),
        ("cosine distance", |g, a, b| g.cosine_distance(a, b, Distance::OneMinusCosine)),
        ("half squared distance", |g, a, b| g.cosine_distance(a, b, Distance::HalfSquared)),
        ("patch attention", |g, a, b| g.patch_attention([a, b, a], 4, 0.125)),
        ("window attention", |g, a, b| {
            let all = g.concat(&[a, b, a, b, a, b, a, b, a]);
            g.window_attention(all, b)
        }),
        ("cosine to mean", |g, a, _| {
            let means = g.region_mean(a, 2);
            g.cosine_to_mean(a, means)
        }),
        ("level counts", |g, a, b| {
            let cosines = g.cosine_distance(a, b, Distance::OneMinusCosine);
            g.level_counts(cosines, 4, LevelRule::Reference)
        }),
        ("co-occurrence", |g, a, b| {
            let cosines = g.cosine_distance(a, b, Distance::OneMinusCosine);
            g.co_occurrence(cosines, 4, 2, (LevelRule::Reference, Neighbour::Right))
        }),
        ("level attention", |g, a, b| {
            let [a, b] = [a, b].map(|xs| {
                let xs = g.region_mean(xs, 1);
                g.repeat_regions(xs, 5)
            });
            let out = g.level_attention(a, b, a);
            g.mean_regions(out)
        }),
        ("spread levels", |g, a, b| {
            let cosines = g.cosine_distance(a, b, Distance::OneMinusCosine);
            let d = g.region_mean(a, 1);
            let d = g.repeat_regions(d, 4);
            g.spread_levels(cosines, d, LevelRule::Reference)
        }),
    ]
}

#[test]
fn every_operation_has_the_gradient_of_its_values() {
    for (word, op) in differentiable() {
        let value = |a: &Tensor, b: &Tensor| {
            let out = &outputs(&[a.clone(), b.clone()], |g, v| vec![op(g, v[0], v[1])])[0];
            // a weight for each place, so that no two gradients cancel
            let (_, c, h, w) = out.dims4().unwrap();
            (out * random([1, c, h, w], 5)).unwrap().sum_all().unwrap()
        };
        let (a, b) = (random([1, 4, 8, 8], 11), random([1, 4, 8, 8], 12));
        let (a, b) = (Var::from_tensor(&a).unwrap(), Var::from_tensor(&b).unwrap());
        let gradients = value(&a, &b).backward().unwrap();
        let gradient = gradients.get(&a).unwrap_or_else(|| panic!("{word} has no gradient"));
        let along = random([1, 4, 8, 8], 13);
        let want = (gradient * &along).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let step = 1e-3;
        let moved = |by: f64| {
            let a = (a.as_tensor() + (&along * by).unwrap()).unwrap();
            value(&a, &b).to_scalar::<f32>().unwrap()
        };
        let got = (moved(step) - moved(-step)) / (2.0 * step as f32);
        // f32 sums of some hundred terms lose up to 1e-5, of which the quotient makes 1e-2; a kink
        // of ReLU or maximum between the two adds as much
        assert!((got - want).abs() <= 0.05 + 0.02 * want.abs(), "{word}: {got} {want}");
    }
}
