//! A batch norm against its definition in f64, differences, and the vectors.

use super::*;
use crate::ops::checks::{assert_holds, everywhere, filled, pattern, used};
use crate::ops::conv::Geometry;
use crate::ops::conv::tests::plain as convolve;
use crate::ops::gradient::elementwise::relu;
use crate::ops::pooling::max_pool;
use crate::shared::shared;

const SHAPES: [(usize, usize, usize, usize); 6] =
    [(1, 16, 4, 4), (3, 21, 5, 7), (2, 40, 1, 1), (2, 1, 3, 2), (2, 16, 40, 33), (1, 17, 3, 600)];

fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().map(|(b, c, h, w)| Shape::new(b, c, h, w))
}

/// One case on plain numbers [B, C, H, W].
struct Plain<'a> {
    shape: Shape,
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    /// Else the batch's.
    fixed: Option<[&'a [f32]; 2]>,
    residual: Option<&'a [f32]>,
    relu: bool,
}

#[derive(Default)]
struct PlainGradients {
    dx: Vec<f64>,
    residual: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
}

impl Plain<'_> {
    /// The places of channel c.
    fn of(&self, c: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let (channels, places) = (self.shape.channels, self.shape.places());
        (0..self.shape.images).flat_map(move |b| {
            let plane = (b * channels + c) * places;
            plane..plane + places
        })
    }

    fn statistics(&self, c: usize) -> (f64, f64) {
        if let Some([mean, variance]) = self.fixed {
            return (f64::from(mean[c]), f64::from(variance[c]));
        }
        let n = (self.shape.images * self.shape.places()) as f64;
        let mean = self.of(c).map(|i| f64::from(self.x[i])).sum::<f64>() / n;
        let variance = self.of(c).map(|i| (f64::from(self.x[i]) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance)
    }

    /// Before the ReLU.
    fn sums(&self) -> Vec<f64> {
        let mut y = vec![0.0; self.x.len()];
        for c in 0..self.shape.channels {
            let (mean, variance) = self.statistics(c);
            for i in self.of(c) {
                let unit = (f64::from(self.x[i]) - mean) / (variance + 1e-5).sqrt();
                let residual = self.residual.map_or(0.0, |residual| f64::from(residual[i]));
                y[i] = f64::from(self.gamma[c]) * unit + f64::from(self.beta[c]) + residual;
            }
        }
        y
    }

    fn y(&self) -> Vec<f32> {
        self.sums().into_iter().map(|y| if self.relu { y.max(0.0) } else { y } as f32).collect()
    }

    fn gradients(&self, dy: &[f32]) -> PlainGradients {
        let sums = self.sums();
        let g: Vec<f64> = dy
            .iter()
            .zip(&sums)
            .map(|(dy, y)| if self.relu && *y <= 0.0 { 0.0 } else { f64::from(*dy) })
            .collect();
        let mut to = PlainGradients { dx: vec![0.0; g.len()], ..PlainGradients::default() };
        for c in 0..self.shape.channels {
            let (mean, variance) = self.statistics(c);
            let sigma = (variance + 1e-5).sqrt();
            let unit = |i: usize| (f64::from(self.x[i]) - mean) / sigma;
            let beta: f64 = self.of(c).map(|i| g[i]).sum();
            let gamma: f64 = self.of(c).map(|i| g[i] * unit(i)).sum();
            let n = (self.shape.images * self.shape.places()) as f64;
            for i in self.of(c) {
                let batch = if self.fixed.is_some() { 0.0 } else { (beta + unit(i) * gamma) / n };
                to.dx[i] = f64::from(self.gamma[c]) / sigma * (g[i] - batch);
            }
            to.gamma.push(gamma);
            to.beta.push(beta);
        }
        to.residual = g;
        to
    }
}

fn f32s(values: &[f64], times: f64) -> Vec<f32> {
    values.iter().map(|x| (x * times) as f32).collect()
}

fn assert_close(got: &[f32], want: &[f64], what: &str) {
    for (c, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        assert!(off < 1e-4 + 1e-5 * want.abs(), "{what} of channel {c}: {got}, not {want}");
    }
}

