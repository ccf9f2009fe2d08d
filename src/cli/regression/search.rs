//! `search`: a grid, or random draws, over keys of a recipe, judged by cross-validation (solvers) or validation rows (the trainer).
//!
//! Every finished trial is a line of `trials.jsonl`, so a search that was interrupted goes on where it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::args::{RegressionTrainArgs, merged};
use super::family::{Regression, goal_of};
use crate::cli::args::EvalFormat;
use crate::cli::family::FamilyRecipe;
use crate::cli::table::align;
use crate::cli::{TrainArgs, print, session};
use crate::error::Interrupted;
use crate::files::{self, FolderLock};
use crate::regression::config::Goal;
use crate::regression::prepare::{RawBlock, prepare};
use crate::regression::resampling::{Sample, folds};
use crate::reporting::{self, Log, Summary, Verbosity};
use crate::training::metrics::larger_is_better;
use crate::training::run::RunFolder;
use crate::training::signals::Interrupt;
use crate::{bail_input, recipe};

/// Arguments of `search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    #[command(flatten)]
    train: RegressionTrainArgs,
    /// A key of the recipe with what to try: model.alpha=0.1,1,10 (all of them), model.alpha=0.001:10 (random, even),
    /// model.alpha=0.001:10:log (random, even on a logarithmic scale); may be repeated
    #[arg(long = "try", value_name = "KEY=VALUES", required_unless_present = "resume")]
    tries: Vec<String>,
    /// Random draws; without it, and without ranges, every combination is tried
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Trials at a time (solvers only) [default: all cores]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// What to try for a key.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    /// Each of these.
    List(Vec<Value>),
    /// Any number in between.
    Range { low: f64, high: f64, log: bool, whole: bool },
}

/// A finished trial.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Trial {
    number: usize,
    settings: BTreeMap<String, Value>,
    /// Mean of the metric, or null where the fit failed.
    score: Option<f64>,
    standard_error: Option<f64>,
    /// Why it failed.
    error: Option<String>,
}

/// Takes `KEY=VALUES` apart.
fn parse_try(argument: &str) -> Result<(String, Values)> {
    let Some((key, text)) = argument.split_once('=') else {
        bail_input!("--try {argument}: write KEY=VALUES, as in model.alpha=0.1,1,10");
    };
    let key = key.trim().to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|value| value.is_finite());
    if let [low, high, rest @ ..] = parts.as_slice()
        && let (Some(low_value), Some(high_value)) = (number(low), number(high))
    {
        let log = match rest {
            [] => false,
            ["log"] => true,
            _ => bail_input!("--try {argument}: a range is LOW:HIGH or LOW:HIGH:log"),
        };
        if low_value >= high_value || (log && low_value <= 0.0) {
            bail_input!("--try {argument}: the lower end must be below the upper one, and above 0 with log");
        }
        let whole = [low, high].iter().all(|end| end.trim().parse::<i64>().is_ok());
        return Ok((key, Values::Range { low: low_value, high: high_value, log, whole }));
    }
    let list = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(list)) => list,
        _ => text
            .split(',')
            .map(|value| serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned())))
            .collect(),
    };
    match list.is_empty() {
        true => bail_input!("--try {argument}: there is nothing to try"),
        false => Ok((key, Values::List(list))),
    }
}

/// All combinations, or `samples` random draws keyed by seed and number.
fn plan(
    tries: &[(String, Values)],
    samples: Option<usize>,
    seed: u64,
) -> Result<Vec<BTreeMap<String, Value>>> {
    let Some(samples) = samples else {
        let mut all = vec![BTreeMap::new()];
        for (key, values) in tries {
            let Values::List(list) = values else {
                bail_input!("--try {key}: a range needs --samples N");
            };
            all = all
                .into_iter()
                .flat_map(|settings: BTreeMap<String, Value>| {
                    list.iter().map(move |value| {
                        let mut settings = settings.clone();
                        settings.insert(key.clone(), value.clone());
                        settings
                    })
                })
                .collect();
        }
        return Ok(all);
    };
    let draw = |number: usize| {
        let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number as u64);
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        tries
            .iter()
            .map(|(key, values)| {
                let share = uniform();
                let value = match values {
                    Values::List(list) => list[(share * list.len() as f64) as usize].clone(),
                    Values::Range { low, high, log, whole } => {
                        let value = match log {
                            true => (low.ln() + share * (high / low).ln()).exp(),
                            false => low + share * (high - low),
                        };
                        if *whole { json!(value.round() as i64) } else { json!(value) }
                    }
                };
                (key.clone(), value)
            })
            .collect()
    };
    Ok((0..samples).map(draw).collect())
}

