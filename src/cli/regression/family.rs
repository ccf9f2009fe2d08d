//! What the family tells the shared verbs: recipes, data, networks.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::report;
use crate::bail_input;
use crate::cli::family::{Family, FamilyRecipe, Network};
use crate::data::Splits;
use crate::data::order::hold_out;
use crate::data::table::{TableReader, TableRows, TableSource};
use crate::models::Parameters;
use crate::models::scripted::{ATTACHMENT, ScriptHead};
use crate::models::table_network::{HiddenActivation, TableModel, TableNetworkConfig};
use crate::recipe::{self, Preset};
use crate::regression::algebra::numbers;
use crate::regression::config::{
    Activation, Goal, ModelName, RegressionModelConfig, Solver, TableDataConfig,
};
use crate::regression::encoding::Encoding;
use crate::regression::prepare::{RawBlock, guess_goal, prepare, read_with};
use crate::reporting::{Log, Report};
use crate::tasks::table_prediction::TablePrediction;
use crate::tasks::{Evaluation, Mode};

/// Linear models and small networks on tables.
pub struct Regression;

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        &[$(Preset { name: $name, json: include_str!(concat!("../../../models/regression/", $name, ".json")) }),*]
    };
}

impl Family for Regression {
    const NAME: &'static str = "regression";
    const ABOUT: &'static str = "Fit, judge, run and export linear models and small networks on tables";
    const DEFAULT_RECIPE: &'static str = "linear";
    type Model = RegressionModelConfig;
    type Data = TableDataConfig;
    type Dataset = TableRows;
    type Task = TablePrediction;

