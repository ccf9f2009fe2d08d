//! Tests that run the real programs and the library as its users do; one module for each subject.
//!
//! Tests that need the larger data (the folder that `TCH_SUITE_DATA` names) are skipped without it.

mod support;

mod accumulation;
mod augmentation;
mod bad_input;
mod distributed;
mod encoders;
mod evaluation;
mod explanations;
mod export;
mod fine_tuning;
mod full_disk;
mod images;
mod information;
mod initial_weights;
mod language_models;
mod optimizers;
mod predictions;
mod recipes_in_effect;
mod recurrent;
mod registry;
mod regression;
mod resizing;
mod resume;
mod rnn;
mod schedules;
mod signals;
mod source_rules;
mod tensorboard;
mod text;
mod text_scores;
mod torchscript;
mod transformer;
mod weights;
mod writing;
