//! `calibrate`: one number that makes a classifier's probabilities true, kept in the run and used by `eval` and `predict`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::Args;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::args::{Part, RunArgs};
use super::cnn::{Cnn, for_each_batch};
use super::family::Family;
use super::session::Session;
use crate::data::Dataset;
use crate::error::Interrupted;
use crate::reporting::{Log, Verbosity, format};
use crate::tasks::Mode;
use crate::tasks::calibration::{bins, expected_error, fit_temperature};
use crate::training::signals::Interrupt;
use crate::{bad_input, bail_input, files, recipe};

/// Arguments of `calibrate`.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Data in place of the run's
    #[arg(long, value_name = "DIR|NAME")]
    data: Option<String>,
    /// Which part to fit on; not the test part, whose metrics would no longer be those of unseen data
    #[arg(long, value_enum, default_value_t = Part::Validation)]
    split: Part,
}

/// `calibration.json` of a run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Calibration {
    /// The step of the checkpoint that it is for.
    pub step: u64,
    /// What logits are divided by.
    pub temperature: f64,
    /// The part it was fitted on.
    pub split: String,
    /// Mean cross-entropy without it and with it.
    pub loss: [f64; 2],
    /// Expected calibration error without it and with it.
    pub ece: [f64; 2],
}

const FILE: &str = "calibration.json";

impl Calibration {
    /// That of a run, if it has one.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = files::read_text(&path)?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| bad_input!("{}: {error}; `calibrate` writes it anew", path.display()))
    }
}

/// Runs the verb.
pub fn calibrate(arguments: &CalibrateArgs) -> Result<()> {
    let run = &arguments.run.run;
    let interrupt = Interrupt::listen()?;
    let log = Log::new(Verbosity::from_flags(false, false));
    let mut session = Session::<Cnn>::open(&arguments.run.as_model())?;
    session.task.set_temperature(1.0);
    if arguments.run.checkpoint.as_deref().is_some_and(|name| name.starts_with("average:")) {
        bail_input!("calibrate finds the temperature of one checkpoint, not of a mean of several");
    }
    if session.task.is_multi_label() {
        bail_input!("calibrate is for one label to an image; this run has several");
    }
    let mut value = serde_json::to_value(&session.recipe)?;
    for (key, setting) in arguments.data.iter().flat_map(|data| Cnn::data_settings(data)) {
        recipe::set(&mut value, key, setting)?;
    }
    let mut recipe = recipe::typed(value, "--data")?;
    let splits = Cnn::open(&mut recipe, &log)?;
    let data = match arguments.split {
        Part::Train => Some(splits.train),
        Part::Validation => splits.validation,
        Part::Test => splits.test,
    };
    let name = format!("{:?}", arguments.split).to_lowercase();
    let data = data.ok_or_else(|| bad_input!("the data have no {name} part; choose another --split"))?;

    let (logits, labels) = predictions(&recipe, &session, &data, &interrupt, &log)?;
    let temperature = fit_temperature(&logits, &labels)?;
    let (loss, ece) = quality(&logits, &labels, 1.0)?;
    let (better_loss, better_ece) = quality(&logits, &labels, temperature)?;
    let step = session.step.unwrap_or_default();
    let calibration = Calibration {
        step,
        temperature,
        split: name.clone(),
        loss: [loss, better_loss],
        ece: [ece, better_ece],
    };
    let text = serde_json::to_string_pretty(&calibration)? + "\n";
    files::write_atomic(&run.join(FILE), text.as_bytes())?;
    log.result(format!(
        "temperature {temperature:.4} on the {name} part ({} samples): loss {} → {}, calibration error {} → {}; eval and predict use it from now \
         on ({})",
        format::count(data.len() as u64),
        format::number(loss),
        format::number(better_loss),
        format::percent(ece),
        format::percent(better_ece),
        run.join(FILE).display()
    ));
    Ok(())
}

/// Logits `[sample, class]` and class numbers of a data set, float64 and int64 on the host.
fn predictions(
    recipe: &super::FamilyRecipe<Cnn>,
    session: &Session<Cnn>,
    data: &Arc<<Cnn as Family>::Dataset>,
    interrupt: &Interrupt,
    log: &Log,
) -> Result<(Tensor, Tensor)> {
    let batches = data.len().div_ceil(recipe.training.eval_batch_size()) as u64;
    let bar = log.progress("predictions", 0, Some(batches));
    let (mut logits, mut labels) = (Vec::new(), Vec::new());
    let task = &session.task;
    let went_through = for_each_batch(recipe, task, data, interrupt, &bar, |pixels, batch_labels| {
        let scores = task.forward(&task.normalise(pixels)?, Mode::Evaluate);
        logits.push(scores.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?);
        labels.push(batch_labels.f_to_device(Device::Cpu)?);
        Ok(())
    })?;
    if !went_through {
        return Err(anyhow!(Interrupted("interrupted: nothing is written".to_owned())));
    }
    Ok((Tensor::f_cat(&logits, 0)?, Tensor::f_cat(&labels, 0)?))
}

/// Mean cross-entropy and expected calibration error at a temperature.
fn quality(logits: &Tensor, labels: &Tensor, temperature: f64) -> Result<(f64, f64)> {
    let logits = logits.f_div_scalar(temperature)?;
    let loss = logits
        .f_cross_entropy_loss(labels, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)?
        .f_double_value(&[])?;
    let (confidence, predicted) = logits.f_softmax(-1, Kind::Double)?.f_max_dim(-1, false)?;
    let right = Vec::<bool>::try_from(predicted.f_eq_tensor(labels)?)?;
    let bins = bins(Vec::<f64>::try_from(confidence)?.into_iter().zip(right));
    Ok((loss, expected_error(&bins)))
}
