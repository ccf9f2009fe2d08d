//! The `model` and `data` sections of a recipe for tables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::encoding::Encoding;
use crate::bail_input;
use crate::data::table::{BuiltinTable, ColumnType, TableForm, TableSource};
use crate::models::scripted::ScriptConfig;

/// What is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelName {
    /// Least squares.
    Linear,
    /// Least squares with an L2 penalty: ‖y − Xw − b‖² + alpha ‖w‖².
    Ridge,
    /// Least squares with an L1 penalty: ‖y − Xw − b‖² / 2n + alpha ‖w‖₁.
    Lasso,
    /// Both: ‖y − Xw − b‖² / 2n + alpha (l1_ratio ‖w‖₁ + (1 − l1_ratio)/2 ‖w‖²).
    ElasticNet,
    /// Logistic regression of two classes: Σ log-loss + penalty / c.
    Logistic,
    /// Multinomial logistic regression (softmax) of several classes, intercepts summing to zero.
    Multinomial,
    /// Poisson regression of counts with a log link: mean half deviance + alpha/2 ‖w‖².
    Poisson,
    /// Huber's loss with its scale estimated along: Σ (σ + H((y − Xw − b)/σ) σ) + alpha ‖w‖².
    Huber,
    /// Quantile regression: mean pinball loss + alpha ‖w‖₁.
    Quantile,
    /// A dense network, trained by gradient descent.
    Mlp,
}

impl ModelName {
    /// All of them.
    pub const ALL: [ModelName; 10] = [
        Self::Linear,
        Self::Ridge,
        Self::Lasso,
        Self::ElasticNet,
        Self::Logistic,
        Self::Multinomial,
        Self::Poisson,
        Self::Huber,
        Self::Quantile,
        Self::Mlp,
    ];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Ridge => "ridge",
            Self::Lasso => "lasso",
            Self::ElasticNet => "elastic-net",
            Self::Logistic => "logistic",
            Self::Multinomial => "multinomial",
            Self::Poisson => "poisson",
            Self::Huber => "huber",
            Self::Quantile => "quantile",
            Self::Mlp => "mlp",
        }
    }

    /// Whether the loss is the squared error.
    pub fn is_least_squares(self) -> bool {
        matches!(self, Self::Linear | Self::Ridge | Self::Lasso | Self::ElasticNet)
    }
}

/// What a fit with classes or numbers is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// A number.
    Number,
    /// One of two classes.
    TwoClasses,
    /// One of several classes.
    Classes,
}

/// A penalty on the coefficients, the intercept aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Penalty {
    /// None.
    None,
    /// Σ w² / 2.
    L2,
    /// Σ |w|.
    L1,
    /// l1_ratio Σ |w| + (1 − l1_ratio) Σ w² / 2.
    ElasticNet,
}

/// How the coefficients are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Chosen by model and size; the log says which and why.
    #[default]
    Auto,
    /// QR decomposition of the design, block by block.
    Qr,
    /// Cholesky decomposition of the normal equations.
    Cholesky,
    /// Singular value decomposition: the shortest of all solutions where there are several.
    Svd,
    /// Newton's method (iteratively reweighted least squares for generalised linear models).
    Newton,
    /// Limited-memory BFGS.
    Lbfgs,
    /// Coordinate descent, within Newton's method where the loss is not quadratic.
    Coordinate,
    /// Interior point method (quantile regression).
    Interior,
    /// Gradient descent on all rows at once, by the trainer.
    Gd,
    /// The optimizer of the `training` section on batches, by the trainer.
    Gradient,
}

impl Solver {
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Qr => "qr",
            Self::Cholesky => "cholesky",
            Self::Svd => "svd",
            Self::Newton => "newton",
            Self::Lbfgs => "lbfgs",
            Self::Coordinate => "coordinate",
            Self::Interior => "interior",
            Self::Gd => "gd",
            Self::Gradient => "gradient",
        }
    }
}

/// An activation of a dense network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// 1 / (1 + exp(−x))
    Sigmoid,
    /// tanh x
    Tanh,
}