    fn presets() -> &'static [Preset] {
        presets![
            "linear",
            "ridge",
            "lasso",
            "elastic-net",
            "logistic",
            "multinomial",
            "poisson",
            "huber",
            "quantile",
            "gd-line",
            "mlp",
            "mlp-california",
            "dense-binary",
            "sigmoid-2-3-1",
        ]
    }

    fn models() -> Vec<&'static str> {
        ModelName::ALL.iter().map(|model| model.name()).collect()
    }

    fn data_settings(argument: &str) -> Vec<(&'static str, Value)> {
        TableDataConfig::settings(argument)
    }

    fn script_settings() -> Result<Vec<(&'static str, Value)>> {
        // The layers of the recipe are another network's.
        Ok(vec![
            ("model.name", json!(ModelName::Mlp)),
            ("model.hidden", json!([])),
            ("model.dropout", json!(0.0)),
            ("model.batch_norm", json!(false)),
        ])
    }

    fn validate(recipe: &FamilyRecipe<Self>) -> Result<()> {
        recipe.model.validate()?;
        recipe.data.validate()?;
        if recipe.training.class_weights.is_some() {
            bail_input!("training.class_weights is not for tables: weigh rows with a column, data.weights");
        }
        if recipe.training.explain.is_some() {
            bail_input!("training.explain is for images; `summary` explains a model of tables");
        }
        if recipe.model.is_trained() && recipe.data.stream {
            bail_input!(
                "data.stream: the trainer keeps the table in memory; stream linear, ridge or logistic with a solver"
            );
        }
        Ok(())
    }

    fn open(recipe: &mut FamilyRecipe<Self>, log: &Log) -> Result<Splits<Arc<TableRows>>> {
        if let Some(script) = &recipe.model.script {
            recipe.attachments.add_file(ATTACHMENT, &script.file);
        }
        let threads = recipe.training.threads.unwrap_or(1);
        let goal = goal_of(recipe)?;
        let (encoding, train, test) = match &recipe.data.encoding {
            // A run that goes on keeps what it found out at its beginning.
            Some(known) => {
                let prepared = prepare_again(recipe, known, goal, threads)?;
                (known.clone(), prepared.0, prepared.1)
            }
            None => {
                let prepared = prepare(&recipe.data, goal, recipe.training.seed, threads)?;
                for warning in prepared.warnings {
                    log.warning(warning);
                }
                (prepared.encoding, prepared.train, prepared.test)
            }
        };
        complete_model(recipe, goal, &encoding)?;
        let rows = rows_of(recipe, &encoding, &train)?;
        let count = rows.1.len();
        let (learned, held_out) = hold_out(count, recipe.data.val_fraction, recipe.training.seed)?;
        let parts = |positions: &[usize]| select(&rows, encoding.mean.len(), positions);
        if recipe.model.solver == Solver::Gd {
            recipe.training.batch_size = learned.len();
            recipe.training.eval_batch_size.get_or_insert(learned.len());
        }
        let test = match test.is_empty() {
            true => None,
            false => {
                let rows = rows_of(recipe, &encoding, &test)?;
                Some(Arc::new(select(&rows, encoding.mean.len(), &(0..rows.1.len()).collect::<Vec<_>>())))
            }
        };
        let validation = (!held_out.is_empty()).then(|| Arc::new(parts(&held_out)));
        let train = Arc::new(parts(&learned));
        recipe.data.encoding = Some(encoding);
        Ok(Splits { train, validation, test })
    }

    fn model_of(recipe: &FamilyRecipe<Self>) -> RegressionModelConfig {
        let script = recipe.model.script.clone().map(|script| script.kept(&recipe.attachments));
        RegressionModelConfig { script, ..recipe.model.clone() }
    }

    fn build(recipe: &FamilyRecipe<Self>, parameters: Parameters) -> Result<TablePrediction> {
        let encoding = recipe.data.encoding.clone().ok_or_else(|| anyhow!("the recipe has no encoding"))?;
        let goal = recipe.model.goal().ok_or_else(|| anyhow!("the recipe has no goal"))?;
        let model = Self::model_of(recipe);
        let network = TableModel::new(&parameters.root(), &network_config(&model)?, model.script.as_ref())?;
        TablePrediction::new(
            parameters,
            network,
            encoding,
            goal,
            is_target_scaled(&recipe.model, goal),
            is_standardized(recipe),
            recipe.training.label_smoothing,
        )
    }

    fn usual_model(name: &str) -> Result<RegressionModelConfig> {
        let mut model: RegressionModelConfig = recipe::typed(serde_json::json!({ "name": name }), "model")?;
        (model.inputs, model.outputs) =
            (Some(10), Some(if model.name == ModelName::Multinomial { 3 } else { 1 }));
        if model.name == ModelName::Mlp {
            model.hidden = vec![64, 64];
        }
        Ok(model)
    }

    fn example_inputs(model: &RegressionModelConfig, batch: i64) -> Result<Vec<(&'static str, Tensor)>> {
        let inputs = model.inputs.ok_or_else(|| crate::bad_input!("model.inputs is not known"))?;
        Ok(vec![("rows", Tensor::f_zeros([batch, inputs], (Kind::Float, Device::Cpu))?)])
    }

    fn network(model: &RegressionModelConfig, device: Device) -> Result<Network> {
        let parameters = Parameters::new(device);
        let network = TableModel::new(&parameters.root(), &network_config(model)?, model.script.as_ref())?;
        Ok(Network { parameters, forward: Box::new(move |inputs| vec![network.forward(&inputs[0], false)]) })
    }

    fn forward(task: &TablePrediction, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(vec![task.forward(&inputs[0], Mode::Evaluate)])
    }

    fn illustrate(
        report: &mut Report,
        recipe: &FamilyRecipe<Self>,
        _task: &Self::Task,
        _data: &TableRows,
        evaluation: &Evaluation,
    ) -> Result<()> {
        let encoding = recipe.data.encoding.as_ref().ok_or_else(|| anyhow!("the recipe has no encoding"))?;
        report::illustrate_evaluation(report, encoding, evaluation)
    }
}

/// What a recipe predicts; found out in the table where a network leaves it open.
pub fn goal_of(recipe: &FamilyRecipe<Regression>) -> Result<Goal> {
    if let Some(goal) = recipe.model.goal() {
        return Ok(goal);
    }
    let reader = TableReader::open(&recipe.data.source()?, &recipe.data.form())?;
    guess_goal(&recipe.data, reader.head(), reader.name())
}

/// Whether the network learns the standardised target: not where it is a linear model, whose coefficients people watch, or a finished one, which has
/// its own units.
fn is_target_scaled(model: &RegressionModelConfig, goal: Goal) -> bool {
    model.name == ModelName::Mlp && goal == Goal::Number && !is_finished(model)
}

/// Whether the network takes standardised columns where the recipe does not say.
fn is_standardized(recipe: &FamilyRecipe<Regression>) -> bool {
    recipe.data.standardize.unwrap_or(!is_finished(&recipe.model))
}

