//! Arguments of `train` for tables, and what they set in a recipe.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::bail_input;
use crate::cli::TrainArgs;

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct RegressionTrainArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    #[command(flatten)]
    pub table: TableArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Also cross-validate with so many folds (classes keep their shares, groups stay together)
    #[arg(long, value_name = "K")]
    pub cv: Option<usize>,
    /// Leave out standard errors, tests and diagnostics, which take more passes over the rows than the fit
    #[arg(long)]
    pub no_statistics: bool,
}

/// Which table, and what of it.
#[derive(Debug, Default, Args)]
pub struct TableArgs {
    /// The column that is predicted
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    /// The columns it is predicted from [default: all others]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub features: Option<Vec<String>>,
    /// Columns to leave out
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub drop: Option<Vec<String>>,
    /// A column with the weight of each row
    #[arg(long, value_name = "NAME")]
    pub weights: Option<String>,
    /// A column whose equal values are never parted into training and held-out rows
    #[arg(long, value_name = "NAME")]
    pub groups: Option<String>,
    /// A table of test rows
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// Share of the rows held out for the test; 0 for none [default: 0.2]
    #[arg(long, value_name = "SHARE")]
    pub test_fraction: Option<f64>,
    /// error, drop, mean, median or indicator
    #[arg(long, value_name = "POLICY")]
    pub missing: Option<String>,
    /// Categories that no training row has: error, or reference
    #[arg(long, value_name = "POLICY")]
    pub unseen: Option<String>,
    /// The reference category of a column; may be repeated
    #[arg(long, value_name = "NAME=CATEGORY")]
    pub reference: Vec<String>,
    /// Centre and scale the features before the fit: true or false [default: where it matters]
    #[arg(long, value_name = "BOOL")]
    pub standardize: Option<bool>,
    /// Read the file anew for each pass instead of keeping it in memory
    #[arg(long)]
    pub stream: bool,
    #[command(flatten)]
    pub form: FormArgs,
}

/// How a table is written.
#[derive(Debug, Default, Args)]
pub struct FormArgs {
    /// Names of the columns of a file without a header
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// The character between fields [default: found out]
    #[arg(long, value_name = "CHAR")]
    pub delimiter: Option<String>,
    /// Whether fields may stand in double quotes [default: found out]
    #[arg(long, value_name = "BOOL")]
    pub quoting: Option<bool>,
    /// Type of a column: number or category; may be repeated
    #[arg(long, value_name = "NAME=TYPE")]
    pub types: Vec<String>,
}

/// What is fitted and how.
#[derive(Debug, Default, Args)]
pub struct ModelArgs {
    /// auto, qr, cholesky, svd, newton, lbfgs, coordinate, interior, or by the trainer gd (all rows), gradient, sgd, adam (batches)
    #[arg(long, value_name = "NAME")]
    pub solver: Option<String>,
    /// Strength of the penalty of ridge, lasso, elastic-net, poisson, huber, quantile
    #[arg(long, value_name = "X")]
    pub alpha: Option<f64>,
    /// Share of the L1 part in an elastic net
    #[arg(long, value_name = "SHARE")]
    pub l1_ratio: Option<f64>,
    /// Penalty of logistic and multinomial: none, l2, l1 or elastic-net
    #[arg(long, value_name = "NAME")]
    pub penalty: Option<String>,
    /// Inverse strength of that penalty
    #[arg(long, value_name = "X")]
    pub c: Option<f64>,
    /// Which quantile
    #[arg(long, value_name = "SHARE")]
    pub quantile: Option<f64>,
    /// Fit without an intercept
    #[arg(long)]
    pub no_intercept: bool,
    /// When an iterative solver stops
    #[arg(long, value_name = "X")]
    pub tolerance: Option<f64>,
    /// Iterations after which a solver gives up
    #[arg(long, value_name = "N")]
    pub max_iterations: Option<u64>,
    /// Widths of the hidden layers of mlp
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub hidden: Option<Vec<i64>>,
}

/// The delimiter as people write it in a shell.
fn delimiter(text: &str) -> Result<char> {
    let mut letters = text.chars();
    match (text, letters.next(), letters.next()) {
        ("\\t" | "tab", ..) => Ok('\t'),
        (_, Some(letter), None) => Ok(letter),
        _ => bail_input!("--delimiter {text}: give one character, or tab"),
    }
}

/// `NAME=VALUE` pairs as an object.
fn pairs(list: &[String], flag: &str) -> Result<Value> {
    let mut map = serde_json::Map::new();
    for pair in list {
        // Names may hold `=`, types and most categories do not.
        let Some((name, value)) = pair.rsplit_once('=') else {
            bail_input!("--{flag} {pair}: write NAME=VALUE")
        };
        map.insert(name.to_owned(), json!(value));
    }
    Ok(Value::Object(map))
}