/// The `model` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RegressionModelConfig {
    /// What is fitted.
    pub name: ModelName,
    /// Whether there is an intercept.
    #[serde(default = "yes")]
    pub intercept: bool,
    /// Strength of the penalty of `ridge`, `lasso`, `elastic-net` (1 if left out), `poisson`, `quantile` (0) and `huber` (0.0001).
    pub alpha: Option<f64>,
    /// Share of the L1 part in an elastic net; 0.5 if left out.
    pub l1_ratio: Option<f64>,
    /// Penalty of `logistic` and `multinomial`; `l2` if left out.
    pub penalty: Option<Penalty>,
    /// Inverse strength of that penalty; 1 if left out.
    pub c: Option<f64>,
    /// From how many scales on Huber's loss is linear; 1.35 if left out.
    pub epsilon: Option<f64>,
    /// Which quantile; 0.5 if left out.
    pub quantile: Option<f64>,
    /// How the coefficients are found.
    #[serde(default)]
    pub solver: Solver,
    /// When an iterative solver stops: the largest change of a coefficient, relative to the largest coefficient (`newton`); the gradient
    /// per row (`lbfgs`); the duality gap relative to the loss without features (`coordinate`, `interior`). Chosen by solver if left out.
    pub tolerance: Option<f64>,
    /// Iterations after which an iterative solver gives up; chosen by solver if left out.
    pub max_iterations: Option<u64>,
    /// Widths of the hidden layers of `mlp`.
    #[serde(default)]
    pub hidden: Vec<i64>,
    /// Activation of the hidden layers.
    #[serde(default)]
    pub activation: Activation,
    /// Dropout after each hidden activation.
    #[serde(default)]
    pub dropout: f64,
    /// Batch normalisation before each hidden activation.
    #[serde(default)]
    pub batch_norm: bool,
    /// The module that stands in place of the layers of `mlp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<ScriptConfig>,
    /// What `mlp` predicts: a number, one of two classes (one sigmoid output), one of several (softmax). By the target if left out.
    pub goal: Option<Goal>,
    /// Columns of the design; counted in the data if left out.
    pub inputs: Option<i64>,
    /// Outputs; counted in the data if left out.
    pub outputs: Option<i64>,
}

fn yes() -> bool {
    true
}

impl RegressionModelConfig {
    /// A model with every key at its default.
    pub fn new(name: ModelName) -> Self {
        Self {
            name,
            intercept: true,
            alpha: None,
            l1_ratio: None,
            penalty: None,
            c: None,
            epsilon: None,
            quantile: None,
            solver: Solver::Auto,
            tolerance: None,
            max_iterations: None,
            hidden: Vec::new(),
            activation: Activation::Relu,
            dropout: 0.0,
            batch_norm: false,
            script: None,
            goal: None,
            inputs: None,
            outputs: None,
        }
    }

    /// Whether the trainer fits it, by steps over batches.
    pub fn is_trained(&self) -> bool {
        self.name == ModelName::Mlp || matches!(self.solver, Solver::Gd | Solver::Gradient)
    }

    /// What is predicted, as far as the model decides it.
    pub fn goal(&self) -> Option<Goal> {
        match self.name {
            ModelName::Logistic => Some(Goal::TwoClasses),
            ModelName::Multinomial => Some(Goal::Classes),
            ModelName::Mlp => self.goal,
            _ => Some(Goal::Number),
        }
    }

