//! `explain`: which pixels of an image a run's answer comes from.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tch::{Kind, Tensor};

use super::args::{EvalFormat, ModelArgs};
use super::cnn::Cnn;
use super::print;
use super::session::Session;
use crate::data::decode::ImageForm;
use crate::data::image_dataset::interleaved;
use crate::data::images::decode_file;
use crate::recipe::nearest_hint;
use crate::reporting::{format, overlaid, sheet};
use crate::tasks::Task;
use crate::tasks::explanation::{Explanation, Method, explain};
use crate::tasks::image_classification::ImageClassification;
use crate::{bail_input, files};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    run: ModelArgs,
    /// Image files
    #[arg(value_name = "IMAGE", required_unless_present = "model")]
    images: Vec<PathBuf>,
    /// How to explain
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = Method::GradCam)]
    method: Method,
    /// The class to explain, by name or number [default: the most probable of each image]
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// The picture to write: each image as the model takes it, and with what speaks for the class
    #[arg(long, value_name = "FILE.png")]
    out: PathBuf,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    format: EvalFormat,
}

/// Runs the verb.
pub fn run(arguments: &ExplainArgs) -> Result<()> {
    let mut run = arguments.run.clone();
    let mut images = arguments.images.clone();
    if run.weights.model.is_some() {
        // Without a run, the first path is an image too.
        images.splice(0..0, run.run.take());
    }
    if images.is_empty() {
        bail_input!("there is no image to explain");
    }
    let Session { recipe, task, .. } = Session::<Cnn>::open(&run)?;
    let class = arguments.class.as_deref().map(|class| class_number(task.classes(), class)).transpose()?;
    let shape = recipe.model.shape()?;
    let form = ImageForm { channels: shape.channels as usize, size: shape.size.map(|side| side as usize) };
    let (mut tiles, mut lines) = (Vec::new(), Vec::new());
    for path in &images {
        let mut planes = Vec::new();
        decode_file(path, form, recipe.data.resize, &mut planes)?;
        let explanation = explain_planes(&task, &planes, form, class, arguments.method)?;
        tiles.extend(pair(&planes, form, &explanation)?);
        let name = &task.classes()[explanation.class as usize];
        let sum = explanation.map.f_sum(Kind::Double)?.f_double_value(&[])?;
        lines.push(match arguments.format {
            EvalFormat::Table => {
                let gap = explanation.gap.map(|gap| format!(", adds up to {}", format::percent(1.0 - gap)));
                format!(
                    "{}  {name} {}{}",
                    path.display(),
                    format::percent(explanation.probability),
                    gap.unwrap_or_default()
                )
            }
            EvalFormat::Json => json!({
                "input": path, "label": name, "probability": explanation.probability, "method": arguments.method,
                "sum": sum, "gap": explanation.gap,
            })
            .to_string(),
        });
    }
    let [height, width] = form.size;
    files::write_atomic(&arguments.out, &sheet(&tiles, height, width, 2)?)?;
    print(&lines.join("\n"))
}

/// Explains an image of `[channel, height, width]` bytes.
pub fn explain_planes(
    task: &ImageClassification,
    planes: &[u8],
    form: ImageForm,
    class: Option<i64>,
    method: Method,
) -> Result<Explanation> {
    let [height, width] = form.size;
    let size = [1, form.channels as i64, height as i64, width as i64];
    let device = task.parameters().device();
    let pixels = Tensor::f_from_data_size(planes, &size, Kind::Uint8)?.f_to_device(device)?;
    explain(task, &pixels, class, method)
}

/// An image and the same under its explanation, `[height, width, 3]` bytes each.
pub fn pair(planes: &[u8], form: ImageForm, explanation: &Explanation) -> Result<[Vec<u8>; 2]> {
    let picture = match form.channels {
        1 => planes.iter().flat_map(|&grey| [grey; 3]).collect(),
        channels => interleaved(planes, channels),
    };
    let heat = Vec::<f32>::try_from(explanation.map.f_flatten(0, -1)?.f_to_kind(Kind::Float)?)?;
    let explained = overlaid(&picture, &heat);
    Ok([picture, explained])
}

/// The number of a class given by its name or its number.
fn class_number(classes: &[String], class: &str) -> Result<i64> {
    let by_name = classes.iter().position(|known| known == class);
    let by_number = || class.parse().ok().filter(|&number: &usize| number < classes.len());
    match by_name.or_else(by_number) {
        Some(number) => Ok(number as i64),
        None => bail_input!(
            "--class {class}: there is no such class{}",
            nearest_hint(class, classes.iter().map(String::as_str))
        ),
    }
}
