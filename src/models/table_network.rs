//! A dense network on the rows of a table; without hidden layers it is a linear model.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::Scope;
use super::blocks::dropout;
use super::layers::{BatchNorm2d, Linear};
use super::scripted::{ScriptConfig, ScriptedModel};

/// What follows each hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenActivation {
    /// max(0, x)
    Relu,
    /// 1 / (1 + exp(−x))
    Sigmoid,
    /// tanh x
    Tanh,
}

/// How a [`TableNetwork`] is built.
#[derive(Clone, Debug)]
pub struct TableNetworkConfig {
    /// Widths of all layers: inputs, hidden layers, outputs.
    pub widths: Vec<i64>,
    /// What follows each hidden layer.
    pub activation: HiddenActivation,
    /// Dropout after each hidden activation.
    pub dropout: f64,
    /// Batch normalisation before each hidden activation.
    pub batch_norm: bool,
    /// Whether the layers have biases.
    pub bias: bool,
}

#[derive(Debug)]
struct Hidden {
    linear: Linear,
    norm: Option<BatchNorm2d>,
}

/// Layers named by their place in `nn.Sequential(Linear, [BatchNorm1d], activation, [Dropout], …, Linear)`.
#[derive(Debug)]
pub struct TableNetwork {
    hidden: Vec<Hidden>,
    output: Linear,
    activation: HiddenActivation,
    dropout: f64,
}

impl TableNetwork {
    /// A network with fresh weights.
    pub fn new(scope: &Scope, config: &TableNetworkConfig) -> Result<Self> {
        let mut place = 0;
        let mut hidden = Vec::new();
        let pairs: Vec<(i64, i64)> = config.widths.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let Some(((inputs, outputs), before)) = pairs.split_last() else {
            crate::bail_input!("a network needs inputs and outputs");
        };
        let make = |place: i32, inputs: i64, outputs: i64| match config.bias {
            true => Linear::new(&scope.child(place), inputs, outputs),
            false => Linear::without_bias(&scope.child(place), inputs, outputs),
        };
        for &(inputs, outputs) in before {
            let linear = make(place, inputs, outputs)?;
            place += 1;
            let norm = match config.batch_norm {
                true => Some(BatchNorm2d::of_rows(&scope.child(place), outputs)?),
                false => None,
            };
            place += i32::from(config.batch_norm) + 1 + i32::from(config.dropout > 0.0);
            hidden.push(Hidden { linear, norm });
        }
        let output = make(place, *inputs, *outputs)?;
        Ok(Self { hidden, output, activation: config.activation, dropout: config.dropout })
    }

    /// `[batch, inputs]` to `[batch, outputs]`, without an activation on the output.
    pub fn forward(&self, rows: &Tensor, train: bool) -> Tensor {
        let mut x = rows.shallow_clone();
        for Hidden { linear, norm } in &self.hidden {
            x = linear.forward(&x);
            if let Some(norm) = norm {
                x = norm.forward(&x, train);
            }
            x = match self.activation {
                HiddenActivation::Relu => x.relu(),
                HiddenActivation::Sigmoid => x.sigmoid(),
                HiddenActivation::Tanh => x.tanh(),
            };
            x = dropout(x, self.dropout, train);
        }
        self.output.forward(&x)
    }
}

/// What stands between the columns of a table and its outputs.
#[derive(Debug)]
pub enum TableModel {
    /// Our own layers.
    Dense(TableNetwork),
    /// Somebody else's.
    Scripted(ScriptedModel),
}

impl TableModel {
    /// The module where there is one, else a network with fresh weights.
    pub fn new(scope: &Scope, config: &TableNetworkConfig, script: Option<&ScriptConfig>) -> Result<Self> {
        let Some(script) = script else { return Ok(Self::Dense(TableNetwork::new(scope, config)?)) };
        let [inputs, outputs] = config.widths[..] else {
            crate::bail_input!("a module in place of a network has no layers of its own");
        };
        let rows = Tensor::f_zeros([2, inputs], (Kind::Float, scope.parameters().device()))?;
        Ok(Self::Scripted(ScriptedModel::new(scope, script, ("rows", &rows), outputs)?))
    }

    /// `[batch, inputs]` to `[batch, outputs]`, without an activation on the output.
    pub fn forward(&self, rows: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Dense(network) => network.forward(rows, train),
            Self::Scripted(model) => model.forward(rows, train),
        }
    }

    /// What the names of the head's parameters begin with, where there is one on somebody else's layers.
    pub fn head_name(&self) -> Option<&'static str> {
        match self {
            Self::Dense(_) => None,
            Self::Scripted(_) => Some("head"),
        }
    }
}