    /// The strengths of the L1 and the L2 penalty: loss + l1 ‖w‖₁ + l2/2 ‖w‖², the loss being a sum over `weight` rows. For `huber` the loss
    /// is the sum that [`ModelName::Huber`] names.
    pub fn strengths(&self, weight: f64) -> (f64, f64) {
        let alpha = self.alpha();
        let ratio = self.l1_ratio.unwrap_or(0.5);
        match self.name {
            ModelName::Linear | ModelName::Mlp => (0.0, 0.0),
            // Half of the sum of squares is what is minimised, so the factors are alpha and not 2 alpha.
            ModelName::Ridge => (0.0, alpha),
            ModelName::Lasso => (weight * alpha, 0.0),
            ModelName::ElasticNet => (weight * alpha * ratio, weight * alpha * (1.0 - ratio)),
            ModelName::Poisson => (0.0, weight * alpha),
            ModelName::Huber => (0.0, 2.0 * alpha),
            ModelName::Quantile => (weight * alpha, 0.0),
            ModelName::Logistic | ModelName::Multinomial => {
                let strength = 1.0 / self.c.unwrap_or(1.0);
                match self.penalty() {
                    Penalty::None => (0.0, 0.0),
                    Penalty::L2 => (0.0, strength),
                    Penalty::L1 => (strength, 0.0),
                    Penalty::ElasticNet => (ratio * strength, (1.0 - ratio) * strength),
                }
            }
        }
    }

    /// The strength with its default.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(match self.name {
            ModelName::Ridge | ModelName::Lasso | ModelName::ElasticNet => 1.0,
            ModelName::Huber => 1e-4,
            _ => 0.0,
        })
    }

    /// The penalty of a classifier.
    pub fn penalty(&self) -> Penalty {
        self.penalty.unwrap_or(Penalty::L2)
    }

    /// Whether coefficients are shrunk, so that the scale of the features matters.
    pub fn is_penalised(&self) -> bool {
        let (l1, l2) = self.strengths(1.0);
        l1 > 0.0 || l2 > 0.0
    }

    /// Checks every value on its own and against the others.
    pub fn validate(&self) -> Result<()> {
        use ModelName::*;
        let name = self.name.name();
        let only = |key: &str, given: bool, models: &[ModelName]| -> Result<()> {
            if given && !models.contains(&self.name) {
                let models: Vec<&str> = models.iter().map(|model| model.name()).collect();
                bail_input!("model.{key} does not go with {name}: it belongs to {}", models.join(", "));
            }
            Ok(())
        };
        only("alpha", self.alpha.is_some(), &[Ridge, Lasso, ElasticNet, Poisson, Huber, Quantile])?;
        only("l1_ratio", self.l1_ratio.is_some(), &[ElasticNet, Logistic, Multinomial])?;
        only("penalty", self.penalty.is_some(), &[Logistic, Multinomial])?;
        only("c", self.c.is_some(), &[Logistic, Multinomial])?;
        only("epsilon", self.epsilon.is_some(), &[Huber])?;
        only("quantile", self.quantile.is_some(), &[Quantile])?;
        only("hidden", !self.hidden.is_empty(), &[Mlp])?;
        only("dropout", self.dropout != 0.0, &[Mlp])?;
        only("batch_norm", self.batch_norm, &[Mlp])?;
        only("script", self.script.is_some(), &[Mlp])?;
        only("goal", self.goal.is_some(), &[Mlp])?;
        if self.script.is_some() && (!self.hidden.is_empty() || self.dropout != 0.0 || self.batch_norm) {
            bail_input!(
                "model.script stands in place of model.hidden, dropout and batch_norm: leave them out"
            );
        }
        if self.alpha.is_some_and(|alpha| !alpha.is_finite() || alpha < 0.0) {
            bail_input!("model.alpha must be at least 0");
        }
        if self.c.is_some_and(|c| !c.is_finite() || c <= 0.0) {
            bail_input!("model.c must be above 0");
        }
        if self.l1_ratio.is_some_and(|ratio| !(0.0..=1.0).contains(&ratio)) {
            bail_input!("model.l1_ratio must be between 0 and 1");
        }
        if self.epsilon.is_some_and(|epsilon| !epsilon.is_finite() || epsilon < 1.0) {
            bail_input!("model.epsilon must be at least 1");
        }
        if self.quantile.is_some_and(|quantile| !(quantile > 0.0 && quantile < 1.0)) {
            bail_input!("model.quantile must be between 0 and 1");
        }
        if self.tolerance.is_some_and(|tolerance| !tolerance.is_finite() || tolerance <= 0.0) {
            bail_input!("model.tolerance must be above 0");
        }
        if self.max_iterations == Some(0) {
            bail_input!("model.max_iterations is 0: it must be at least 1");
        }
        if self.hidden.iter().any(|width| *width < 1) {
            bail_input!("model.hidden: a layer needs at least one unit");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            bail_input!("model.dropout is {}: it must be at least 0 and below 1", self.dropout);
        }
        let (l1, _) = self.strengths(1.0);
        let fitting: &[Solver] = match self.name {
            Linear | Ridge => {
                &[Solver::Qr, Solver::Cholesky, Solver::Svd, Solver::Lbfgs, Solver::Gd, Solver::Gradient]
            }
            Lasso | ElasticNet => &[Solver::Coordinate],
            Logistic | Multinomial if l1 > 0.0 => &[Solver::Coordinate],
            Logistic | Multinomial => &[Solver::Newton, Solver::Lbfgs, Solver::Gd, Solver::Gradient],
            Poisson | Huber => &[Solver::Newton, Solver::Lbfgs],
            Quantile => &[Solver::Interior],
            Mlp => &[Solver::Gd, Solver::Gradient],
        };
        if self.solver != Solver::Auto && !fitting.contains(&self.solver) {
            let names: Vec<&str> = fitting.iter().map(|solver| solver.name()).collect();
            let what = if l1 > 0.0 && matches!(self.name, Logistic | Multinomial) {
                " with an L1 penalty"
            } else {
                ""
            };
            bail_input!(
                "model.solver: {} does not fit {name}{what}; choose auto, {}",
                self.solver.name(),
                names.join(", ")
            );
        }
        if self.name != Mlp
            && self.is_trained()
            && (self.alpha.is_some() || self.c.is_some() || self.penalty.is_some())
        {
            bail_input!(
                "model: {} takes no alpha, c or penalty: a fit by the trainer is penalised by training.l1, training.l2 or weight decay",
                self.solver.name()
            );
        }
        Ok(())
    }
}

