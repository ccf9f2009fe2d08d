//! Networks on recurrent layers, one for each kind of task.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::layer::{Cell, Recurrent, RecurrentConfig, locked_dropout};
use crate::bail_input;
use crate::models::Scope;
use crate::models::blocks::dropout;
use crate::models::init::Init;
use crate::models::layers::{Embedding, Linear, forward_linear};
use crate::models::scripted::{ScriptConfig, ScriptHead, ScriptedLayer, ScriptedNetwork, require_scores};

/// What a network is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RnnGoal {
    /// A class for each sequence.
    Classify,
    /// The next token of a text.
    #[default]
    Lm,
    /// The next values of series.
    Forecast,
}

/// What a classifier looks at of the outputs of all steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The state after the last step, of both directions.
    #[default]
    Last,
    /// The mean of all steps.
    Mean,
    /// The largest value of each feature.
    Max,
    /// A mean weighted by learned scores.
    Attention,
}

/// How a forecast reaches all steps of its horizon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForecastMode {
    /// All steps at once from the last state.
    #[default]
    Direct,
    /// Step by step, each from the prediction of the one before.
    Autoregressive,
}

/// What a forecast says of each value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForecastForm {
    /// A number.
    #[default]
    Point,
    /// Mean and standard deviation of a normal distribution.
    Gaussian,
    /// Quantiles.
    Quantiles,
}

/// The `model` section of a recipe of `rnn`. What the data decide (vocabulary, classes, columns) is filled in when they are opened.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RnnConfig {
    /// `lstm`, `gru`, `rnn-tanh` or `rnn-relu`.
    pub name: Cell,
    /// What the network is for.
    pub task: RnnGoal,
    /// Numbers for each token.
    pub embedding: i64,
    /// Units of each layer and direction.
    pub hidden: i64,
    /// Recurrent layers.
    pub layers: i64,
    /// Whether layers also read from the end; not for language models and autoregressive forecasts, which may not know it.
    pub bidirectional: bool,
    /// Features that an LSTM's output is projected to.
    pub projection: Option<i64>,
    /// Dropout between recurrent layers.
    pub dropout: f64,
    /// Dropout on the embedded tokens.
    pub embedding_dropout: f64,
    /// Dropout before the output layer.
    pub output_dropout: f64,
    /// Dropout on recurrent weights.
    pub weight_dropout: f64,
    /// Whether dropout leaves out the same features in all steps of a sequence.
    pub variational: bool,
    /// Whether a language model's output layer shares the weights of the embedding, which then begins uniform in ±0.1.
    pub tied: bool,
    /// What a classifier looks at.
    pub pooling: Pooling,
    /// How a forecast is made.
    pub mode: ForecastMode,
    /// What a forecast says of each value.
    pub form: ForecastForm,
    /// Probabilities of the quantiles of a forecast, ascending.
    pub quantiles: Vec<f64>,
    /// Whether the last value of each series is taken off the input and added to the forecast (NLinear's normalisation).
    pub last_value: bool,
    /// Whether a linear map of the window, the same for all series, is added to the forecast (the autoregressive part of LSTNet, Lai et al. 2018).
    pub highway: bool,
    /// The module that stands in place of embedding and recurrent layers in a classifier, whose keys here then say nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<ScriptConfig>,
    /// Tokens; from the data.
    pub vocabulary: Option<i64>,
    /// Numbers of each step of a numeric sequence or of a window; from the data.
    pub features: Option<i64>,
    /// Classes; from the data.
    pub classes: Option<i64>,
    /// Series that are forecast, the first of the features; from the data.
    pub targets: Option<i64>,
    /// Features whose future is known, the last of the features; from the data.
    pub known: Option<i64>,
    /// Steps that a forecast looks back; from the data.
    pub input: Option<i64>,
    /// Steps that are forecast; from the data.
    pub horizon: Option<i64>,
}

