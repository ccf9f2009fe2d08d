//! Recurrent networks: the layers of `torch.nn`, and on them classifiers of sequences, language models and forecasts.

mod layer;
mod networks;

pub use layer::{Cell, Recurrent, RecurrentConfig, locked_dropout};
pub use networks::{
    ForecastForm, ForecastMode, ForecastOutput, Forecaster, LanguageModel, Pooling, RnnConfig, RnnGoal,
    SequenceClassifier,
};
