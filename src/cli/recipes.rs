//! `recipes`: what there is.

use anyhow::Result;

use super::args::RecipesArgs;
use super::family::{Family, FamilyRecipe};
use super::print;
use crate::recipe;

/// Runs the verb.
pub fn run<F: Family>(arguments: &RecipesArgs) -> Result<()> {
    if let Some(name) = &arguments.name {
        let recipe: FamilyRecipe<F> = recipe::typed(recipe::find(name, F::presets())?, name)?;
        return print(&serde_json::to_string_pretty(&recipe)?);
    }
    let mut lines = Vec::new();
    for preset in F::presets() {
        let recipe: FamilyRecipe<F> = recipe::typed(recipe::parse(preset.json, preset.name)?, preset.name)?;
        let mark = if preset.name == F::DEFAULT_RECIPE { " (default)" } else { "" };
        let reached = if recipe.reaches.is_empty() { "(not measured yet)" } else { &recipe.reaches };
        lines.push(format!("{}{mark}\n    {}\n    reaches {reached}", recipe.name, recipe.description));
    }
    print(&lines.join("\n"))
}
