//! `nn.RNN`, `nn.LSTM` and `nn.GRU` with their names and initial values, over libtorch's fused kernels.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::bail_input;
use crate::models::Scope;
use crate::models::blocks::dropout;
use crate::models::init::Init;
use crate::models::summary::record;

/// What a layer computes at each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    /// h = tanh(W x + U h + b) (Elman 1990)
    RnnTanh,
    /// The same with max(0, ·).
    RnnRelu,
    /// Long short-term memory (Hochreiter and Schmidhuber 1997, with Gers et al.'s forget gate).
    #[default]
    Lstm,
    /// Gated recurrent unit (Cho et al. 2014), as cuDNN and PyTorch compute it.
    Gru,
}

impl Cell {
    /// All of them.
    pub const ALL: [Cell; 4] = [Cell::RnnTanh, Cell::RnnRelu, Cell::Lstm, Cell::Gru];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::RnnTanh => "rnn-tanh",
            Self::RnnRelu => "rnn-relu",
            Self::Lstm => "lstm",
            Self::Gru => "gru",
        }
    }

    /// The name of the field that holds such a layer in a model.
    pub fn field(self) -> &'static str {
        match self {
            Self::RnnTanh | Self::RnnRelu => "rnn",
            Self::Lstm => "lstm",
            Self::Gru => "gru",
        }
    }

    /// Rows of its weights for each unit.
    fn gates(self) -> i64 {
        match self {
            Self::RnnTanh | Self::RnnRelu => 1,
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

/// How a stack of recurrent layers is built; the arguments of `nn.LSTM`.
#[derive(Clone, Debug)]
pub struct RecurrentConfig {
    /// What each step computes.
    pub cell: Cell,
    /// Features of each step.
    pub input_size: i64,
    /// Units of each layer and direction.
    pub hidden_size: i64,
    /// Layers, each on the outputs of the one before.
    pub num_layers: i64,
    /// Whether every layer also reads from the end.
    pub bidirectional: bool,
    /// Features that the output of an LSTM is projected to (Sak et al. 2014).
    pub proj_size: Option<i64>,
    /// Dropout on the outputs of every layer but the last.
    pub dropout: f64,
    /// Dropout on the recurrent weights (Merity et al. 2018).
    pub weight_dropout: f64,
    /// Whether `dropout` leaves out the same features in all steps of a sequence (Gal and Ghahramani 2016).
    pub variational: bool,
}

impl RecurrentConfig {
    fn directions(&self) -> i64 {
        if self.bidirectional { 2 } else { 1 }
    }

    /// Features of the output of one direction.
    fn state_size(&self) -> i64 {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// Features of the output.
    pub fn output_size(&self) -> i64 {
        self.directions() * self.state_size()
    }
}

/// Recurrent layers.
#[derive(Debug)]
pub struct Recurrent {
    name: String,
    config: RecurrentConfig,
    /// Layer by layer, direction by direction: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh` and for projections `weight_hr`.
    weights: Vec<Tensor>,
    per_direction: usize,
}

impl Recurrent {
    /// Draws every tensor uniformly from ±1/√hidden, in the order of their names in `torch.nn`.
    ///
    /// # Errors
    /// A projection of a cell that is no LSTM, or to no fewer features than there are units.
    pub fn new(scope: &Scope, config: RecurrentConfig) -> Result<Self> {
        if let Some(size) = config.proj_size
            && (config.cell != Cell::Lstm || size < 1 || size >= config.hidden_size)
        {
            bail_input!(
                "model.projection is {size}: only an LSTM has one, to fewer features than its {} units",
                config.hidden_size
            );
        }
        let init = Init::Uniform { bound: 1.0 / (config.hidden_size as f64).sqrt() };
        let rows = config.cell.gates() * config.hidden_size;
        let mut weights = Vec::new();
        for layer in 0..config.num_layers {
            let inputs = if layer == 0 { config.input_size } else { config.output_size() };
            for direction in 0..config.directions() {
                let suffix = format!("l{layer}{}", if direction == 1 { "_reverse" } else { "" });
                let mut add = |name: &str, shape: &[i64]| -> Result<()> {
                    weights.push(scope.parameter(&format!("{name}_{suffix}"), shape, init)?);
                    Ok(())
                };
                add("weight_ih", &[rows, inputs])?;
                add("weight_hh", &[rows, config.state_size()])?;
                add("bias_ih", &[rows])?;
                add("bias_hh", &[rows])?;
                if let Some(size) = config.proj_size {
                    add("weight_hr", &[size, config.hidden_size])?;
                }
            }
        }
        let per_direction = if config.proj_size.is_some() { 5 } else { 4 };
        Ok(Self { name: scope.name().to_owned(), config, weights, per_direction })
    }

    /// How it is built.
    pub fn config(&self) -> &RecurrentConfig {
        &self.config
    }

    /// How many tensors a state has: two of an LSTM (`h`, `c`), one of the others.
    pub fn state_tensors(&self) -> usize {
        if self.config.cell == Cell::Lstm { 2 } else { 1 }
    }

    /// The state before the first step, zeros `[layers · directions, batch, units]`, for an input `[batch, …]`. No size is read from the
    /// input, so that a trace serves every batch.
    pub fn zero_state(&self, input: &Tensor) -> Vec<Tensor> {
        let mut each = input.shallow_clone();
        while each.dim() > 1 {
            each = each.select(1, 0);
        }
        let zero = each.zeros_like().to_kind(tch::Kind::Float).unsqueeze(0).unsqueeze(-1); // [1, batch, 1]
        let rows = self.config.num_layers * self.config.directions();
        let sizes = [self.config.state_size(), self.config.hidden_size];
        sizes
            .iter()
            .take(self.state_tensors())
            .map(|&size| zero.expand([rows, -1, size], false).contiguous())
            .collect()
    }

    /// `[batch, steps, features]` and a state to the outputs `[batch, steps, output_size]` of the last layer and the state after the last
    /// step.
    pub fn forward(&self, input: &Tensor, state: &[Tensor], train: bool) -> (Tensor, Vec<Tensor>) {
        let weights = self.weights_of_pass(train);
        let (output, state) = if self.steps_one_by_one(input, train) {
            self.step(input, state, &weights)
        } else if self.config.variational && self.config.dropout > 0.0 && train {
            self.layer_by_layer(input, state, &weights, |x, state, weights| {
                self.fused(x, state, weights, 1, 0.0, train)
            })
        } else {
            self.fused(input, state, &weights, self.config.num_layers, self.config.dropout, train)
        };
        self.tell(&output, &state);
        (output, state)
    }

    /// Whether a single step is computed cell by cell. oneDNN, which the fused LSTM goes through on the CPU, orders the weights anew in each call:
    /// with one step that takes ten times as long as the step itself.
    fn steps_one_by_one(&self, input: &Tensor, train: bool) -> bool {
        let RecurrentConfig { cell, bidirectional, proj_size, dropout, .. } = self.config;
        let plain = cell == Cell::Lstm && !bidirectional && proj_size.is_none() && !(train && dropout > 0.0);
        // oneDNN is what computes on the CPU alone.
        plain && input.device() == tch::Device::Cpu && input.size()[1] == 1
    }

    /// One step of an LSTM, `[batch, 1, features]`.
    fn step(&self, input: &Tensor, state: &[Tensor], weights: &[Tensor]) -> (Tensor, Vec<Tensor>) {
        let mut x = input.select(1, 0);
        let (mut hidden, mut cells) = (Vec::new(), Vec::new());
        for (layer, own) in weights.chunks(self.per_direction).enumerate() {
            let layer = layer as i64;
            let (h, c) = (state[0].select(0, layer), state[1].select(0, layer));
            let (h, c) = x.lstm_cell(&[&h, &c], &own[0], &own[1], Some(&own[2]), Some(&own[3]));
            x = h.shallow_clone();
            hidden.push(h);
            cells.push(c);
        }
        (x.unsqueeze(1), vec![Tensor::stack(&hidden, 0), Tensor::stack(&cells, 0)])
    }

    /// Sequences of several lengths, filled up behind: outputs `[batch, longest, output_size]`, zeros behind the end of each, and the state
    /// after the last step of each, as with `pack_padded_sequence(enforce_sorted=False)`. `lengths` is `[batch]` int64 on the CPU.
    pub fn forward_packed(
        &self,
        input: &Tensor,
        lengths: &Tensor,
        state: &[Tensor],
        train: bool,
    ) -> (Tensor, Vec<Tensor>) {
        let weights = self.weights_of_pass(train);
        let (sorted, order) = lengths.sort(0, true);
        let back = order.argsort(0, false).to_device(input.device());
        let order = order.to_device(input.device());
        let input = input.index_select(0, &order);
        let state: Vec<Tensor> = state.iter().map(|tensor| tensor.index_select(1, &order)).collect();
        let run = |x: &Tensor, state: &[Tensor], weights: &[Tensor], layers: i64, dropout: f64| {
            let (data, batch_sizes) = x.internal_pack_padded_sequence(&sorted, true);
            let (data, state) =
                self.fused_packed(&data, &batch_sizes, state, weights, layers, dropout, train);
            (Tensor::internal_pad_packed_sequence(&data, &batch_sizes, true, 0.0, -1).0, state)
        };
        let (output, state) = if self.config.variational && self.config.dropout > 0.0 && train {
            self.layer_by_layer(&input, &state, &weights, |x, state, weights| run(x, state, weights, 1, 0.0))
        } else {
            run(&input, &state, &weights, self.config.num_layers, self.config.dropout)
        };
        self.tell(&output, &state);
        (output.index_select(0, &back), state.iter().map(|tensor| tensor.index_select(1, &back)).collect())
    }

    /// The weights, the recurrent ones with what is dropped of them in this pass.
    fn weights_of_pass(&self, train: bool) -> Vec<Tensor> {
        let drop = train && self.config.weight_dropout > 0.0;
        let of_pass = |(number, weight): (usize, &Tensor)| match drop && number % self.per_direction == 1 {
            true => dropout(weight.shallow_clone(), self.config.weight_dropout, true),
            false => weight.shallow_clone(),
        };
        self.weights.iter().enumerate().map(of_pass).collect()
    }

    fn layer_by_layer(
        &self,
        input: &Tensor,
        state: &[Tensor],
        weights: &[Tensor],
        run: impl Fn(&Tensor, &[Tensor], &[Tensor]) -> (Tensor, Vec<Tensor>),
    ) -> (Tensor, Vec<Tensor>) {
        let directions = self.config.directions();
        let per_layer = self.per_direction * directions as usize;
        let mut x = input.shallow_clone();
        let mut states: Vec<Vec<Tensor>> = state.iter().map(|_| Vec::new()).collect();
        for layer in 0..self.config.num_layers {
            let own: Vec<Tensor> = state
                .iter()
                .map(|tensor| tensor.narrow(0, layer * directions, directions).contiguous())
                .collect();
            let first = layer as usize * per_layer;
            let (output, after) = run(&x, &own, &weights[first..first + per_layer]);
            for (all, tensor) in states.iter_mut().zip(after) {
                all.push(tensor);
            }
            x = match layer + 1 < self.config.num_layers {
                true => locked_dropout(&output, self.config.dropout, true),
                false => output,
            };
        }
        (x, states.iter().map(|tensors| Tensor::cat(tensors, 0)).collect())
    }

    fn fused(
        &self,
        x: &Tensor,
        state: &[Tensor],
        weights: &[Tensor],
        layers: i64,
        dropout: f64,
        train: bool,
    ) -> (Tensor, Vec<Tensor>) {
        let both = self.config.bidirectional;
        let one = |(output, h): (Tensor, Tensor)| (output, vec![h]);
        match self.config.cell {
            Cell::Lstm => {
                let (output, h, c) = x.lstm(state, weights, true, layers, dropout, train, both, true);
                (output, vec![h, c])
            }
            Cell::Gru => one(x.gru(&state[0], weights, true, layers, dropout, train, both, true)),
            Cell::RnnTanh => one(x.rnn_tanh(&state[0], weights, true, layers, dropout, train, both, true)),
            Cell::RnnRelu => one(x.rnn_relu(&state[0], weights, true, layers, dropout, train, both, true)),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn fused_packed(
        &self,
        data: &Tensor,
        sizes: &Tensor,
        state: &[Tensor],
        weights: &[Tensor],
        layers: i64,
        dropout: f64,
        train: bool,
    ) -> (Tensor, Vec<Tensor>) {
        let both = self.config.bidirectional;
        let one = |(output, h): (Tensor, Tensor)| (output, vec![h]);
        match self.config.cell {
            Cell::Lstm => {
                let (output, h, c) =
                    Tensor::lstm_data(data, sizes, state, weights, true, layers, dropout, train, both);
                (output, vec![h, c])
            }
            Cell::Gru => {
                one(Tensor::gru_data(data, sizes, &state[0], weights, true, layers, dropout, train, both))
            }
            Cell::RnnTanh => one(Tensor::rnn_tanh_data(
                data, sizes, &state[0], weights, true, layers, dropout, train, both,
            )),
            Cell::RnnRelu => one(Tensor::rnn_relu_data(
                data, sizes, &state[0], weights, true, layers, dropout, train, both,
            )),
        }
    }

    fn tell(&self, output: &Tensor, _state: &[Tensor]) {
        let kind = match self.config.cell {
            Cell::Lstm => "LSTM",
            Cell::Gru => "GRU",
            Cell::RnnTanh | Cell::RnnRelu => "RNN",
        };
        let learned: Vec<Option<&Tensor>> = self.weights.iter().map(Some).collect();
        record(&self.name, kind, output, &learned, || {
            let steps = output.numel() / self.config.output_size() as usize;
            let matrices = self.weights.iter().filter(|weight| weight.dim() == 2);
            steps * matrices.map(Tensor::numel).sum::<usize>()
        });
    }
}

/// Dropout that leaves out the same features in all steps: `[batch, steps, features]`.
pub fn locked_dropout(input: &Tensor, share: f64, train: bool) -> Tensor {
    if !train || share == 0.0 {
        return input.shallow_clone();
    }
    input * dropout(input.narrow(1, 0, 1).ones_like(), share, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Parameters;
    use tch::{Device, Kind};

    fn layers(config: RecurrentConfig) -> Result<Recurrent> {
        Recurrent::new(&Parameters::new(Device::Cpu).root(), config)
    }

    fn config(cell: Cell) -> RecurrentConfig {
        RecurrentConfig {
            cell,
            input_size: 3,
            hidden_size: 4,
            num_layers: 2,
            bidirectional: false,
            proj_size: None,
            dropout: 0.0,
            weight_dropout: 0.0,
            variational: false,
        }
    }

    #[test]
    fn a_sequence_in_two_parts_is_the_whole_sequence() -> Result<()> {
        for cell in Cell::ALL {
            let layers = layers(config(cell))?;
            let x = Tensor::rand([2, 7, 3], (Kind::Float, Device::Cpu));
            let zero = layers.zero_state(&x);
            assert_eq!(zero[0].size(), [2, 2, 4]);
            let (whole, end) = layers.forward(&x, &zero, false);
            let (first, middle) = layers.forward(&x.narrow(1, 0, 3), &zero, false);
            let (second, last) = layers.forward(&x.narrow(1, 3, 4), &middle, false);
            assert!(Tensor::cat(&[first, second], 1).allclose(&whole, 1e-6, 1e-6, false), "{cell:?}");
            assert!(last[0].allclose(&end[0], 1e-6, 1e-6, false));
            let (mut state, mut steps) = (zero, Vec::new());
            for step in 0..7 {
                let (output, after) = layers.forward(&x.narrow(1, step, 1), &state, false);
                steps.push(output);
                state = after;
            }
            assert!(Tensor::cat(&steps, 1).allclose(&whole, 1e-6, 1e-6, false), "{cell:?}, step by step");
        }
        Ok(())
    }

    #[test]
    fn dropout_is_off_in_evaluation_and_locked_where_asked() -> Result<()> {
        for variational in [false, true] {
            let layers = layers(RecurrentConfig {
                dropout: 0.5,
                weight_dropout: 0.3,
                variational,
                ..config(Cell::Lstm)
            })?;
            let x = Tensor::rand([2, 5, 3], (Kind::Float, Device::Cpu));
            let zero = layers.zero_state(&x);
            let run = |train| layers.forward(&x, &zero, train).0;
            assert!(run(false).equal(&run(false)));
            assert!(!run(true).equal(&run(true)));
            let lengths = Tensor::from_slice(&[5i64, 2]);
            let packed = |train| layers.forward_packed(&x, &lengths, &zero, train).0;
            assert!(packed(false).narrow(0, 0, 1).allclose(&run(false).narrow(0, 0, 1), 1e-6, 1e-6, false));
            assert!(!packed(true).equal(&packed(true)));
        }
        let ones = Tensor::ones([3, 4, 50], (Kind::Float, Device::Cpu));
        let dropped = locked_dropout(&ones, 0.5, true);
        assert!(dropped.select(1, 0).equal(&dropped.select(1, 3)));
        assert!(!dropped.select(0, 0).equal(&dropped.select(0, 1)));
        Ok(())
    }

    #[test]
    fn projections_are_for_lstms() -> Result<()> {
        let projected =
            layers(RecurrentConfig { proj_size: Some(2), bidirectional: true, ..config(Cell::Lstm) })?;
        let x = Tensor::rand([2, 5, 3], (Kind::Float, Device::Cpu));
        let (output, state) = projected.forward(&x, &projected.zero_state(&x), false);
        assert_eq!(output.size(), [2, 5, 4]);
        assert_eq!((state[0].size(), state[1].size()), (vec![4, 2, 2], vec![4, 2, 4]));
        assert!(layers(RecurrentConfig { proj_size: Some(2), ..config(Cell::Gru) }).is_err());
        assert!(layers(RecurrentConfig { proj_size: Some(4), ..config(Cell::Lstm) }).is_err());
        Ok(())
    }
}