impl FormArgs {
    /// The recipe keys that the flags set.
    pub fn settings(&self) -> Result<Vec<(&'static str, Value)>> {
        let mut list = Vec::new();
        list.extend(self.columns.iter().map(|columns| ("data.columns", json!(columns))));
        if let Some(text) = &self.delimiter {
            list.push(("data.delimiter", json!(delimiter(text)?)));
        }
        list.extend(self.quoting.iter().map(|quoting| ("data.quoting", json!(quoting))));
        if !self.types.is_empty() {
            list.push(("data.types", pairs(&self.types, "types")?));
        }
        Ok(list)
    }
}

impl TableArgs {
    /// The recipe keys that the flags set.
    pub fn settings(&self) -> Result<Vec<(&'static str, Value)>> {
        let mut list = self.form.settings()?;
        list.extend(self.target.iter().map(|value| ("data.target", json!(value))));
        list.extend(self.features.iter().map(|value| ("data.features", json!(value))));
        list.extend(self.drop.iter().map(|value| ("data.drop", json!(value))));
        list.extend(self.weights.iter().map(|value| ("data.weights", json!(value))));
        list.extend(self.groups.iter().map(|value| ("data.groups", json!(value))));
        list.extend(self.test.iter().map(|value| ("data.test_path", json!(value))));
        list.extend(self.test_fraction.iter().map(|value| ("data.test_fraction", json!(value))));
        list.extend(self.missing.iter().map(|value| ("data.missing", json!(value))));
        list.extend(self.unseen.iter().map(|value| ("data.unseen", json!(value))));
        if !self.reference.is_empty() {
            list.push(("data.reference", pairs(&self.reference, "reference")?));
        }
        list.extend(self.standardize.iter().map(|value| ("data.standardize", json!(value))));
        if self.stream {
            list.push(("data.stream", json!(true)));
        }
        Ok(list)
    }
}

impl ModelArgs {
    /// The recipe keys that the flags set.
    pub fn settings(&self) -> Vec<(&'static str, Value)> {
        let mut list = Vec::new();
        match self.solver.as_deref() {
            Some(optimizer @ ("sgd" | "adam" | "adamw" | "adagrad" | "rmsprop")) => {
                list.push(("model.solver", json!("gradient")));
                list.push(("training.optimizer", json!({ "name": optimizer })));
            }
            Some("gd") => {
                list.push(("model.solver", json!("gd")));
                list.push(("training.optimizer.name", json!("sgd")));
            }
            Some(solver) => list.push(("model.solver", json!(solver))),
            None => {}
        }
        list.extend(self.alpha.iter().map(|value| ("model.alpha", json!(value))));
        list.extend(self.l1_ratio.iter().map(|value| ("model.l1_ratio", json!(value))));
        list.extend(self.penalty.iter().map(|value| ("model.penalty", json!(value))));
        list.extend(self.c.iter().map(|value| ("model.c", json!(value))));
        list.extend(self.quantile.iter().map(|value| ("model.quantile", json!(value))));
        if self.no_intercept {
            list.push(("model.intercept", json!(false)));
        }
        list.extend(self.tolerance.iter().map(|value| ("model.tolerance", json!(value))));
        list.extend(self.max_iterations.iter().map(|value| ("model.max_iterations", json!(value))));
        list.extend(self.hidden.iter().map(|value| ("model.hidden", json!(value))));
        list
    }
}

/// Puts settings before those of `--set`, which win, and after those of the shared flags, except for the learning rate of an optimizer that
/// `--solver` names.
pub fn merged(mut train: TrainArgs, settings: Vec<(&'static str, Value)>) -> TrainArgs {
    let mut all: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let names_optimizer = settings.iter().any(|(key, _)| *key == "training.optimizer");
    if let (true, Some(rate)) = (names_optimizer, train.lr) {
        all.push(format!("training.optimizer.lr={rate}"));
    }
    if let (true, Some(decay)) = (names_optimizer, train.weight_decay) {
        all.push(format!("training.optimizer.weight_decay={decay}"));
    }
    all.append(&mut train.set);
    train.set = all;
    train
}

/// The shared flags that mean something to the trainer only.
pub fn trainer_flags(train: &TrainArgs) -> Vec<&'static str> {
    let given = [
        ("--epochs", train.epochs.is_some()),
        ("--steps", train.steps.is_some()),
        ("--batch-size", train.batch_size.is_some()),
        ("--accumulate", train.accumulate.is_some()),
        ("--optimizer", train.optimizer.is_some()),
        ("--lr", train.lr.is_some()),
        ("--weight-decay", train.weight_decay.is_some()),
        ("--schedule", train.schedule.is_some()),
        ("--warmup", train.warmup.is_some()),
        ("--clip-norm", train.clip_norm.is_some()),
        ("--ema", train.ema.is_some()),
        ("--early-stop", train.early_stop.is_some()),
        ("--init-from", train.init_from.is_some()),
        ("--label-smoothing", train.label_smoothing.is_some()),
        ("--freeze", !train.freeze.is_empty()),
        ("--profile", train.profile),
        ("--processes", train.group.processes.is_some()),
        ("--init", train.group.init.is_some()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
}
