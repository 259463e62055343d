//! What a run needs to go on: parameters, the optimizer's memory, the step. One file, written beside and
//! renamed, so that there is a whole one at any moment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};

use super::Trainee;

/// Where the checkpoint of a run lies.
pub struct Checkpoint {
    path: PathBuf,
    description: String,
}

const NAME: &str = "checkpoint.safetensors";
const PARAMETER: &str = "parameter.";
const OPTIMIZER: &str = "optimizer.";
const STEP: &str = "step";
const UPDATES: &str = "updates";
const DESCRIPTION: &str = "description";

impl Checkpoint {
    /// In `folder`, which is made.
    pub fn new(folder: &Path, description: &str) -> Result<Checkpoint> {
        fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
        Ok(Checkpoint { path: folder.join(NAME), description: description.to_owned() })
    }

    /// Saves `trainee` after `step` steps.
    pub fn write(&self, trainee: &dyn Trainee, step: u64) -> Result<()> {
        let named = trainee.parameters().tensors()?.into_iter();
        let mut tensors: BTreeMap<String, Tensor> =
            named.map(|(name, tensor)| (format!("{PARAMETER}{name}"), tensor)).collect();
        let mut updates = 0;
        if let Some(optimizer) = trainee.optimizer() {
            updates = optimizer.steps();
            for (name, kind, numbers) in optimizer.state() {
                let tensor = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?;
                tensors.insert(format!("{OPTIMIZER}{kind}.{name}"), tensor);
            }
        }
        let about = [
            (STEP, step.to_string()),
            (UPDATES, updates.to_string()),
            (DESCRIPTION, self.description.clone()),
        ];
        let about = about.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
        let bytes = safetensors::serialize(&tensors, Some(about))?;
        let unfinished = self.path.with_extension("part");
        fs::write(&unfinished, bytes)
            .and_then(|()| fs::rename(&unfinished, &self.path))
            .with_context(|| format!("writing {}", self.path.display()))
    }

    /// Puts what was saved into `trainee`; the number of steps made.
    ///
    /// # Errors
    /// There is no checkpoint, or it is of a run with other settings.
    pub fn read_into(&self, trainee: &mut dyn Trainee) -> Result<u64> {
        let path = self.path.display();
        let bytes = fs::read(&self.path)
            .with_context(|| format!("reading {path}: there is nothing to resume"))?;
        let (_, about) =
            safetensors::SafeTensors::read_metadata(&bytes).with_context(|| path.to_string())?;
        let about = about.metadata().clone().with_context(|| format!("{path} says nothing"))?;
        let get = |key: &str| about.get(key).with_context(|| format!("{path} lacks {key}"));
        let described = get(DESCRIPTION)?;
        ensure!(
            *described == self.description,
            "{path} is of a run with other settings: it can't be gone on with. Remove it to begin \
             anew, or give the settings that it was begun with:\n{described}\nnow:\n{}",
            self.description
        );
        let number = |key: &str| -> Result<u64> {
            get(key)?.parse().with_context(|| format!("{path}: {key} is no number"))
        };
        let (step, updates) = (number(STEP)?, number(UPDATES)?);
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .with_context(|| path.to_string())?;
        let mut parameters = BTreeMap::new();
        let mut state = Vec::new();
        for (name, tensor) in tensors {
            if let Some(name) = name.strip_prefix(PARAMETER) {
                parameters.insert(name.to_owned(), tensor);
            } else if let Some((kind, name)) =
                name.strip_prefix(OPTIMIZER).and_then(|rest| rest.split_once('.'))
            {
                state.push((name.to_owned(), kind.to_owned(), tensor.to_vec1::<f32>()?));
            }
        }
        let (own, optimizer) = trainee.restore(step)?;
        own.restore(&parameters).with_context(|| path.to_string())?;
        optimizer.restore(updates, state).with_context(|| path.to_string())?;
        Ok(step)
    }
}
