//! The layer table of `info`: what each layer makes of its input, with its parameters and its multiply-adds.

use std::cell::RefCell;

use serde::Serialize;
use tch::Tensor;

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct LayerRow {
    /// The layer's name in the checkpoint.
    pub name: String,
    /// `torch.nn`'s name of its kind.
    pub kind: &'static str,
    /// Shape of its output, batch first.
    pub output: Vec<i64>,
    /// How many numbers it learns.
    pub parameters: usize,
    /// Multiplications with an addition for the input given, biases not counted.
    pub multiply_adds: usize,
}

thread_local! {
    static ROWS: RefCell<Option<Vec<LayerRow>>> = const { RefCell::new(None) };
}

/// Runs `forward` and returns the layers it went through, in the order of the calls.
pub fn layers_of<T>(forward: impl FnOnce() -> T) -> (T, Vec<LayerRow>) {
    ROWS.with_borrow_mut(|rows| *rows = Some(Vec::new()));
    let result = forward();
    let rows = ROWS.with_borrow_mut(Option::take).unwrap_or_default();
    (result, rows)
}

/// Called by every layer with its output; costs a thread-local look-up where nobody asked for a table.
pub(super) fn record(
    name: &str,
    kind: &'static str,
    output: &Tensor,
    learned: &[Option<&Tensor>],
    multiply_adds: impl FnOnce() -> usize,
) {
    ROWS.with_borrow_mut(|rows| {
        if let Some(rows) = rows {
            rows.push(LayerRow {
                name: name.to_owned(),
                kind,
                output: output.size(),
                parameters: learned.iter().flatten().map(|tensor| tensor.numel()).sum(),
                multiply_adds: multiply_adds(),
            });
        }
    });
}