/// Numbers of the shape whose values before the ReLU are nowhere so near zero that rounding decides.
fn clear_of_zero(mut plain: Plain<'_>, residual: &mut [f32]) {
    plain.residual = None;
    for (residual, y) in residual.iter_mut().zip(plain.sums()) {
        if (y + f64::from(*residual)).abs() < 1e-3 {
            *residual += 0.01;
        }
    }
}

#[test]
fn equals_its_plain_twin_forward_and_back() {
    for shape in shapes() {
        let (channels, len) = (shape.channels, shape.images * shape.channels * shape.places());
        let ((x, x_values), (dy, dy_values)) = (filled(shape, 1), filled(shape, 2));
        let mut residual_values = pattern(len, 3);
        let (gamma, beta) = (pattern(channels, 4), pattern(channels, 5));
        let (mean, variance) = (pattern(channels, 6), pattern(channels, 7));
        let variance: Vec<f32> = variance.iter().map(|x| x + 1.5).collect();
        for (fixed, with_residual, relu) in [
            (false, false, false),
            (false, true, true),
            (false, true, false),
            (true, true, true),
            (true, false, false),
        ] {
            let plain = || Plain {
                shape,
                x: &x_values,
                gamma: &gamma,
                beta: &beta,
                fixed: fixed.then_some([&mean, &variance]),
                residual: None,
                relu,
            };
            clear_of_zero(plain(), &mut residual_values);
            let residual = Buffer::zeroed(shape.len());
            residual.map(shape, 0).write(&residual_values);
            let plain =
                Plain { residual: with_residual.then_some(&residual_values[..]), ..plain() };
            let (want_y, want) = (plain.y(), plain.gradients(&dy_values));
            everywhere(|team, isa| {
                let what = format!("{shape:?} {fixed} {with_residual} {relu} {}", isa.word());
                let [y, dx, d_residual] = [(); 3].map(|()| used(shape));
                let (x, dy, y) = (x.map(shape, 0), dy.map(shape, 0), y.map(shape, 0));
                let mut norm = BatchNorm::new(isa, shape);
                norm.forward(
                    team,
                    Forward {
                        statistics: if fixed {
                            Statistics::Fixed { mean: &mean, variance: &variance }
                        } else {
                            Statistics::Batch
                        },
                        gamma: &gamma,
                        beta: &beta,
                        x,
                        residual: with_residual.then(|| residual.map(shape, 0)),
                        relu,
                        y,
                    },
                );
                // Values of a few σ, rounded a few times.
                assert_holds(y, &want_y, (4e-6, 1e-6), &what);
                let (dx, d_residual) = (dx.map(shape, 0), d_residual.map(shape, 0));
                let (mut d_gamma, mut d_beta) = (vec![7.0; channels], vec![7.0; channels]);
                let mut back = Backward {
                    x,
                    relu: if relu { Relu::Of(y) } else { Relu::Absent },
                    dy,
                    residual: with_residual.then_some((Accumulate::Set, d_residual)),
                    into: Accumulate::Set,
                    dx,
                };
                for times in [1.0, 2.0] {
                    norm.backward(team, back, Some((&mut d_gamma, &mut d_beta)));
                    // Where σ is small, √10⁵ times what g is off by.
                    let bound = (2e-5, 1e-5);
                    assert_holds(dx, &f32s(&want.dx, times), bound, &what);
                    if with_residual {
                        let want = f32s(&want.residual, times);
                        assert_holds(d_residual, &want, (0.0, 0.0), &what);
                    }
                    assert_close(&d_gamma, &want.gamma, &what);
                    assert_close(&d_beta, &want.beta, &what);
                    back.into = Accumulate::Add;
                    back.residual = with_residual.then_some((Accumulate::Add, d_residual));
                }
            });
        }
    }
}