impl Default for RnnConfig {
    fn default() -> Self {
        Self {
            name: Cell::Lstm,
            task: RnnGoal::Lm,
            embedding: 128,
            hidden: 128,
            layers: 1,
            bidirectional: false,
            projection: None,
            dropout: 0.0,
            embedding_dropout: 0.0,
            output_dropout: 0.0,
            weight_dropout: 0.0,
            variational: false,
            tied: false,
            pooling: Pooling::Last,
            mode: ForecastMode::Direct,
            form: ForecastForm::Point,
            quantiles: vec![0.1, 0.5, 0.9],
            last_value: false,
            highway: false,
            input: None,
            script: None,
            vocabulary: None,
            features: None,
            classes: None,
            targets: None,
            known: None,
            horizon: None,
        }
    }
}

impl RnnConfig {
    /// Checks what does not depend on the data.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [("embedding", self.embedding), ("hidden", self.hidden), ("layers", self.layers)]
        {
            if value < 1 {
                bail_input!("model.{key} is {value}: it must be at least 1");
            }
        }
        let shares = [
            ("dropout", self.dropout),
            ("embedding_dropout", self.embedding_dropout),
            ("output_dropout", self.output_dropout),
            ("weight_dropout", self.weight_dropout),
        ];
        for (key, value) in shares {
            if !(0.0..1.0).contains(&value) {
                bail_input!("model.{key} is {value}: it must be at least 0 and below 1");
            }
        }
        if self.dropout > 0.0 && self.layers == 1 {
            bail_input!("model.dropout acts between layers, but there is one: use model.output_dropout");
        }
        if self.bidirectional && self.task == RnnGoal::Lm {
            bail_input!("model.bidirectional: a language model may not read from the end");
        }
        if self.bidirectional && self.task == RnnGoal::Forecast && self.mode == ForecastMode::Autoregressive {
            bail_input!("model.bidirectional: an autoregressive forecast may not read from the end");
        }
        if self.highway && self.mode == ForecastMode::Autoregressive {
            bail_input!("model.highway maps a window to all steps at once: it is for model.mode direct");
        }
        if self.tied && self.task == RnnGoal::Lm && self.projection.unwrap_or(self.hidden) != self.embedding {
            bail_input!(
                "model.tied shares the embedding of width {} with the output layer, which takes {} features: make them equal",
                self.embedding,
                self.projection.unwrap_or(self.hidden)
            );
        }
        if self.script.is_some() && self.task != RnnGoal::Classify {
            bail_input!("model.script: a module stands in for a classifier: give --task classify");
        }
        if self.script.is_some() && self.pooling == Pooling::Attention {
            bail_input!(
                "model.pooling attention has weights of its own, which a module with a head has not: take last, mean or max"
            );
        }
        let ascending = self.quantiles.windows(2).all(|pair| pair[0] < pair[1]);
        if self.quantiles.is_empty() || !ascending || self.quantiles.iter().any(|q| !(*q > 0.0 && *q < 1.0)) {
            bail_input!("model.quantiles must be probabilities between 0 and 1, ascending");
        }
        Ok(())
    }

    fn recurrent(&self, input_size: i64) -> RecurrentConfig {
        RecurrentConfig {
            cell: self.name,
            input_size,
            hidden_size: self.hidden,
            num_layers: self.layers,
            bidirectional: self.bidirectional,
            proj_size: self.projection,
            dropout: self.dropout,
            weight_dropout: self.weight_dropout,
            variational: self.variational,
        }
    }

    /// Numbers that a forecast says of each value.
    pub fn numbers_per_value(&self) -> i64 {
        match self.form {
            ForecastForm::Point => 1,
            ForecastForm::Gaussian => 2,
            ForecastForm::Quantiles => self.quantiles.len() as i64,
        }
    }

    fn dropped(&self, input: &Tensor, share: f64, train: bool) -> Tensor {
        match self.variational {
            true => locked_dropout(input, share, train),
            false => dropout(input.shallow_clone(), share, train),
        }
    }
}

/// Tokens to scores of the next token: `embedding`, the recurrent layers, `output`.
#[derive(Debug)]
pub struct LanguageModel {
    embedding: Embedding,
    recurrent: Recurrent,
    output: Option<Linear>,
    tied_bias: Option<Tensor>,
    config: RnnConfig,
}

