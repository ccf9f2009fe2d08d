//! An exponential moving average of a model's tensors, which evaluation and export use in place of the trained ones.

use anyhow::Result;
use tch::Tensor;

use crate::models::Parameters;
use crate::native::TensorList;
use crate::weights::NamedTensors;

/// average ← decay · average + (1 − decay) · trained, after every step, for parameters and floating buffers alike (timm's `ModelEmaV2`).
pub struct MovingAverage {
    decay: f64,
    names: Vec<String>,
    trained: TensorList,
    average: TensorList,
}

impl MovingAverage {
    /// Begins at the model's present values.
    pub fn new(decay: f64, parameters: &Parameters) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let entries = parameters.entries();
        let copies = entries.iter().map(|entry| entry.tensor.detach().copy()).collect::<Vec<Tensor>>();
        Ok(Self {
            decay,
            names: entries.iter().map(|entry| entry.name.clone()).collect(),
            trained: TensorList::new(entries.iter().map(|entry| &entry.tensor))?,
            average: TensorList::new(copies)?,
        })
    }

    /// Takes the model's present values into the average.
    pub fn update(&self) -> Result<()> {
        self.average.lerp(&self.trained, 1.0 - self.decay)
    }

    /// Exchanges the model's values with the average's; a second call undoes it.
    pub fn swap(&self) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (trained, average) in self.trained.tensors().iter().zip(self.average.tensors()) {
            let (mut trained, mut average) = (trained.shallow_clone(), average.shallow_clone());
            let copy = trained.detach().copy();
            trained.f_copy_(&average)?;
            average.f_copy_(&copy)?;
        }
        Ok(())
    }

    /// The average by the model's names: handles, not copies.
    pub fn tensors(&self) -> NamedTensors {
        self.names.iter().cloned().zip(self.average.tensors().iter().map(Tensor::shallow_clone)).collect()
    }
}
