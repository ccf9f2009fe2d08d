//! Initial values, drawn as `torch.nn.init` draws them: from libtorch's default CPU generator, with the roundings of its own arithmetic, so that a
//! model made after `manual_seed(s)` has the very weights that the same model has in Python after `torch.manual_seed(s)`.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

// Drawn on the CPU, so that values are the same on every device.
const CPU_FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// How a tensor begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f64),
    /// Uniform from ±bound.
    Uniform {
        /// Largest absolute value.
        bound: f64,
    },
    /// Normal around 0.
    Normal {
        /// Standard deviation.
        deviation: f64,
    },
    /// Normal around 0, drawn again where it is beyond ±limit.
    TruncatedNormal {
        /// Standard deviation before the cut.
        deviation: f64,
        /// Largest absolute value.
        limit: f64,
    },
}

/// Which side of a layer its initial variance is fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fan {
    /// Keeps the variance of activations.
    In,
    /// Keeps the variance of gradients.
    Out,
}

impl Fan {
    /// The fan of a weight `[outputs, inputs / groups, …]`, as `torch.nn.init` counts it.
    pub fn of(self, shape: &[i64]) -> i64 {
        let receptive: i64 = shape[2..].iter().product();
        receptive
            * match self {
                Self::In => shape[1],
                Self::Out => shape[0],
            }
    }
}

impl Init {
    /// All zeros.
    pub const ZEROS: Self = Self::Constant(0.0);
    /// All ones.
    pub const ONES: Self = Self::Constant(1.0);

    /// `kaiming_uniform_(a=math.sqrt(5))`: what `nn.Linear` and `nn.Conv2d` draw their weight from, ±1/√fan-in.
    pub fn default_weight(shape: &[i64]) -> Self {
        let negative_slope = 5f64.sqrt();
        Self::kaiming_uniform((2.0 / (1.0 + negative_slope * negative_slope)).sqrt(), shape)
    }

    /// What `nn.Linear` and `nn.Conv2d` draw their bias from, given the shape of the weight.
    pub fn default_bias(weight: &[i64]) -> Self {
        Self::Uniform { bound: 1.0 / (Fan::In.of(weight) as f64).sqrt() }
    }

    /// `kaiming_uniform_(nonlinearity="relu")`.
    pub fn relu_uniform(shape: &[i64]) -> Self {
        Self::kaiming_uniform(2f64.sqrt(), shape)
    }

    fn kaiming_uniform(gain: f64, shape: &[i64]) -> Self {
        let deviation = gain / (Fan::In.of(shape) as f64).sqrt();
        Self::Uniform { bound: 3f64.sqrt() * deviation }
    }

    /// `kaiming_normal_(mode=…, nonlinearity="relu")`.
    pub fn relu_normal(fan: Fan, shape: &[i64]) -> Self {
        Self::Normal { deviation: 2f64.sqrt() / (fan.of(shape) as f64).sqrt() }
    }

    /// `xavier_uniform_`.
    pub fn xavier_uniform(shape: &[i64]) -> Self {
        let deviation = (2.0 / (Fan::In.of(shape) + Fan::Out.of(shape)) as f64).sqrt();
        Self::Uniform { bound: 3f64.sqrt() * deviation }
    }

    /// `trunc_normal_` with PyTorch's limits of ±2.
    pub fn truncated_normal(deviation: f64) -> Self {
        Self::TruncatedNormal { deviation, limit: 2.0 }
    }

    /// A new float32 tensor on the CPU.
    pub fn draw(self, shape: &[i64]) -> Result<Tensor> {
        let empty = || Tensor::f_empty(shape, CPU_FLOAT);
        Ok(match self {
            Self::Constant(value) => Tensor::f_full(shape, value, CPU_FLOAT)?,
            Self::Uniform { bound } => empty()?.f_uniform_(-bound, bound)?,
            Self::Normal { deviation } => empty()?.f_normal_(0.0, deviation)?,
            Self::TruncatedNormal { deviation, limit } => {
                let mut values = empty()?.f_normal_(0.0, deviation)?;
                loop {
                    let beyond = values.f_abs()?.f_gt(limit)?;
                    if !bool::try_from(beyond.f_any()?)? {
                        break values;
                    }
                    values = empty()?.f_normal_(0.0, deviation)?.f_where_self(&beyond, &values)?;
                }
            }
        })
    }
}
