//! Training: one loop that reads from top to bottom ([`trainer::train`]), and what it is made of.

pub mod checkpoint;
pub mod config;
pub mod ema;
pub mod evaluate;
pub mod examples;
pub mod fine_tuning;
pub mod metrics;
pub mod optimizer;
pub mod precision;
pub mod profile;
pub mod run;
pub mod schedule;
pub mod signals;
pub mod step;
pub mod trainer;
pub mod trial;
