//! Gradient descent as the systems' papers and PyTorch define it: SGD with momentum (no dampening, no
//! Nesterov), Adam (Kingma & Ba 2015) with classic L2 decay added to the gradient, and AdamW with
//! decoupled decay (Loshchilov & Hutter 2019).
//!
//! State is kept by the tensor's name, so that it can be saved and a run resumed to the bit.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::parameters::Parameters;

/// How a step follows from a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// g ← g + wd·p; v ← momentum·v + g (v = g at first); p ← p − lr·v.
    Sgd { momentum: f32, weight_decay: f32 },
    /// g ← g + wd·p; p ← p − lr·m̂/(√v̂ + ε), β = (0.9, 0.999), ε = 10⁻⁸.
    Adam { weight_decay: f32 },
    /// p ← p − lr·wd·p, then Adam's step.
    AdamW { weight_decay: f32 },
}

/// Parameters that share a learning rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub learning_rate: f32,
    pub names: Vec<String>,
}

/// Steps made so far, and what the rule remembers of each tensor.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    groups: Vec<Group>,
    steps: u64,
    memories: BTreeMap<String, Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Momentum's velocity, or the mean of gradients.
    first: Vec<f32>,
    /// The mean of squared gradients.
    second: Vec<f32>,
}

const BETAS: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

/// Numbers that a thread takes at once.
const CHUNK: usize = 1 << 14;

impl Optimizer {
    pub fn new(rule: Rule, groups: Vec<Group>) -> Optimizer {
        Optimizer { rule, groups, steps: 0, memories: BTreeMap::new() }
    }