impl LanguageModel {
    /// A network with fresh weights.
    pub fn new(scope: &Scope, config: &RnnConfig) -> Result<Self> {
        let vocabulary = config.vocabulary.context("model.vocabulary is not known yet")?;
        let place = scope.child("embedding");
        let embedding = match config.tied {
            true => {
                let table = Embedding::new(&place.undrawn(), vocabulary, config.embedding, None)?;
                table.redraw(scope, Init::Uniform { bound: 0.1 })?;
                table
            }
            false => Embedding::new(&place, vocabulary, config.embedding, None)?,
        };
        let recurrent =
            Recurrent::new(&scope.child(config.name.field()), config.recurrent(config.embedding))?;
        let features = recurrent.config().output_size();
        let (output, tied_bias) = match config.tied {
            true => {
                let bias = Init::default_bias(&[vocabulary, features]);
                (None, Some(scope.child("output").parameter("bias", &[vocabulary], bias)?))
            }
            false => (Some(Linear::new(&scope.child("output"), features, vocabulary)?), None),
        };
        Ok(Self { embedding, recurrent, output, tied_bias, config: config.clone() })
    }

    /// The recurrent layers.
    pub fn recurrent(&self) -> &Recurrent {
        &self.recurrent
    }

    /// Tokens `[batch, steps]` and a state to logits `[batch, steps, vocabulary]` and the state after them.
    pub fn forward(&self, tokens: &Tensor, state: &[Tensor], train: bool) -> (Tensor, Vec<Tensor>) {
        let embedded =
            self.config.dropped(&self.embedding.forward(tokens), self.config.embedding_dropout, train);
        let (outputs, state) = self.recurrent.forward(&embedded, state, train); // [batch, steps, features]
        let outputs = self.config.dropped(&outputs, self.config.output_dropout, train);
        let logits = match &self.output {
            Some(output) => output.forward(&outputs),
            None => forward_linear(&outputs, self.embedding.weight(), self.tied_bias.as_ref()),
        };
        (logits, state)
    }
}

/// Sequences to scores of classes: `embedding` (of tokens), the recurrent layers, `attention` (where pooling is that), `output`. With a module in place
/// of the first two its names are its own, behind `backbone.` where an `output` is put on it.
#[derive(Debug)]
pub struct SequenceClassifier {
    body: Body,
    attention: Option<Linear>,
    output: Option<Linear>,
    config: RnnConfig,
}

#[derive(Debug)]
enum Body {
    Recurrent { embedding: Option<Embedding>, recurrent: Recurrent },
    Script(ScriptedNetwork),
}

impl SequenceClassifier {
    /// A network with fresh weights, on tokens where the configuration has a vocabulary, else on numbers. What fills
    /// sequences up is never looked at, but by a module that takes no lengths.
    pub fn new(scope: &Scope, config: &RnnConfig) -> Result<Self> {
        let classes = config.classes.context("model.classes is not known yet")?;
        if let Some(script) = &config.script {
            return Self::of_module(scope, config, script, classes);
        }
        let (embedding, inputs) = match config.vocabulary {
            Some(vocabulary) => {
                let table = Embedding::new(&scope.child("embedding"), vocabulary, config.embedding, None)?;
                (Some(table), config.embedding)
            }
            None => (None, config.features.context("model.features is not known yet")?),
        };
        let recurrent = Recurrent::new(&scope.child(config.name.field()), config.recurrent(inputs))?;
        let features = recurrent.config().output_size();
        let attention = match config.pooling {
            Pooling::Attention => Some(Linear::new(&scope.child("attention"), features, 1)?),
            _ => None,
        };
        let output = Some(Linear::new(&scope.child("output"), features, classes)?);
        Ok(Self { body: Body::Recurrent { embedding, recurrent }, attention, output, config: config.clone() })
    }