#[test]
fn a_relu_is_known_without_its_result_and_gradients_go_where_dy_was() {
    for shape in shapes() {
        let (x, _) = filled(shape, 8);
        let (_, dy_values) = filled(shape, 9);
        let (gamma, beta) = (pattern(shape.channels, 10), pattern(shape.channels, 11));
        everywhere(|team, isa| {
            let (x, y, dx) = (x.map(shape, 0), used(shape), used(shape));
            let (y, dx) = (y.map(shape, 0), dx.map(shape, 0));
            let mut norm = BatchNorm::new(isa, shape);
            let statistics = Statistics::Batch;
            let (gamma, beta) = (&gamma[..], &beta[..]);
            let go = Forward { statistics, gamma, beta, x, residual: None, relu: true, y };
            norm.forward(team, go);
            let [own, g] = [(); 2].map(|()| Buffer::zeroed(shape.len()));
            let (dy, g) = (own.map(shape, 0), g.map(shape, 0));
            dy.write(&dy_values);
            let back =
                Backward { x, relu: Relu::Of(y), dy, residual: None, into: Accumulate::Set, dx };
            norm.backward(team, back, None);
            let want = dx.read();
            norm.backward(team, Backward { relu: Relu::OfNorm, dx: dy, ..back }, None);
            assert_eq!(dy.read(), want, "{shape:?}");
            // The residual's gradient over dy.
            dy.write(&dy_values);
            g.write(&dy_values);
            relu(team, isa, y, g, Accumulate::Set, g);
            let residual = Some((Accumulate::Set, dy));
            norm.backward(team, Backward { residual, ..back }, None);
            assert_eq!(dy.read(), g.read(), "{shape:?}");
            assert_eq!(dx.read(), want, "{shape:?}");
        });
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let shape = Shape::new(3, 40, 33, 31);
    let ((x, _), (dy, _)) = (filled(shape, 12), filled(shape, 13));
    let (gamma, beta) = (pattern(40, 14), pattern(40, 15));
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
        let of = |threads: usize| {
            let team = Team::new(threads, false).unwrap();
            let [y, dx, g] = [(); 3].map(|()| used(shape));
            let (x, y, dx) = (x.map(shape, 0), y.map(shape, 0), dx.map(shape, 0));
            let mut norm = BatchNorm::new(isa, shape);
            let statistics = Statistics::Batch;
            let (gamma, beta, residual) = (&gamma[..], &beta[..], Some(dy.map(shape, 0)));
            norm.forward(&team, Forward { statistics, gamma, beta, x, residual, relu: true, y });
            let (mut d_gamma, mut d_beta) = (vec![0.0; 40], vec![0.0; 40]);
            let back = Backward {
                x,
                relu: Relu::Of(y),
                dy: dy.map(shape, 0),
                residual: Some((Accumulate::Set, g.map(shape, 0))),
                into: Accumulate::Set,
                dx,
            };
            norm.backward(&team, back, Some((&mut d_gamma, &mut d_beta)));
            let numbers = [norm.mean().to_vec(), norm.variance().to_vec(), d_gamma, d_beta];
            (numbers, y.read(), dx.read())
        };
        assert!(of(1) == of(2) && of(1) == of(5), "{}", isa.word());
    }
}

#[test]
fn statistics_are_sound_far_from_zero() {
    let shape = Shape::new(2, 16, 64, 64);
    let (map, mut values) = filled(shape, 16);
    values.iter_mut().for_each(|x| *x = 1000.0 + *x * 0.1);
    map.map(shape, 0).write(&values);
    let plain = Plain {
        shape,
        x: &values,
        gamma: &[1.0; 16],
        beta: &[0.0; 16],
        fixed: None,
        residual: None,
        relu: false,
    };
    everywhere(|team, isa| {
        let mut norm = BatchNorm::new(isa, shape);
        norm.measure(team, map.map(shape, 0));
        for c in 0..16 {
            let (mean, variance) = plain.statistics(c);
            // Rounded once.
            assert_eq!(norm.mean()[c], mean as f32);
            let off = (f64::from(norm.variance()[c]) / variance - 1.0).abs();
            assert!(off < 1e-6, "{off}");
        }
    });
}

