//! The model of a run, whichever way it was fitted.

use std::path::Path;

use anyhow::Result;

use super::family::Regression;
use crate::bail_input;
use crate::cli::args::RunArgs;
use crate::cli::family::FamilyRecipe;
use crate::cli::session::{self, Session};
use crate::regression::encoding::Encoding;
use crate::regression::fit::LinearModel;
use crate::regression::scores::RowPredictor;
use crate::tasks::table_prediction::TablePrediction;

/// A fitted model with its recipe.
pub struct Trained {
    /// As the run was made with it.
    pub recipe: FamilyRecipe<Regression>,
    /// The model.
    pub model: Fitted,
}

/// A fitted model.
pub enum Fitted {
    /// By a solver.
    Linear(Box<LinearModel>),
    /// By the trainer.
    Network(Box<TablePrediction>),
}

impl Trained {
    /// Reads a run.
    ///
    /// # Errors
    /// The folder is no run, or its fit did not come to its end.
    pub fn open(arguments: &RunArgs) -> Result<Self> {
        let mut recipe = session::trained_recipe::<Regression>(&arguments.run)?;
        if recipe.model.is_trained() {
            let Session { recipe, task, .. } = Session::<Regression>::open(&arguments.as_model())?;
            return Ok(Self { recipe, model: Fitted::Network(Box::new(task)) });
        }
        if let Some(checkpoint) = &arguments.checkpoint {
            bail_input!("--checkpoint {checkpoint}: a solver's fit has no checkpoints");
        }
        if !LinearModel::is_in(&arguments.run) {
            bail_input!("{} has no model.json: its fit did not come to its end", arguments.run.display());
        }
        recipe.training.threads = arguments.device.threads;
        session::prepare(&mut recipe.training)?;
        let model = LinearModel::read(&arguments.run)?;
        Ok(Self { recipe, model: Fitted::Linear(Box::new(model)) })
    }

    /// A run by its folder alone.
    pub fn of(run: &Path) -> Result<Self> {
        Self::open(&RunArgs {
            run: run.to_owned(),
            checkpoint: None,
            device: Default::default(),
            batch_size: None,
        })
    }

    /// What predicts rows.
    pub fn predictor(&self) -> &dyn RowPredictor {
        match &self.model {
            Fitted::Linear(model) => model.as_ref(),
            Fitted::Network(task) => task.as_ref(),
        }
    }

    /// How rows become what the model takes.
    pub fn encoding(&self) -> &Encoding {
        self.predictor().encoding()
    }
}
