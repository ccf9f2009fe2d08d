//! The arithmetic of training: full precision, or autocast to bfloat16 or float16, the latter with loss scaling.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::bail_input;
use crate::native::modes::Autocast;
use crate::native::{TensorList, loss_scaling, system};

/// Arithmetic of the forward pass; weights and optimizer state are float32 in every case but [`Precision::Fp64`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// `bf16` where the device computes in it, else `fp32`; for a training, the faster of the two on its own first batch
    /// ([`trial`](super::trial)).
    Auto,
    /// float32.
    #[default]
    Fp32,
    /// Autocast to bfloat16.
    Bf16,
    /// Autocast to float16 with a dynamic loss scale.
    Fp16,
    /// float64 throughout, weights too: to tell rounding from mistakes. Tasks whose losses are computed in float32 stay at that.
    Fp64,
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_value(serde_json::Value::String(text.to_owned()))
            .map_err(|_| "choose auto, fp32, bf16, fp16 or fp64".to_owned())
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
            Self::Fp64 => "fp64",
        })
    }
}

impl Precision {
    /// Decides `auto` for a device, without a trial.
    pub fn resolve(self, device: Device) -> Result<Self> {
        Ok(match self {
            Self::Auto if system::supports_bf16(device)? => Self::Bf16,
            Self::Auto => Self::Fp32,
            decided => decided,
        })
    }

    /// The lower precision that operations are cast to, if any.
    pub fn kind(self) -> Option<Kind> {
        match self {
            Self::Bf16 => Some(Kind::BFloat16),
            Self::Fp16 => Some(Kind::Half),
            Self::Fp32 | Self::Fp64 | Self::Auto => None,
        }
    }

    /// Casts operations of this thread while the guard lives; `None` in full precision.
    pub fn autocast(self, device: Device) -> Result<Option<Autocast>> {
        self.kind().map(|kind| Autocast::enter(device, Some(kind))).transpose()
    }
}

/// `torch.amp.GradScaler`: the loss is multiplied by a scale so that small gradients survive float16; a step whose gradients overflow is
/// left out and halves the scale, 2,000 good ones in a row double it. Nothing is copied to the host.
pub struct LossScaler {
    scale: Tensor,
    growth_tracker: Tensor,
    found_inf: Tensor,
}

const INITIAL_SCALE: f64 = 65536.0;
const GROWTH_FACTOR: f64 = 2.0;
const BACKOFF_FACTOR: f64 = 0.5;
const GROWTH_INTERVAL: i64 = 2000;

impl LossScaler {
    /// A scaler for float16; other precisions need none.
    pub fn new(precision: Precision, device: Device) -> Result<Option<Self>> {
        if precision != Precision::Fp16 {
            return Ok(None);
        }
        Ok(Some(Self {
            scale: Tensor::f_full([], INITIAL_SCALE, (Kind::Float, device))?,
            growth_tracker: Tensor::f_zeros([], (Kind::Int, device))?,
            found_inf: Tensor::f_zeros([], (Kind::Float, device))?,
        }))
    }

    /// The loss to differentiate.
    pub fn scale(&self, loss: &Tensor) -> Result<Tensor> {
        Ok(loss.f_mul(&self.scale)?)
    }

    /// Divides the gradients by the scale and notes whether any is not finite.
    pub fn unscale(&mut self, parameters: &TensorList) -> Result<()> {
        let _ = self.found_inf.f_zero_()?;
        loss_scaling::unscale(parameters, &self.found_inf, &self.scale.f_reciprocal()?)
    }

    /// 1 where the last gradients were not finite.
    pub fn found_inf(&self) -> &Tensor {
        &self.found_inf
    }

    /// Adapts the scale after the optimizer's step.
    pub fn update(&self) -> Result<()> {
        loss_scaling::update_scale(
            &self.scale,
            &self.growth_tracker,
            &self.found_inf,
            GROWTH_FACTOR,
            BACKOFF_FACTOR,
            GROWTH_INTERVAL,
        )
    }

    /// The scale, copied to the host.
    pub fn value(&self) -> Result<f64> {
        Ok(self.scale.f_double_value(&[])?)
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> [(&'static str, &Tensor); 2] {
        [("scale", &self.scale), ("growth_tracker", &self.growth_tracker)]
    }

    /// Takes a saved scale over.
    pub fn load_state(&mut self, scale: &Tensor, growth_tracker: &Tensor) -> Result<()> {
        if scale.numel() != 1 || growth_tracker.numel() != 1 {
            bail_input!("the loss scale of the checkpoint is damaged");
        }
        self.scale.f_copy_(&scale.f_view([0i64; 0])?)?;
        self.growth_tracker.f_copy_(&growth_tracker.f_view([0i64; 0])?)?;
        Ok(())
    }
}