/// Runs the verb.
pub fn run(arguments: SearchArgs) -> Result<()> {
    let SearchArgs {
        train: RegressionTrainArgs { mut train, table, model, cv, .. },
        tries,
        samples,
        jobs,
        format,
    } = arguments;
    let interrupt = Interrupt::listen()?;
    let log = Log::new(Verbosity::from_flags(train.quiet, true));
    let (folder, plan) = match train.resume.take() {
        Some(folder) => {
            let path = folder.join(PLAN);
            let name = path.display().to_string();
            if !path.is_file() {
                bail_input!("--resume {}: it is no search", folder.display());
            }
            let flags = [table.settings()?, model.settings(), train.settings()].concat();
            if !tries.is_empty()
                || cv.is_some()
                || samples.is_some()
                || !train.set.is_empty()
                || !flags.is_empty()
            {
                bail_input!("a resumed search keeps its plan: give --resume {} alone", folder.display());
            }
            (folder, recipe::typed(recipe::parse(&files::read_text(&path)?, &name)?, &name)?)
        }
        None => {
            let settings = [table.settings()?, model.settings()].concat();
            let chosen_metric = train.metric.take();
            let train = merged(train, settings);
            let plan = new_plan(&train, &tries, samples, cv, chosen_metric)?;
            if train.dry_run {
                return print(&serde_json::to_string_pretty(&plan.trials)?);
            }
            let out = train
                .out
                .clone()
                .unwrap_or_else(|| RunFolder::default_path(&format!("{}-search", plan.recipe.name)));
            if out.is_dir() && std::fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()) {
                bail_input!(
                    "the folder {} exists already: choose another --out, or continue it with --resume",
                    out.display()
                );
            }
            std::fs::create_dir_all(&out).map_err(|error| files::cannot_write(&out, &error))?;
            let text = serde_json::to_string_pretty(&plan)? + "\n";
            files::write_atomic(&out.join(PLAN), text.as_bytes())?;
            (out, plan)
        }
    };
    let _lock = FolderLock::take(&folder)?;
    let recipes = plan
        .trials
        .iter()
        .map(|settings| with_settings(&plan.recipe, settings))
        .collect::<Result<Vec<_>>>()?;
    let journal = Journal::open(&folder.join("trials.jsonl"))?;
    let done: BTreeSet<usize> = journal.finished()?.iter().map(|trial| trial.number).collect();
    let open: Vec<usize> = (0..plan.trials.len()).filter(|number| !done.contains(number)).collect();
    log.info(format!("{} trials, {} already done", plan.trials.len(), done.len()));
    let work = Work {
        recipes: &recipes,
        trials: &plan.trials,
        open: &open,
        metric: &plan.metric,
        journal: &journal,
        log: &log,
        interrupt: &interrupt,
    };
    match recipes.iter().any(|recipe| recipe.model.is_trained()) {
        true => work.train_all(&plan.recipe, &folder)?,
        false => work.solve_all(plan.folds, jobs)?,
    }
    if interrupt.asked() {
        return Err(anyhow!(Interrupted(format!(
            "interrupted: continue with --resume {}",
            folder.display()
        ))));
    }
    report(journal.finished()?, &plan, &folder, format, &log)
}

/// The file that says what a search tries.
const PLAN: &str = "search.json";