    fn of_module(scope: &Scope, config: &RnnConfig, script: &ScriptConfig, classes: i64) -> Result<Self> {
        let network = ScriptedNetwork::new(&script.head.names_of_module(scope), script)?;
        const STEPS: i64 = 16;
        let device = scope.parameters().device();
        let (example, what) = match config.vocabulary {
            Some(_) => (Tensor::f_zeros([1, STEPS], (Kind::Int64, device))?, "tokens"),
            None => {
                let features = config.features.context("model.features is not known yet")?;
                (Tensor::f_zeros([1, STEPS, features], (Kind::Float, device))?, "sequences")
            }
        };
        let made = network.probe(&[&example, &Tensor::from_slice(&[STEPS])], what)?;
        let output = match (script.head, &made.size()[..]) {
            (ScriptHead::None, _) => {
                require_scores(&network, &made, classes)?;
                None
            }
            (ScriptHead::Linear, [_, width] | [_, STEPS, width]) => {
                Some(Linear::new(&scope.child("output"), *width, classes)?)
            }
            (ScriptHead::Linear, other) => bail_input!(
                "{} makes {other:?} of one sequence of {STEPS} steps, on which no head can be put: that takes [1, features] or [1, {STEPS}, features]",
                network.name()
            ),
        };
        Ok(Self { body: Body::Script(network), attention: None, output, config: config.clone() })
    }

    /// The table of token vectors.
    pub fn embedding(&self) -> Option<&Embedding> {
        match &self.body {
            Body::Recurrent { embedding, .. } => embedding.as_ref(),
            Body::Script(_) => None,
        }
    }

    /// Tokens `[batch, longest]` or numbers `[batch, longest, features]` with the length of each sequence, `[batch]` int64 on the CPU, to logits
    /// `[batch, classes]`.
    pub fn forward(&self, input: &Tensor, lengths: &Tensor, train: bool) -> Tensor {
        let pooled = match &self.body {
            Body::Recurrent { embedding, recurrent } => {
                let x = match embedding {
                    Some(embedding) => {
                        self.config.dropped(&embedding.forward(input), self.config.embedding_dropout, train)
                    }
                    None => input.shallow_clone(),
                };
                let zero = recurrent.zero_state(&x);
                // What stands behind the end of a sequence does not reach its outputs, unless a layer reads from there: the fused kernel of equal
                // lengths is then several times as fast as packed runs.
                let (outputs, state) = match self.config.bidirectional {
                    true => recurrent.forward_packed(&x, lengths, &zero, train),
                    false => recurrent.forward(&x, &zero, train),
                }; // [batch, longest, features]
                match self.config.pooling {
                    Pooling::Last if self.config.bidirectional => {
                        let layers = self.config.layers;
                        let ends = [2 * layers - 2, 2 * layers - 1].map(|layer| state[0].select(0, layer));
                        Tensor::cat(&ends, 1)
                    }
                    _ => self.pooled(&outputs, lengths),
                }
            }
            Body::Script(network) => {
                let outputs = network.forward(&[input, lengths], train);
                match outputs.dim() {
                    3 => self.pooled(&outputs, lengths),
                    _ => outputs,
                }
            }
        }; // [batch, features]
        let Some(output) = &self.output else { return pooled };
        let pooled = match self.config.output_dropout > 0.0 {
            true => pooled.dropout(self.config.output_dropout, train),
            false => pooled,
        };
        output.forward(&pooled)
    }

    /// `[batch, longest, features]` to `[batch, features]`, without what is behind the ends.
    fn pooled(&self, outputs: &Tensor, lengths: &Tensor) -> Tensor {
        let on_device = lengths.to_device(outputs.device());
        // [batch, longest]: from operations alone, so that a trace serves every length.
        let places = outputs.select(2, 0).ones_like().to_kind(Kind::Int64).cumsum(1, Kind::Int64);
        let outside = places.gt_tensor(&on_device.unsqueeze(1)).unsqueeze(-1); // [batch, longest, 1]
        match self.config.pooling {
            Pooling::Last => {
                let last = (&on_device - 1).unsqueeze(-1).unsqueeze(-1); // [batch, 1, 1]
                let width = outputs.size()[2];
                outputs.gather(1, &last.expand([-1, 1, width], false), false).squeeze_dim(1)
            }
            Pooling::Mean => {
                let sum = outputs.masked_fill(&outside, 0.0).sum_dim_intlist(1i64, false, None::<Kind>);
                sum / on_device.unsqueeze(1)
            }
            Pooling::Max => outputs.masked_fill(&outside, f64::NEG_INFINITY).amax(1i64, false),
            Pooling::Attention => {
                let scores = self.attention.as_ref().map(|attention| attention.forward(outputs)); // [batch, longest, 1]
                let scores = scores.unwrap_or_else(|| outputs.narrow(2, 0, 1)).to_kind(Kind::Float);
                let shares = scores.masked_fill(&outside, f64::NEG_INFINITY).softmax(1, Kind::Float);
                (outputs * shares).sum_dim_intlist(1i64, false, None::<Kind>)
            }
        }
    }

