//! `tch-suite` trains, evaluates, runs and exports neural networks from the command line, on libtorch and without Python.
//!
//! One binary per model family stands on this library. Data flow one way through it: arguments become a recipe ([`cli`],
//! [`recipe`]), the recipe opens a data set ([`data`]), a loader makes batches ahead of the training step
//! ([`data::loader`]), a task gives a batch its loss and metrics ([`tasks`]) with a model ([`models`]), and the trainer turns losses into
//! weights, checkpoints and records ([`training`]), from which reports are made ([`reporting`]).
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`cli`] | the verbs and flags that all binaries share, and what each family tells them |
//! | [`recipe`] | preset and overrides to a checked recipe |
//! | [`data`] | data sets, order of samples, loader |
//! | [`models`] | architectures, one file each, on layers with `torch.nn`'s names and initial values |
//! | [`tasks`] | what a batch means |
//! | [`generation`] | texts that a language model writes: the choice of tokens, text while it comes |
//! | [`regression`] | linear models of tables: designs, solvers, statistics |
//! | [`training`] | the loop, optimizers, schedules, precision, checkpoints |
//! | [`weights`] | reading and writing weight files |
//! | [`scoring`] | scores of generated text: BLEU, chrF, TER, ROUGE |
//! | [`distributed`] | what the trainer needs of other processes |
//! | [`native`] | the C++ shim over libtorch: the only unsafe code |
//! | [`reporting`] | progress, JSON lines, TensorBoard events, plots, the HTML report |
//! | [`error`], [`files`] | errors as one sentence; files that are written whole or not at all |
//!
//! A model never sees the recipe, a data set never sees the model, and the trainer knows neither: it knows [`tasks::Task`].
//!
//! The same binary with the same recipe, device and number of threads gives the same weights to the last bit, also when it was
//! interrupted and resumed in between.

pub mod cli;
pub mod data;
pub mod distributed;
pub mod error;
pub mod files;
pub mod generation;
pub mod models;
pub mod native;
pub mod recipe;
pub mod regression;
pub mod reporting;
pub mod scoring;
pub mod script;
pub mod tasks;
pub mod training;
pub mod weights;