/// What a search tries, and how it judges.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SearchPlan {
    recipe: FamilyRecipe<Regression>,
    metric: String,
    folds: usize,
    trials: Vec<BTreeMap<String, Value>>,
}

fn new_plan(
    train: &TrainArgs,
    tries: &[String],
    samples: Option<usize>,
    cv: Option<usize>,
    metric: Option<String>,
) -> Result<SearchPlan> {
    let tries = tries.iter().map(|argument| parse_try(argument)).collect::<Result<Vec<_>>>()?;
    let recipe = session::new_recipe::<Regression>(train)?;
    let trials = plan(&tries, samples, recipe.training.seed)?;
    let recipes =
        trials.iter().map(|settings| with_settings(&recipe, settings)).collect::<Result<Vec<_>>>()?;
    let trained = recipes.iter().any(|recipe| recipe.model.is_trained());
    if !trained {
        if let Some((key, _)) =
            tries.iter().find(|(key, _)| !key.starts_with("model.") && key != "data.standardize")
        {
            bail_input!("--try {key}: a search among solvers is over model.… and data.standardize");
        }
        if recipe.data.stream {
            bail_input!("--stream: a search needs the table in memory");
        }
    }
    let metric = match metric {
        Some(metric) => metric,
        None if trained => "loss".to_owned(),
        None if goal_of(&recipe)? == Goal::Number => "r2".to_owned(),
        None => "accuracy".to_owned(),
    };
    Ok(SearchPlan { recipe, metric, folds: cv.unwrap_or(5), trials })
}

/// The recipe of a trial.
fn with_settings(
    base: &FamilyRecipe<Regression>,
    settings: &BTreeMap<String, Value>,
) -> Result<FamilyRecipe<Regression>> {
    let mut value = serde_json::to_value(base)?;
    for (key, setting) in settings {
        recipe::set(&mut value, key, setting.clone())?;
    }
    let recipe: FamilyRecipe<Regression> = recipe::typed(value, "--try")?;
    recipe.model.validate()?;
    recipe.data.validate()?;
    recipe.training.validate()?;
    Ok(recipe)
}

/// The finished trials on disk.
struct Journal(PathBuf, Mutex<()>);

impl Journal {
    /// Opens the file; a line that a killed process left unfinished is cut off.
    fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            let text = files::read_text(path)?;
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
            if whole.len() < text.len() {
                files::write_atomic(path, whole.as_bytes())?;
            }
        }
        Ok(Self(path.to_owned(), Mutex::new(())))
    }

    fn finished(&self) -> Result<Vec<Trial>> {
        if !self.0.is_file() {
            return Ok(Vec::new());
        }
        let name = self.0.display().to_string();
        let text = files::read_text(&self.0)?;
        text.lines().map(|line| recipe::typed(recipe::parse(line, &name)?, &name)).collect()
    }

    fn append(&self, trial: &Trial) -> Result<()> {
        let _guard = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let line = serde_json::to_string(trial)? + "\n";
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.0)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .map_err(|error| files::cannot_write(&self.0, &error))
    }
}

struct Work<'a> {
    recipes: &'a [FamilyRecipe<Regression>],
    trials: &'a [BTreeMap<String, Value>],
    open: &'a [usize],
    metric: &'a str,
    journal: &'a Journal,
    log: &'a Log,
    interrupt: &'a Interrupt,
}

