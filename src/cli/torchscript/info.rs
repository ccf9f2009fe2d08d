//! `info`: what is in a file, without running any of it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::Scripted;
use crate::bail_input;
use crate::cli::args::{EvalFormat, InfoArgs};
use crate::cli::table::align;
use crate::cli::{CommonVerb, print, run_common};
use crate::recipe::nearest_hint;
use crate::reporting::format::{bytes, count};
use crate::script::archive::TensorRow;
use crate::script::{Artifact, Inspection, inspect, kind_of};

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct ScriptInfoArgs {
    /// A module, a compiled package, weights, or a run folder
    #[arg(value_name = "FILE|RUN")]
    path: PathBuf,
    /// Print the code of a method: forward, or of a part of the module, as in encoder.forward
    #[arg(long, value_name = "METHOD")]
    code: Option<String>,
    /// List all tensors and modules
    #[arg(long)]
    all: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &ScriptInfoArgs) -> Result<()> {
    let common = || {
        run_common::<Scripted>(CommonVerb::Info(InfoArgs {
            path: Some(arguments.path.clone()),
            model: None,
            init_from: None,
            set: Vec::new(),
            format: arguments.format,
        }))
    };
    if arguments.path.is_dir() || matches!(kind_of(&arguments.path)?, Artifact::Weights(_)) {
        if arguments.code.is_some() {
            bail_input!("--code: {} has no code", arguments.path.display());
        }
        return common();
    }
    let found = inspect(&arguments.path)?;
    if let Some(method) = &arguments.code {
        return match found.code.get(method) {
            Some(code) => print(code),
            None => {
                let known = found.code.keys().map(String::as_str);
                bail_input!("{} has no method `{method}`{}", found.file, nearest_hint(method, known))
            }
        };
    }
    match arguments.format {
        EvalFormat::Json => print(&serde_json::to_string_pretty(&json!(found))?),
        EvalFormat::Table => print(&table(&found, arguments.all)),
    }
}

fn numbers(rows: &[TensorRow]) -> u64 {
    rows.iter().map(|row| row.shape.iter().product::<i64>().unsigned_abs()).sum()
}

fn table(found: &Inspection, all: bool) -> String {
    let mut lines = vec![
        format!("file        {}", found.file),
        format!(
            "kind        {}",
            match found.kind {
                "aotinductor" => "AOTInductor package: native code, compiled ahead of time",
                _ => "TorchScript archive",
            }
        ),
    ];
    if let Some(version) = &found.format_version {
        lines.push(format!("format      version {version}"));
    }
    lines.extend(found.producer.iter().map(|(key, value)| format!("{key:11} {value}")));
    if let Some(class) = &found.class {
        lines.push(format!("class       {class}"));
        lines.push(format!("modules     {}", count(found.modules.len() as u64 + 1)));
    }
    for (name, rows) in
        [("parameters", &found.parameters), ("buffers", &found.buffers), ("constants", &found.constants)]
    {
        if !rows.is_empty() || name == "parameters" && found.kind == "torchscript" {
            let tensors = if rows.len() == 1 { "tensor" } else { "tensors" };
            lines.push(format!(
                "{name:11} {} numbers in {} {tensors}",
                count(numbers(rows)),
                count(rows.len() as u64)
            ));
        }
    }
    lines.push(format!("trainable   {}", found.training));
    if !found.methods.is_empty() {
        lines.push(String::new());
        lines.extend(found.methods.iter().map(|method| format!("{}{}", method.name, method.signature)));
    }
    if !found.operators.is_empty() {
        lines.push(String::new());
        let listed: Vec<String> = found
            .operators
            .iter()
            .map(|(name, calls)| if *calls > 1 { format!("{name} ×{calls}") } else { name.clone() })
            .collect();
        lines.push(format!("operators   {}", listed.join(", ")));
    }
    if !found.extra.is_empty() {
        lines.push(String::new());
        lines.extend(found.extra.iter().map(|(name, size)| format!("entry       {name}, {}", bytes(*size))));
    }
    if all {
        lines.push(String::new());
        let mut rows = vec![["tensor", "role", "type", "shape"].map(str::to_owned)];
        for (role, tensors) in
            [("parameter", &found.parameters), ("buffer", &found.buffers), ("constant", &found.constants)]
        {
            rows.extend(tensors.iter().map(|row| {
                [row.name.clone(), role.to_owned(), row.dtype.clone(), format!("{:?}", row.shape)]
            }));
        }
        lines.push(align(&rows, 4));
        lines.push(String::new());
        lines.extend(found.modules.iter().map(|(name, class)| format!("{name}: {class}")));
    }
    lines.join("\n")
}