/// What is done with missing values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingPolicy {
    /// They are an error, counted by column.
    #[default]
    Error,
    /// Rows with one are left out.
    Drop,
    /// Numbers become the mean of the training rows, categories the most frequent one.
    Mean,
    /// Numbers become the median of the training rows, categories the most frequent one.
    Median,
    /// As `mean`, with a further column that is 1 where the value was missing; for categories, a category of its own.
    Indicator,
}

/// What is done with a category that no training row has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnseenPolicy {
    /// It is an error.
    #[default]
    Error,
    /// It counts as the reference category.
    Reference,
}

/// Where a table comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableFormat {
    /// What the file at `path` turns out to be.
    #[default]
    Auto,
    /// Compiled in (`assets/README.md`).
    Diabetes,
    /// Compiled in (`assets/README.md`).
    BreastCancer,
    /// Compiled in (`assets/README.md`).
    Iris,
    /// Made up: y = 3x + 2 with noise.
    Line,
    /// Made up: 100 features and a label.
    Binary,
    /// Made up: the exclusive or of two features.
    Xor,
}

impl TableFormat {
    fn builtin(self) -> Option<BuiltinTable> {
        match self {
            Self::Auto => None,
            Self::Diabetes => Some(BuiltinTable::Diabetes),
            Self::BreastCancer => Some(BuiltinTable::BreastCancer),
            Self::Iris => Some(BuiltinTable::Iris),
            Self::Line => Some(BuiltinTable::Line),
            Self::Binary => Some(BuiltinTable::Binary),
            Self::Xor => Some(BuiltinTable::Xor),
        }
    }
}