    /// Writes it as TorchScript where it is made of such a module, with its control flow: what looks at lengths would be fixed in a trace.
    pub fn save_script(&self, path: &Path) -> Option<Result<()>> {
        let Body::Script(network) = &self.body else { return None };
        let features = match self.config.pooling {
            Pooling::Last => {
                "if features.dim() == 3:\n  \
                 features = features[torch.arange(features.size(0)), (lengths - 1).to(features.device)]"
            }
            Pooling::Mean => {
                "if features.dim() == 3:\n  \
                 ends = lengths.to(features.device).unsqueeze(1)\n  \
                 outside = torch.arange(features.size(1), device=features.device).unsqueeze(0) >= ends\n  \
                 features = features.masked_fill(outside.unsqueeze(-1), 0.0).sum(1) / ends"
            }
            Pooling::Max | Pooling::Attention => {
                "if features.dim() == 3:\n  \
                 ends = lengths.to(features.device).unsqueeze(1)\n  \
                 outside = torch.arange(features.size(1), device=features.device).unsqueeze(0) >= ends\n  \
                 features = features.masked_fill(outside.unsqueeze(-1), float(\"-inf\")).amax(1)"
            }
        };
        let arguments = [if self.config.vocabulary.is_some() { "tokens" } else { "sequences" }, "lengths"];
        let layer =
            self.output.as_ref().map(|linear| ScriptedLayer { arguments: &arguments, features, linear });
        Some(network.save(layer, path))
    }
}

/// What a [`Forecaster`] says.
#[derive(Debug)]
pub struct ForecastOutput {
    /// `[batch, horizon, targets, numbers]`: one number; mean and standard deviation; or the quantiles, ascending.
    pub values: Tensor,
}

/// Windows of series to their next steps: the recurrent layers, `output`, and `highway` where there is one.
#[derive(Debug)]
pub struct Forecaster {
    recurrent: Recurrent,
    output: Linear,
    highway: Option<Linear>,
    config: RnnConfig,
    targets: i64,
    known: i64,
    horizon: i64,
}

impl Forecaster {
    /// A network with fresh weights.
    pub fn new(scope: &Scope, config: &RnnConfig) -> Result<Self> {
        let features = config.features.context("model.features is not known yet")?;
        let targets = config.targets.context("model.targets is not known yet")?;
        let horizon = config.horizon.context("model.horizon is not known yet")?;
        let known = config.known.unwrap_or(0);
        let recurrent = Recurrent::new(&scope.child(config.name.field()), config.recurrent(features))?;
        let width = recurrent.config().output_size();
        let each = targets * config.numbers_per_value();
        let output = &scope.child("output");
        let output = match config.mode {
            ForecastMode::Direct => Linear::new(output, width + horizon * known, horizon * each)?,
            ForecastMode::Autoregressive => Linear::new(output, width, each)?,
        };
        if config.mode == ForecastMode::Autoregressive && features != targets + known {
            bail_input!(
                "model.mode is autoregressive, but the future of {} input columns is neither forecast nor known: make them targets, or known",
                features - targets - known
            );
        }
        let highway = match config.highway {
            true => {
                let input = config.input.context("model.input is not known yet")?;
                Some(Linear::new(&scope.child("highway"), input, horizon)?)
            }
            false => None,
        };
        Ok(Self { recurrent, output, highway, config: config.clone(), targets, known, horizon })
    }