    /// Moves every parameter of the groups along its gradient.
    ///
    /// # Errors
    /// A parameter or gradient that is missing, has another size, or is not finite: the message names
    /// it, and nothing has moved.
    pub fn step(
        &mut self,
        parameters: &mut Parameters,
        gradients: &BTreeMap<String, Vec<f32>>,
    ) -> Result<()> {
        for name in self.groups.iter().flat_map(|group| &group.names) {
            let gradient = gradients.get(name).with_context(|| format!("no gradient of {name}"))?;
            let count = parameters.get(name)?.len();
            ensure!(
                gradient.len() == count,
                "{} gradients for the {count} numbers of {name}",
                gradient.len()
            );
            ensure!(
                gradient.par_iter().all(|value| value.is_finite()),
                "step {}: a gradient of {name} is not finite; the learning rate is too high for this \
                 network, or a picture has broken values",
                self.steps + 1
            );
        }
        self.steps += 1;
        for Group { learning_rate, names } in &self.groups {
            for name in names {
                let values = parameters.get_mut(name)?;
                let memory = self.memories.entry(name.clone()).or_default();
                update(self.rule, *learning_rate, self.steps, values, &gradients[name], memory);
            }
        }
        Ok(())
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Of every group, from the next step on.
    pub fn set_learning_rate(&mut self, rate: f32) {
        self.groups.iter_mut().for_each(|group| group.learning_rate = rate);
    }

    /// What is remembered of each tensor, for a checkpoint: `(name, kind, numbers)`.
    pub fn state(&self) -> impl Iterator<Item = (&str, &'static str, &[f32])> {
        self.memories.iter().flat_map(|(name, Memory { first, second })| {
            [(name.as_str(), FIRST, first.as_slice()), (name.as_str(), SECOND, second.as_slice())]
                .into_iter()
                .filter(|(_, _, numbers)| !numbers.is_empty())
        })
    }

    /// Puts back what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// A kind that is none.
    pub fn restore(
        &mut self,
        steps: u64,
        state: impl IntoIterator<Item = (String, String, Vec<f32>)>,
    ) -> Result<()> {
        self.steps = steps;
        self.memories.clear();
        for (name, kind, numbers) in state {
            let memory = self.memories.entry(name.clone()).or_default();
            match kind.as_str() {
                FIRST => memory.first = numbers,
                SECOND => memory.second = numbers,
                _ => anyhow::bail!("the optimizer's state of {name} has a part {kind}"),
            }
        }
        Ok(())
    }
}

const FIRST: &str = "first";
const SECOND: &str = "second";

fn update(
    rule: Rule,
    rate: f32,
    step: u64,
    values: &mut [f32],
    gradient: &[f32],
    memory: &mut Memory,
) {
    let begins = memory.first.is_empty();
    let Memory { first, second } = memory;
    first.resize(values.len(), 0.0);
    match rule {
        Rule::Sgd { momentum, weight_decay } => {
            let velocity = first.par_chunks_mut(CHUNK);
            let parts = values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(velocity);
            parts.for_each(|((values, gradient), velocity)| {
                for ((p, &g), v) in values.iter_mut().zip(gradient).zip(velocity) {
                    let g = g + weight_decay * *p;
                    *v = if begins { g } else { momentum * *v + g };
                    *p -= rate * *v;
                }
            });
        }
        Rule::Adam { weight_decay } => {
            second.resize(values.len(), 0.0);
            adam(rate, weight_decay, 0.0, step, values, gradient, (first, second));
        }
        Rule::AdamW { weight_decay } => {
            second.resize(values.len(), 0.0);
            adam(rate, 0.0, weight_decay, step, values, gradient, (first, second));
        }
    }
}

/// `l2` is added to the gradient, `decay` shrinks the parameter itself.
fn adam(
    rate: f32,
    l2: f32,
    decay: f32,
    step: u64,
    values: &mut [f32],
    gradient: &[f32],
    (means, squares): (&mut [f32], &mut [f32]),
) {
    let corrected = |beta: f32| 1.0 - f64::from(beta).powi(step.min(1 << 30) as i32);
    let rate_now = (f64::from(rate) / corrected(BETAS.0)) as f32;
    let root = corrected(BETAS.1).sqrt() as f32;
    let memory = means.par_chunks_mut(CHUNK).zip(squares.par_chunks_mut(CHUNK));
    let parts = values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(memory);
    parts.for_each(|((values, gradient), (means, squares))| {
        let memory = means.iter_mut().zip(squares);
        for ((p, &g), (m, v)) in values.iter_mut().zip(gradient).zip(memory) {
            *p -= rate * decay * *p;
            let g = g + l2 * *p;
            *m = BETAS.0 * *m + (1.0 - BETAS.0) * g;
            *v = BETAS.1 * *v + (1.0 - BETAS.1) * g * g;
            *p -= rate_now * *m / (v.sqrt() / root + EPSILON);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::vectors::{Vector, flat};

    fn one(values: Vec<f32>) -> Parameters {
        let mut parameters = Parameters::default();
        let shape = vec![values.len()];
        parameters.insert("p", shape, values);
        parameters
    }

    fn group(learning_rate: f32) -> Vec<Group> {
        vec![Group { learning_rate, names: vec!["p".to_owned()] }]
    }

    #[test]
    fn three_steps_are_pytorchs() {
        let Some(vector) = Vector::open("optimizers") else { return };
        struct Case {
            name: &'static str,
            rule: Rule,
            rate: f32,
        }
        let cases = [
            Case { name: "sgd", rule: Rule::Sgd { momentum: 0.9, weight_decay: 1e-4 }, rate: 0.4 },
            Case { name: "adam_wd1e-5", rule: Rule::Adam { weight_decay: 1e-5 }, rate: 1e-4 },
            Case { name: "adam_wd1e-2", rule: Rule::Adam { weight_decay: 1e-2 }, rate: 1e-4 },
            Case { name: "adamw_wd1e-2", rule: Rule::AdamW { weight_decay: 1e-2 }, rate: 1e-4 },
        ];
        for Case { name, rule, rate } in cases {
            let mut parameters = one(flat(&vector.input("p0")));
            let mut optimizer = Optimizer::new(rule, group(rate));
            let want = flat(&vector.expected(name));
            for (step, want) in want.chunks(5).enumerate() {
                let gradient = flat(&vector.input(&format!("g{}", step + 1)));
                let gradients = BTreeMap::from([("p".to_owned(), gradient)]);
                optimizer.step(&mut parameters, &gradients).unwrap();
                for (got, want) in parameters.get("p").unwrap().iter().zip(want) {
                    let close = (got - want).abs() <= 1e-6 + 1e-5 * want.abs();
                    assert!(close, "{name} step {step}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn restored_state_goes_on_to_the_bit() {
        let gradients = |i: u64| {
            let values = (0..5).map(|k| ((i * 5 + k) as f32).sin()).collect();
            BTreeMap::from([("p".to_owned(), values)])
        };
        for rule in
            [Rule::Sgd { momentum: 0.9, weight_decay: 1e-4 }, Rule::AdamW { weight_decay: 1e-2 }]
        {
            let mut whole = (one(vec![1.0; 5]), Optimizer::new(rule, group(0.1)));
            let mut half = (one(vec![1.0; 5]), Optimizer::new(rule, group(0.1)));
            for i in 0..4 {
                whole.1.step(&mut whole.0, &gradients(i)).unwrap();
                if i < 2 {
                    half.1.step(&mut half.0, &gradients(i)).unwrap();
                }
            }
            let state: Vec<_> = half
                .1
                .state()
                .map(|(name, kind, numbers)| (name.to_owned(), kind.to_owned(), numbers.to_vec()))
                .collect();
            let mut resumed = Optimizer::new(rule, group(0.1));
            resumed.restore(half.1.steps(), state).unwrap();
            for i in 2..4 {
                resumed.step(&mut half.0, &gradients(i)).unwrap();
            }
            assert_eq!(half.0.get("p").unwrap(), whole.0.get("p").unwrap(), "{rule:?}");
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_moves_nothing() {
        let mut parameters = one(vec![1.0, 2.0]);
        let rule = Rule::Sgd { momentum: 0.9, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(rule, group(0.1));
        let gradients = BTreeMap::from([("p".to_owned(), vec![1.0, f32::NAN])]);
        let error = optimizer.step(&mut parameters, &gradients).unwrap_err().to_string();
        assert!(error.contains("step 1: a gradient of p is not finite"), "{error}");
        assert_eq!(parameters.get("p").unwrap(), [1.0, 2.0]);
        assert_eq!(optimizer.steps(), 0);
    }
}