#[test]
fn the_gradient_is_what_differences_say() {
    let shape = Shape::new(2, 3, 3, 2);
    let (x, values) = filled(shape, 17);
    let (gamma, beta) = (pattern(3, 18), pattern(3, 19));
    let (dy, dy_values) = filled(shape, 20);
    let loss = |x: &[f32]| -> f64 {
        let (gamma, beta) = (&gamma[..], &beta[..]);
        let plain = Plain { shape, x, gamma, beta, fixed: None, residual: None, relu: true };
        let y = plain.sums().into_iter().map(|y| y.max(0.0));
        y.zip(&dy_values).map(|(y, dy)| y * f64::from(*dy)).sum()
    };
    let mut want = Vec::new();
    for i in 0..values.len() {
        // Steps that f32 holds exactly.
        let step = 1.0 / 4096.0;
        let moved = |by: f32| {
            let mut moved = values.clone();
            moved[i] = (moved[i] * 4096.0).round() / 4096.0 + by;
            moved
        };
        let (above, below) = (moved(step), moved(-step));
        let length = f64::from(above[i]) - f64::from(below[i]);
        want.push(((loss(&above) - loss(&below)) / length) as f32);
    }
    everywhere(|team, isa| {
        let [y, dx] = [(); 2].map(|()| used(shape));
        let (x, y, dx) = (x.map(shape, 0), y.map(shape, 0), dx.map(shape, 0));
        let mut norm = BatchNorm::new(isa, shape);
        let (gamma, beta) = (&gamma[..], &beta[..]);
        let statistics = Statistics::Batch;
        norm.forward(team, Forward { statistics, gamma, beta, x, residual: None, relu: true, y });
        let (relu, dy) = (Relu::OfNorm, dy.map(shape, 0));
        let into = Accumulate::Set;
        norm.backward(team, Backward { x, relu, dy, residual: None, into, dx }, None);
        // Second differences of a step of 2⁻¹².
        assert_holds(dx, &want, (2e-3, 1e-3), "differences");
    });
}

#[test]
#[should_panic(expected = "behind a residual")]
fn a_relu_behind_a_residual_needs_its_result() {
    let shape = Shape::new(1, 16, 2, 2);
    let [(x, _), (y, _), (r, _)] = [1, 2, 3].map(|seed| filled(shape, seed));
    let (x, y, r) = (x.map(shape, 0), y.map(shape, 0), r.map(shape, 0));
    let mut norm = BatchNorm::new(Isa::Portable, shape);
    let (gamma, beta) = (&[1.0; 16][..], &[0.0; 16][..]);
    let statistics = Statistics::Batch;
    let team = Team::alone();
    norm.forward(&team, Forward { statistics, gamma, beta, x, residual: Some(r), relu: true, y });
    let into = Accumulate::Set;
    let back = Backward { x, relu: Relu::OfNorm, dy: r, residual: None, into, dx: y };
    norm.backward(&team, back, None);
}

#[test]
fn running_statistics_and_eman_equal_the_vectors() {
    let Some(path) = shared("spec/vectors/eman_update.json") else { return };
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let list = |part: &str, name: &str| -> Vec<f32> {
        serde_json::from_value(file[part][name]["data"].clone()).unwrap()
    };
    let close = |got: &[f32], name: &str| {
        for (got, want) in got.iter().zip(list("expected", name)) {
            // The file's own tolerance.
            assert!((got - want).abs() <= 1e-5 + 1e-5 * want.abs(), "{name}: {got} {want}");
        }
    };
    let (shape, teacher) = (Shape::new(4, 3, 3, 3), Shape::new(2, 3, 3, 3));
    everywhere(|team, isa| {
        let (mut mean, mut variance) = (list("inputs", "mu0"), list("inputs", "var0"));
        let (mut running_mean, mut running_variance) = (vec![0.0; 3], vec![1.0; 3]);
        let [x, input, out] = [shape, teacher, teacher].map(|shape| Buffer::zeroed(shape.len()));
        input.map(teacher, 0).write(&list("inputs", "teacher_input"));
        let (mut own, mut teachers) = (BatchNorm::new(isa, shape), BatchNorm::new(isa, teacher));
        for step in 1..=3 {
            x.map(shape, 0).write(&list("inputs", &format!("student_batch{step}")));
            own.measure(team, x.map(shape, 0));
            close(own.mean(), &format!("batch_mean{step}"));
            close(own.variance(), &format!("batch_var{step}"));
            let batch = [own.mean(), own.variance()];
            update_eman([&mut mean, &mut variance], batch, 0.99);
            close(&mean, &format!("mu{step}"));
            close(&variance, &format!("var{step}"));
            update_running([&mut running_mean, &mut running_variance], batch, own.count(), 0.1);
            close(&running_mean, &format!("student_running_mean{step}"));
            close(&running_variance, &format!("student_running_var{step}"));
            let forward = Forward {
                statistics: Statistics::Fixed { mean: &mean, variance: &variance },
                gamma: &list("inputs", "gamma"),
                beta: &list("inputs", "beta"),
                x: input.map(teacher, 0),
                residual: None,
                relu: false,
                y: out.map(teacher, 0),
            };
            teachers.forward(team, forward);
            close(&out.map(teacher, 0).read(), &format!("teacher_out{step}"));
        }
    });
}

