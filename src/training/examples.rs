//! Some samples of an evaluation in the event files: their pictures, framed green where the prediction is right and red where it
//! is wrong, and a table of the predictions.

use anyhow::Result;

use crate::data::Dataset;
use crate::reporting::{EventWriter, Split, format, framed};
use crate::tasks::classification::evenly;
use crate::tasks::{Evaluation, Task};

/// Writes up to `count` samples as the images `examples/SPLIT` and the text `predictions/SPLIT`. Nothing is written where the samples are no pictures.
pub fn write_examples<T, D>(
    events: &mut EventWriter,
    split: Split,
    step: u64,
    task: &T,
    data: &D,
    evaluation: &Evaluation,
    count: usize,
) -> Result<()>
where
    T: Task,
    D: Dataset<Batch = T::Batch>,
{
    if count == 0 {
        return Ok(());
    }
    let (mut pictures, mut rows) = (Vec::new(), String::new());
    let listed = task.examples(evaluation)?;
    for (number, position) in evenly(listed.len(), count).enumerate() {
        let shown = &listed[position];
        let Some(picture) = data.picture(shown.sample)? else { continue };
        pictures.push(framed(&picture, shown.prediction == shown.label)?);
        // What would end a cell or begin markup is shown as it is.
        let cell = |text: &str| format!("`{}`", text.replace(['`', '|', '\n'], " "));
        rows += &format!(
            "| {} | {} | {} | {} | {} |\n",
            number + 1,
            cell(format::short_path(&data.describe(shown.sample))),
            cell(&shown.label),
            cell(&shown.prediction),
            shown.probability.map(format::percent).unwrap_or_default()
        );
    }
    if pictures.is_empty() {
        return Ok(());
    }
    events.images(&format!("examples/{split}"), step, &pictures)?;
    let head = "| image | sample | label | prediction | probability |\n| --- | --- | --- | --- | --- |\n";
    events.text(&format!("predictions/{split}"), step, &format!("{head}{rows}"))
}