/// Whether it is somebody else's module as it is, from inputs to outputs.
fn is_finished(model: &RegressionModelConfig) -> bool {
    model.script.as_ref().is_some_and(|script| script.head == ScriptHead::None)
}

fn network_config(model: &RegressionModelConfig) -> Result<TableNetworkConfig> {
    let (Some(inputs), Some(outputs)) = (model.inputs, model.outputs) else {
        bail_input!("model.inputs and model.outputs are not known before the table is");
    };
    Ok(TableNetworkConfig {
        widths: [&[inputs][..], &model.hidden, &[outputs]].concat(),
        activation: match model.activation {
            Activation::Relu => HiddenActivation::Relu,
            Activation::Sigmoid => HiddenActivation::Sigmoid,
            Activation::Tanh => HiddenActivation::Tanh,
        },
        dropout: model.dropout,
        batch_norm: model.batch_norm,
        bias: model.intercept,
    })
}

/// Writes into the model what the table decides.
fn complete_model(recipe: &mut FamilyRecipe<Regression>, goal: Goal, encoding: &Encoding) -> Result<()> {
    let classes = encoding.classes.as_ref().map_or(0, Vec::len) as i64;
    let goal = if goal == Goal::Classes && classes == 2 && recipe.model.goal.is_none() {
        Goal::TwoClasses
    } else {
        goal
    };
    if recipe.model.name == ModelName::Mlp {
        recipe.model.goal = Some(goal);
    }
    let outputs = match goal {
        Goal::Number | Goal::TwoClasses => 1,
        Goal::Classes => classes,
    };
    let inputs = encoding.columns().len() as i64;
    for (key, known, found) in
        [("inputs", &mut recipe.model.inputs, inputs), ("outputs", &mut recipe.model.outputs, outputs)]
    {
        let known = *known.get_or_insert(found);
        if known != found {
            bail_input!("model.{key} is {known}, but the table makes it {found}");
        }
    }
    Ok(())
}

/// Training and test rows of a recipe whose encoding is known: the same rows as when it was found out.
pub fn prepare_again(
    recipe: &FamilyRecipe<Regression>,
    encoding: &Encoding,
    goal: Goal,
    threads: usize,
) -> Result<(Vec<RawBlock>, Vec<RawBlock>)> {
    let prepared = prepare(&recipe.data, goal, recipe.training.seed, threads)?;
    if prepared.encoding.features != encoding.features || prepared.encoding.classes != encoding.classes {
        bail_input!(
            "{} is not the table that the run was trained on: its columns or categories differ",
            recipe.data.source()?.name()
        );
    }
    let test = match &recipe.data.test_path {
        Some(path) => read_with(encoding, &TableSource::Path(path.clone()), &recipe.data, threads)?.0,
        None => prepared.test,
    };
    Ok((prepared.train, test))
}

/// Design rows, targets and weights in float32.
type Rows = (Vec<f32>, Vec<f32>, Option<Vec<f32>>);

fn rows_of(recipe: &FamilyRecipe<Regression>, encoding: &Encoding, blocks: &[RawBlock]) -> Result<Rows> {
    let goal = recipe.model.goal().ok_or_else(|| anyhow!("the recipe has no goal"))?;
    let (mut x, mut y, mut weight) = (Vec::new(), Vec::new(), None::<Vec<f32>>);
    let (mean, scale) = encoding.standards(Device::Cpu)?;
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32);
    for block in blocks {
        let design = encoding.encode(&block.x)?;
        let design = match is_standardized(recipe) {
            true => (design - &mean) / &scale,
            false => design,
        };
        x.extend(narrow(numbers(&design)?));
        let target = match is_target_scaled(&recipe.model, goal) {
            true => (&block.y - encoding.target_mean) / encoding.target_scale,
            false => block.y.shallow_clone(),
        };
        y.extend(narrow(numbers(&target)?));
        if let Some(tensor) = &block.weight {
            weight.get_or_insert_default().extend(narrow(numbers(tensor)?));
        }
    }
    Ok((x, y, weight))
}

fn select((x, y, weight): &Rows, columns: usize, positions: &[usize]) -> TableRows {
    let rows = positions.iter().flat_map(|&row| &x[row * columns..(row + 1) * columns]).copied().collect();
    let of = |values: &Vec<f32>| positions.iter().map(|&row| values[row]).collect::<Vec<f32>>();
    TableRows::new(columns, rows, of(y), weight.as_ref().map(of))
}