/// The `data` section.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TableDataConfig {
    /// What is at `path`, or the name of a compiled-in table.
    #[serde(default)]
    pub format: TableFormat,
    /// The table; not for compiled-in ones.
    pub path: Option<PathBuf>,
    /// A table of test rows with the same columns; without one, `test_fraction` of the rows are held out.
    pub test_path: Option<PathBuf>,
    /// Names of the columns of a file without a header.
    pub columns: Option<Vec<String>>,
    /// The character between fields; found out if left out.
    pub delimiter: Option<char>,
    /// Whether fields may stand in double quotes; found out if left out.
    pub quoting: Option<bool>,
    /// Types of columns that are not to be guessed.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// The column that is predicted.
    pub target: Option<String>,
    /// The columns it is predicted from; all others if left out.
    pub features: Option<Vec<String>>,
    /// Columns that are left out.
    #[serde(default)]
    pub drop: Vec<String>,
    /// A column with the weight of each row.
    pub weights: Option<String>,
    /// A column whose equal values belong together: never partly in training and partly in test rows.
    pub groups: Option<String>,
    /// What is done with missing values.
    #[serde(default)]
    pub missing: MissingPolicy,
    /// What is done with a category that no training row has.
    #[serde(default)]
    pub unseen: UnseenPolicy,
    /// The reference category of a column; the first in ascending order if left out.
    #[serde(default)]
    pub reference: BTreeMap<String, String>,
    /// More categories than this in a feature are an error.
    #[serde(default = "hundred")]
    pub max_categories: usize,
    /// Whether features are centred and scaled to a deviation of 1 before the fit. Coefficients are reported in the units of the table
    /// in either case. If left out: for penalised fits and for the trainer.
    pub standardize: Option<bool>,
    /// Share of the rows held out for the test; 0 for none.
    #[serde(default = "fifth")]
    pub test_fraction: f64,
    /// Share of the training rows held out for validation where the trainer fits; 0 for none.
    #[serde(default = "tenth")]
    pub val_fraction: f64,
    /// Leave out rows that cannot be read, and say how many.
    #[serde(default)]
    pub skip_bad: bool,
    /// Read the file anew for each pass instead of keeping it in memory.
    #[serde(default)]
    pub stream: bool,
    /// Features as columns of a design; found out in the training rows.
    pub encoding: Option<Encoding>,
}

fn hundred() -> usize {
    100
}

fn fifth() -> f64 {
    0.2
}

fn tenth() -> f64 {
    0.1
}

impl TableDataConfig {
    /// The keys that a `--data` argument sets.
    pub fn settings(argument: &str) -> Vec<(&'static str, serde_json::Value)> {
        use serde_json::{Value, json};
        match BuiltinTable::ALL.iter().find(|table| table.name() == argument) {
            Some(table) => vec![
                ("data.format", json!(table.name())),
                ("data.path", Value::Null),
                ("data.target", json!(table.target())),
            ],
            None => vec![("data.format", json!("auto")), ("data.path", json!(argument))],
        }
    }

    /// Where the table is.
    ///
    /// # Errors
    /// There is neither a path nor a compiled-in table.
    pub fn source(&self) -> Result<TableSource> {
        match (self.format.builtin(), &self.path) {
            (Some(table), _) => Ok(TableSource::Builtin(table)),
            (None, Some(path)) => Ok(TableSource::Path(path.clone())),
            (None, None) => bail_input!("data.path is missing: give --data FILE"),
        }
    }

    /// How the table is written.
    pub fn form(&self) -> TableForm {
        TableForm {
            columns: self.columns.clone(),
            delimiter: self.delimiter,
            quoting: self.quoting,
            types: self.types.clone(),
        }
    }

    /// Checks every value on its own.
    pub fn validate(&self) -> Result<()> {
        if self.format != TableFormat::Auto && self.path.is_some() {
            bail_input!(
                "data.path: a compiled-in table has no path; leave out --data or set data.format to auto"
            );
        }
        self.source()?;
        for (key, value) in [("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)] {
            if !(0.0..1.0).contains(&value) {
                bail_input!("data.{key} is {value}: it must be at least 0 and below 1");
            }
        }
        if self.max_categories < 2 {
            bail_input!("data.max_categories is {}: it must be at least 2", self.max_categories);
        }
        if self.features.as_ref().is_some_and(Vec::is_empty) {
            bail_input!("data.features is empty: name at least one column, or leave it out");
        }
        Ok(())
    }
}