/// A stem and a residual block that learn, their convolutions plain.
#[test]
fn a_block_in_training_equals_the_vectors() {
    let Some(path) = shared("spec/vectors/basic_block_stem.json") else { return };
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let list = |part: &str, name: &str| -> Vec<f32> {
        serde_json::from_value(file[part][name]["data"].clone()).unwrap()
    };
    let conv = |name: &str, x: &[f32], input: Shape, geometry: (usize, usize, usize, usize)| {
        let (c_out, kernel, stride, padding) = geometry;
        let c_in = input.channels;
        let geometry = Geometry { c_in, c_out, kernel, stride, padding, dilation: 1 };
        let weights = list("params", &format!("{name}.weight"));
        let y = convolve(geometry, input, x, &weights, &vec![0.0; c_out]);
        (y.into_iter().map(|y| y as f32).collect::<Vec<_>>(), geometry.output(input))
    };
    let close = |got: &[f32], name: &str| {
        for (got, want) in got.iter().zip(list("expected", name)) {
            // The file's own tolerance.
            assert!((got - want).abs() <= 2e-5 + 1e-4 * want.abs(), "{name}: {got} {want}");
        }
    };
    everywhere(|team, isa| {
        let norm = |name: &str, (x, shape): (&[f32], Shape), residual: Option<&[f32]>, relu| {
            let [from, with, to] = [(); 3].map(|()| Buffer::zeroed(shape.len()));
            from.map(shape, 0).write(x);
            if let Some(values) = residual {
                with.map(shape, 0).write(values);
            }
            let mut norm = BatchNorm::new(isa, shape);
            let forward = Forward {
                statistics: Statistics::Batch,
                gamma: &list("params", &format!("{name}.weight")),
                beta: &list("params", &format!("{name}.bias")),
                x: from.map(shape, 0),
                residual: residual.map(|_| with.map(shape, 0)),
                relu,
                y: to.map(shape, 0),
            };
            norm.forward(team, forward);
            (norm, to)
        };
        let input = Shape::new(2, 3, 32, 32);
        let (x, shape) = conv("conv1", &list("inputs", "x"), input, (4, 7, 2, 3));
        let (bn1, stem) = norm("bn1", (&x, shape), None, true);
        let mut running = ["bn1.running_mean", "bn1.running_var"].map(|name| list("params", name));
        let [mean, variance] = &mut running;
        update_running([mean, variance], [bn1.mean(), bn1.variance()], bn1.count(), 0.1);
        close(&running[0], "bn1_running_mean_after");
        close(&running[1], "bn1_running_var_after");
        let pooled = Shape { height: 8, width: 8, ..shape };
        let out = Buffer::zeroed(pooled.len());
        max_pool(team, isa, stem.map(shape, 0), out.map(pooled, 0));
        let x = out.map(pooled, 0).read();
        let (first, shape) = conv("block.conv1", &x, pooled, (6, 3, 2, 1));
        let (_, first) = norm("block.bn1", (&first, shape), None, true);
        let (second, _) = conv("block.conv2", &first.map(shape, 0).read(), shape, (6, 3, 1, 1));
        let (shortcut, _) = conv("block.downsample.0", &x, pooled, (6, 1, 2, 0));
        let (_, shortcut) = norm("block.downsample.1", (&shortcut, shape), None, false);
        let shortcut = shortcut.map(shape, 0).read();
        let (_, y) = norm("block.bn2", (&second, shape), Some(&shortcut), true);
        close(&y.map(shape, 0).read(), "train_out");
    });
}