    /// Windows `[batch, steps, features]` (targets first, known ones last) and the known features of the horizon `[batch, horizon, known]` to
    /// what is to come, on the scale of the window.
    pub fn forward(&self, window: &Tensor, future: &Tensor, train: bool) -> ForecastOutput {
        let numbers = self.config.numbers_per_value();
        // [batch, 1, targets]
        let last = window.slice(1, -1, None, 1).narrow(2, 0, self.targets);
        let x = match self.config.last_value {
            true => {
                let rest = window.narrow(2, self.targets, window.size()[2] - self.targets);
                Tensor::cat(&[window.narrow(2, 0, self.targets) - &last, rest], 2)
            }
            false => window.shallow_clone(),
        };
        let zero = self.recurrent.zero_state(&x);
        let (outputs, mut state) = self.recurrent.forward(&x, &zero, train);
        let dropped = |features: &Tensor| match self.config.output_dropout > 0.0 {
            true => features.dropout(self.config.output_dropout, train),
            false => features.shallow_clone(),
        };
        let raw = match self.config.mode {
            ForecastMode::Direct => {
                let mut features = dropped(&outputs.select(1, -1)); // [batch, width]
                if self.known > 0 {
                    features = Tensor::cat(&[features, future.flatten(1, 2)], 1);
                }
                self.output.forward(&features).unflatten(1, [self.horizon, self.targets, numbers])
            }
            ForecastMode::Autoregressive => {
                let mut steps = Vec::with_capacity(self.horizon as usize);
                let mut features = outputs.select(1, -1);
                loop {
                    let step = self.output.forward(&dropped(&features)).unflatten(1, [self.targets, numbers]);
                    steps.push(step.shallow_clone());
                    if steps.len() as i64 == self.horizon {
                        break;
                    }
                    // The likeliest value goes on: number, mean, or the middle quantile.
                    let place = if self.config.form == ForecastForm::Quantiles { numbers / 2 } else { 0 };
                    let mut input = step.select(2, place).unsqueeze(1); // [batch, 1, targets]
                    if self.known > 0 {
                        input = Tensor::cat(&[input, future.narrow(1, steps.len() as i64 - 1, 1)], 2);
                    }
                    let (output, after) = self.recurrent.forward(&input, &state, train);
                    state = after;
                    features = output.select(1, -1);
                }
                Tensor::stack(&steps, 1)
            }
        }; // [batch, horizon, targets, numbers]
        // What is added to every number that says where a value is: [batch, 1 or horizon, targets, 1].
        let shift = match (&self.highway, self.config.last_value) {
            (None, false) => None,
            (None, true) => Some(last.unsqueeze(-1)),
            (Some(highway), with_last) => {
                let series = x.narrow(2, 0, self.targets).transpose(1, 2); // [batch, targets, steps]
                let linear = highway.forward(&series).transpose(1, 2); // [batch, horizon, targets]
                Some(if with_last { linear + &last } else { linear }.unsqueeze(-1))
            }
        };
        let values = match self.config.form {
            ForecastForm::Gaussian => {
                let mean = raw.narrow(3, 0, 1);
                let mean = match &shift {
                    Some(shift) => mean + shift,
                    None => mean,
                };
                let deviation = raw.narrow(3, 1, 1).to_kind(Kind::Float).softplus() + SMALLEST_DEVIATION;
                Tensor::cat(&[mean.to_kind(Kind::Float), deviation], 3)
            }
            ForecastForm::Point | ForecastForm::Quantiles => match &shift {
                Some(shift) => raw + shift,
                None => raw,
            },
        };
        // Quantiles that cross are put in order.
        let values = match (self.config.form, train) {
            (ForecastForm::Quantiles, false) => values.sort(3, false).0,
            _ => values,
        };
        ForecastOutput { values }
    }
}

/// Keeps the likelihood of a normal distribution finite, in units of the standardised series.
const SMALLEST_DEVIATION: f64 = 1e-3;