impl Work<'_> {
    fn finish(&self, number: usize, result: Result<(f64, Option<f64>)>) -> Result<()> {
        let trial = match result {
            Ok((score, error)) => Trial {
                number,
                settings: self.trials[number].clone(),
                score: Some(score).filter(|score| score.is_finite()),
                standard_error: error.filter(|error| error.is_finite()),
                error: None,
            },
            Err(error) => Trial {
                number,
                settings: self.trials[number].clone(),
                score: None,
                standard_error: None,
                error: Some(crate::error::one_sentence(&error)),
            },
        };
        let told = match (&trial.score, &trial.error) {
            (Some(score), _) => format!("{} {}", self.metric, reporting::format::metric(self.metric, *score)),
            (None, Some(error)) => format!("failed: {error}"),
            (None, None) => "no score".to_owned(),
        };
        self.log.info(format!("trial {} of {}: {told}", number + 1, self.trials.len()));
        self.journal.append(&trial)
    }

    /// Cross-validates trials on several threads, each with its own handles on the same rows.
    fn solve_all(&self, k: usize, jobs: Option<usize>) -> Result<()> {
        let Some(first) = self.recipes.first() else { return Ok(()) };
        let mut first = first.clone();
        let goal = goal_of(&first)?;
        let device = session::prepare(&mut first.training)?;
        let threads = first.training.threads.unwrap_or(1);
        let prepared = prepare(&first.data, goal, first.training.seed, threads)?;
        for warning in &prepared.warnings {
            self.log.warning(warning);
        }
        let fold = folds(&prepared.train, k, prepared.encoding.classes.is_some(), first.training.seed)?;
        let jobs = jobs.unwrap_or(threads).clamp(1, self.open.len().max(1));
        tch::set_num_threads((threads / jobs).max(1) as i32);
        let next = AtomicUsize::new(0);
        let handles = || -> Vec<RawBlock> { prepared.train.iter().map(RawBlock::handle).collect() };
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..jobs)
                .map(|_| {
                    let rows = handles();
                    let (encoding, fold, next) = (&prepared.encoding, &fold, &next);
                    scope.spawn(move || -> Result<()> {
                        while let Some(&number) = self.open.get(next.fetch_add(1, Ordering::Relaxed)) {
                            if self.interrupt.asked() {
                                break;
                            }
                            let recipe = &self.recipes[number];
                            let sample = Sample {
                                train: &rows,
                                encoding,
                                standardize: recipe.data.standardize,
                                device,
                            };
                            let result = self.score(&sample, recipe, fold);
                            self.finish(number, result)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            for worker in workers {
                worker.join().map_err(|_| anyhow!("a trial failed without a message"))??;
            }
            Ok(())
        })
    }

    fn score(
        &self,
        sample: &Sample,
        recipe: &FamilyRecipe<Regression>,
        fold: &[usize],
    ) -> Result<(f64, Option<f64>)> {
        let validated = sample.cross_validate(&recipe.model, fold)?;
        if !validated.scores.contains_key(self.metric) {
            bail_input!(
                "--metric: there is no metric `{}`{}",
                self.metric,
                recipe::nearest_hint(self.metric, validated.scores.keys().map(String::as_str))
            );
        }
        Ok((validated.mean(self.metric), Some(validated.standard_error(self.metric))))
    }

    /// Trains one network after the other, each in a run of its own; the score is that of its best checkpoint on validation rows.
    fn train_all(&self, base: &FamilyRecipe<Regression>, folder: &Path) -> Result<()> {
        let recipe_file = folder.join("recipe.json");
        files::write_atomic(&recipe_file, (serde_json::to_string_pretty(base)? + "\n").as_bytes())?;
        for &number in self.open {
            if self.interrupt.asked() {
                break;
            }
            let run = folder.join("runs").join((number + 1).to_string());
            if run.exists() {
                std::fs::remove_dir_all(&run).map_err(|error| files::cannot_write(&run, &error))?;
            }
            let arguments = TrainArgs {
                recipe: Some(recipe_file.display().to_string()),
                out: Some(run.clone()),
                set: self.trials[number].iter().map(|(key, value)| format!("{key}={value}")).collect(),
                quiet: true,
                no_progress: true,
                ..TrainArgs::default()
            };
            let result = crate::cli::train::run::<Regression>(&arguments).and_then(|()| {
                let path = run.join("summary.json");
                let name = path.display().to_string();
                let summary: Summary =
                    recipe::typed(recipe::parse(&files::read_text(&path)?, &name)?, &name)?;
                let best = summary
                    .best
                    .context("the training made no evaluation: hold rows out with --val-fraction")?;
                let value = best.values.get(self.metric).copied();
                Ok((value.with_context(|| format!("there is no metric {}", self.metric))?, None))
            });
            if self.interrupt.asked() {
                break;
            }
            self.finish(number, result)?;
        }
        Ok(())
    }
}

/// Prints the trials, best first, and writes them into the folder.
fn report(
    mut trials: Vec<Trial>,
    plan: &SearchPlan,
    folder: &Path,
    format: EvalFormat,
    log: &Log,
) -> Result<()> {
    let metric = plan.metric.as_str();
    let keys: Vec<&String> =
        plan.trials.first().map(|settings| settings.keys().collect()).unwrap_or_default();
    let worst = if larger_is_better(metric) { f64::NEG_INFINITY } else { f64::INFINITY };
    trials.sort_by(|a, b| {
        let (left, right) = (a.score.unwrap_or(worst), b.score.unwrap_or(worst));
        let order = if larger_is_better(metric) { right.total_cmp(&left) } else { left.total_cmp(&right) };
        order.then(a.number.cmp(&b.number))
    });
    let best = trials.first().filter(|trial| trial.score.is_some());
    let result = json!({ "metric": metric, "best": best, "trials": trials });
    files::write_atomic(
        &folder.join("result.json"),
        (serde_json::to_string_pretty(&result)? + "\n").as_bytes(),
    )?;
    match format {
        EvalFormat::Json => print(&serde_json::to_string_pretty(&result)?)?,
        EvalFormat::Table => {
            let mut head: Vec<String> = vec!["trial".to_owned()];
            head.extend(keys.iter().map(|key| (*key).clone()));
            head.extend([metric.to_owned(), "std. error".to_owned()]);
            let mut table = vec![head];
            table.extend(trials.iter().map(|trial| {
                let mut row = vec![(trial.number + 1).to_string()];
                row.extend(
                    keys.iter()
                        .map(|key| trial.settings.get(*key).map_or_else(String::new, Value::to_string)),
                );
                row.push(match (&trial.score, &trial.error) {
                    (Some(score), _) => reporting::format::metric(metric, *score),
                    (None, Some(error)) => error.clone(),
                    (None, None) => "–".to_owned(),
                });
                row.push(
                    trial
                        .standard_error
                        .map_or_else(String::new, |error| reporting::format::metric(metric, error)),
                );
                row
            }));
            print(&align(&table, 1))?;
        }
    }
    let Some(best) = best else {
        return Err(anyhow!("no trial came to a score: see {}", folder.join("trials.jsonl").display()));
    };
    let flags: Map<String, Value> = best.settings.clone().into_iter().collect();
    let told: Vec<String> = flags.iter().map(|(key, value)| format!("--set {key}={value}")).collect();
    log.result(format!("best: {}\nsearch: {}", told.join(" "), folder.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ranges_and_combinations() -> Result<()> {
        assert_eq!(parse_try("a=1,2.5,x")?.1, Values::List(vec![json!(1), json!(2.5), json!("x")]));
        assert_eq!(parse_try("a=[[1],[2,3]]")?.1, Values::List(vec![json!([1]), json!([2, 3])]));
        let range = parse_try("a=1e-3:10:log")?.1;
        assert_eq!(range, Values::Range { low: 1e-3, high: 10.0, log: true, whole: false });
        assert!(parse_try("a=5:1").is_err() && parse_try("a=-1:1:log").is_err() && parse_try("a").is_err());
        let tries = [parse_try("a=1,2")?, parse_try("b=x,y,z")?];
        assert_eq!(plan(&tries, None, 0)?.len(), 6);
        let tries = [("a".to_owned(), range)];
        assert!(plan(&tries, None, 0).is_err());
        let drawn = plan(&tries, Some(50), 1)?;
        assert_eq!(drawn, plan(&tries, Some(50), 1)?);
        assert!(
            drawn.iter().all(|settings| settings["a"].as_f64().is_some_and(|a| (1e-3..=10.0).contains(&a)))
        );
        assert!(drawn.iter().filter(|settings| settings["a"].as_f64().is_some_and(|a| a < 0.1)).count() > 15);
        Ok(())
    }
}
