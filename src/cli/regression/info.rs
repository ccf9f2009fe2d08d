//! `info`: what is in a run, a weights file or an architecture.

use anyhow::Result;

use super::family::Regression;
use crate::cli::args::InfoArgs;
use crate::cli::print;
use crate::cli::session::trained_recipe;
use crate::cli::table::align;
use crate::regression::encoding::FeatureKind;
use crate::regression::fit::LinearModel;
use crate::reporting::format::number;

/// Runs the verb.
pub fn run(arguments: &InfoArgs) -> Result<()> {
    match &arguments.path {
        Some(path) if path.is_dir() && LinearModel::is_in(path) => {
            let recipe = trained_recipe::<Regression>(path)?;
            let model = LinearModel::read(path)?;
            let mut lines = vec![
                format!("run      {}", path.display()),
                format!("recipe   {}", recipe.name),
                format!("model    {}", model.model.name()),
                format!("target   {}", model.encoding.target),
                format!("solver   {}: {}", model.solver.name.name(), model.solver.reason),
            ];
            if let Some(classes) = &model.encoding.classes {
                lines.push(format!("classes  {}", classes.join(", ")));
            }
            lines.push(String::new());
            let mut table = vec![["feature", "type", "missing values become", "columns"].map(str::to_owned)];
            for feature in &model.encoding.features {
                let (kind, fill, columns) = match &feature.kind {
                    FeatureKind::Number { fill, indicator } => {
                        ("number".to_owned(), fill.map(number), 1 + usize::from(*indicator))
                    }
                    FeatureKind::Category { levels, reference, fill } => (
                        format!("category: {} (reference {})", levels.join(", "), levels[*reference]),
                        fill.map(|fill| levels[fill].clone()),
                        levels.len() - 1,
                    ),
                };
                table.push([
                    feature.name.clone(),
                    kind,
                    fill.unwrap_or_else(|| "–".to_owned()),
                    columns.to_string(),
                ]);
            }
            lines.push(align(&table, 3));
            lines.push(String::new());
            let mut head = vec!["column".to_owned()];
            head.extend((0..model.intercept.len()).map(|output| match model.intercept.len() {
                1 => "coefficient".to_owned(),
                _ => model.encoding.class(output),
            }));
            let mut table = vec![head];
            let row = |name: &str, values: Vec<f64>| {
                std::iter::once(name.to_owned()).chain(values.into_iter().map(number)).collect::<Vec<_>>()
            };
            table.push(row("const", model.intercept.clone()));
            for (place, column) in model.columns.iter().enumerate() {
                table.push(row(column, model.coefficients.iter().map(|output| output[place]).collect()));
            }
            lines.push(align(&table, 1));
            print(&lines.join("\n"))
        }
        _ => crate::cli::info::run::<Regression>(arguments),
    }
}
