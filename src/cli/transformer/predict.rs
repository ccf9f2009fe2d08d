//! `predict`: labels, tags, answers or values for texts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tch::Kind;

use super::family::{Encoders, batch_of, longest, open_tokenizer};
use super::{Classify, Qa, TaskName, Tokens, task_of};
use crate::bail_input;
use crate::cli::args::{PredictFormat, RunArgs};
use crate::cli::print;
use crate::cli::session::Session;
use crate::data::encoder_texts::{
    Goal, Question, TokenBatch, columns_of, encode, encode_words, passages, read_squad,
};
use crate::data::text::{Field, TextForm, TextFormat, TextInput, TextRow, TextTable, read_rows};
use crate::native::modes::InferenceMode;
use crate::reporting::{Log, Verbosity};
use crate::tasks::entities::entities;
use crate::tasks::question_answering::{answer_of, best_span};
use crate::tasks::{Mode, Task, multi_label};

/// Arguments of `predict`.
#[derive(Debug, Args)]
pub struct TextPredictArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub texts: TextSource,
    /// The question, with --context (qa)
    #[arg(long, value_name = "TEXT", requires = "context")]
    pub question: Option<String>,
    /// The text that may hold the answer (qa)
    #[arg(long, value_name = "TEXT", requires = "question")]
    pub context: Option<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = PredictFormat::Table)]
    pub format: PredictFormat,
    /// Best labels to print for each text
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub top_k: usize,
    /// Refuse texts that are longer than the model reads instead of cutting them
    #[arg(long)]
    pub strict: bool,
}

/// Texts of the command line.
#[derive(Clone, Debug, Default, Args)]
pub struct TextSource {
    /// Files with a text on each line, TSV, CSV or JSON lines; - for lines on stdin
    #[arg(value_name = "FILE")]
    pub inputs: Vec<PathBuf>,
    /// A text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub text: Vec<String>,
    /// The second text that goes with each --text
    #[arg(long, value_name = "TEXT", requires = "text")]
    pub pair: Vec<String>,
    /// The column of the text in files
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// The column of the second text
    #[arg(long, value_name = "NAME")]
    pub pair_column: Option<String>,
}

impl TextSource {
    /// All texts: the text and, where there is one, the second text of each row.
    ///
    /// # Errors
    /// Those of reading; there is no text.
    pub fn read(&self, usual_text: &[&str], usual_pair: &[&str]) -> Result<TextTable> {
        if !self.pair.is_empty() && self.pair.len() != self.text.len() {
            bail_input!("there are {} --text and {} --pair: give as many", self.text.len(), self.pair.len());
        }
        let mut table = TextTable { name: "--text".to_owned(), rows: Vec::new() };
        for (number, text) in self.text.iter().enumerate() {
            let fields = [Some(text), self.pair.get(number)].into_iter().flatten();
            let fields = fields.map(|text| Field::Text(text.clone())).collect();
            table.rows.push(TextRow { line: number as u64 + 1, fields });
        }
        for path in &self.inputs {
            let read = self.read_file(path, usual_text, usual_pair)?;
            table.name = read.name;
            table.rows.extend(read.rows);
        }
        if table.rows.is_empty() {
            bail_input!("there are no texts: give files, - for stdin, or --text");
        }
        Ok(table)
    }

    fn read_file(&self, path: &Path, usual_text: &[&str], usual_pair: &[&str]) -> Result<TextTable> {
        let form = TextForm::default();
        if path.as_os_str() == "-" || form.of(path) == TextFormat::Plain {
            return read_rows(path, &form, &["text"]);
        }
        let known = columns_of(path, &form)?;
        let usual = |names: &[&str]| {
            names.iter().find(|name| known.iter().any(|known| known == *name)).map(|&name| name.to_owned())
        };
        let Some(text) = self.text_column.clone().or_else(|| usual(usual_text)) else {
            bail_input!(
                "{} has the columns {}: say which is the text (--text-column)",
                path.display(),
                known.join(", ")
            );
        };
        let pair = self.pair_column.clone().or_else(|| usual(usual_pair)).filter(|pair| *pair != text);
        let columns: Vec<&str> = std::iter::once(text.as_str()).chain(pair.as_deref()).collect();
        read_rows(path, &form, &columns)
    }
}

/// The usual names of the column of a text.
pub const TEXTS: [&str; 6] = ["sentence", "text", "sentence1", "premise", "question", "question1"];
/// The usual names of the column of a second text.
pub const PAIRS: [&str; 5] = ["sentence2", "text2", "hypothesis", "question2", "positive"];

/// A prediction, for people and for programs.
struct Row {
    text: String,
    shown: String,
    object: Value,
}

/// Runs the verb.
pub fn run(arguments: &TextPredictArgs) -> Result<()> {
    let rows = match task_of(Some(&arguments.run.run))? {
        TaskName::Classify => classify(arguments)?,
        TaskName::Tokens => tag(arguments)?,
        TaskName::Qa => answer(arguments)?,
        TaskName::Mlm => bail_input!("the model guesses hidden words: use `fill`"),
        TaskName::Embed => bail_input!("the model makes embeddings: use `embed` or `similar`"),
        TaskName::Translate | TaskName::Seq2seq => {
            bail_input!("the model makes texts of texts: use `translate`")
        }
        TaskName::Lm => bail_input!("the model goes on with texts: use `generate` or `score`"),
    };
    match arguments.format {
        PredictFormat::Jsonl => {
            print(&rows.iter().map(|row| row.object.to_string()).collect::<Vec<_>>().join("\n"))
        }
        PredictFormat::Table => {
            const WIDEST: usize = 60;
            let short = |text: &str| -> String {
                let flat = text.replace('\n', " ");
                match flat.chars().count() > WIDEST {
                    true => flat.chars().take(WIDEST - 1).chain(['…']).collect(),
                    false => flat,
                }
            };
            let width = rows.iter().map(|row| short(&row.text).chars().count()).max().unwrap_or(0);
            let line = |row: &Row| format!("{:width$}  {}", short(&row.text), row.shown);
            print(&rows.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        PredictFormat::Csv => {
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let lines = rows.iter().map(|row| format!("{},{}", quoted(&row.text), quoted(&row.shown)));
            print(&std::iter::once("text,prediction".to_owned()).chain(lines).collect::<Vec<_>>().join("\n"))
        }
    }
}

fn tell_cut(cut: usize, length: i64) {
    if cut > 0 {
        Log::new(Verbosity::from_flags(false, true))
            .warning(format!("{cut} texts are longer than {length} tokens and were cut"));
    }
}

/// The numbers 0 to `count` in batches of like lengths.
pub fn by_length(count: usize, batch_size: usize, length: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(length(text)));
    order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

fn classify(arguments: &TextPredictArgs) -> Result<Vec<Row>> {
    let session = Session::<Encoders<Classify>>::open(&arguments.run.as_model())?;
    let (recipe, task) = (&session.recipe, &session.task);
    let table = arguments.texts.read(&TEXTS, &PAIRS)?;
    let tokenizer = open_tokenizer(recipe)?;
    let inputs: Vec<TextInput<'_>> = table
        .rows
        .iter()
        .map(|row| TextInput { first: row.text(0), second: (row.fields.len() > 1).then(|| row.text(1)) })
        .collect();
    let length = longest(recipe);
    let (encoded, cut) = encode(&tokenizer, &inputs, length, arguments.strict, |row| table.place(row))
        .map_err(|error| table.blame(error))?;
    tell_cut(cut, length);
    let (padding, device) = (recipe.model.config()?.dimensions().padding, task.parameters().device());
    let _inference = InferenceMode::enter()?;
    let _autocast = recipe.training.precision.autocast(device)?;
    let mut found: Vec<Vec<f64>> = vec![Vec::new(); inputs.len()];
    for batch in by_length(inputs.len(), recipe.training.eval_batch_size(), |text| encoded.length(text)) {
        let scores = task.scores(&batch_of(&encoded, &batch, padding, device)?, Mode::Evaluate)?;
        let values = Vec::<Vec<f64>>::try_from(task.probabilities(&scores)?.f_to_kind(Kind::Double)?)?;
        batch.into_iter().zip(values).for_each(|(text, values)| found[text] = values);
    }
    let classes = task.classes();
    let row = |(input, values): (&TextInput<'_>, Vec<f64>)| {
        let mut object = json!({ "text": input.first });
        if let Some(second) = input.second {
            object["pair"] = json!(second);
        }
        let mut ranked: Vec<(usize, f64)> = values.iter().copied().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shown = match task.goal() {
            Goal::Value => {
                object["value"] = json!(values[0]);
                format!("{:.4}", values[0])
            }
            Goal::Labels => {
                let on: Vec<&str> = ranked
                    .iter()
                    .filter(|(_, value)| *value >= f64::from(multi_label::THRESHOLD))
                    .map(|(class, _)| classes[*class].as_str())
                    .collect();
                object["labels"] = json!(on);
                object["probabilities"] =
                    classes.iter().zip(&values).map(|(class, value)| (class.clone(), json!(value))).collect();
                on.join(", ")
            }
            Goal::Class => {
                let top: Vec<(usize, f64)> = ranked.into_iter().take(arguments.top_k.max(1)).collect();
                object["label"] = json!(classes[top[0].0]);
                object["probability"] = json!(top[0].1);
                if top.len() > 1 {
                    object["top"] = top
                        .iter()
                        .map(|(class, value)| json!({"label": classes[*class], "probability": value}))
                        .collect();
                }
                let listed =
                    top.iter().map(|(class, value)| format!("{} {:.2} %", classes[*class], 100.0 * value));
                listed.collect::<Vec<_>>().join(", ")
            }
        };
        Row { text: input.first.to_owned(), shown, object }
    };
    Ok(inputs.iter().zip(found).map(row).collect())
}

/// The words of a text with their places in bytes: what lies between spaces, punctuation apart.
fn words_of(text: &str) -> Vec<(std::ops::Range<usize>, String)> {
    let mut words: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    let mut open = false;
    for (start, letter) in text.char_indices() {
        let end = start + letter.len_utf8();
        let is_word = letter.is_alphanumeric() || letter == '_';
        if letter.is_whitespace() {
            open = false;
            continue;
        }
        match words.last_mut().filter(|_| open && is_word) {
            Some((place, word)) => {
                place.end = end;
                word.push(letter);
            }
            None => words.push((start..end, letter.to_string())),
        }
        open = is_word;
    }
    words
}

fn tag(arguments: &TextPredictArgs) -> Result<Vec<Row>> {
    let session = Session::<Encoders<Tokens>>::open(&arguments.run.as_model())?;
    let (recipe, task) = (&session.recipe, &session.task);
    let table = arguments.texts.read(&TEXTS, &[])?;
    let tokenizer = open_tokenizer(recipe)?;
    let split: Vec<_> = table.rows.iter().map(|row| words_of(row.text(0))).collect();
    let words: Vec<Vec<String>> =
        split.iter().map(|words| words.iter().map(|(_, word)| word.clone()).collect()).collect();
    let slices: Vec<&[String]> = words.iter().map(Vec::as_slice).collect();
    let length = longest(recipe);
    let encoded = encode_words(&tokenizer, &slices, length)?;
    let cut: usize = words
        .iter()
        .zip(&encoded)
        .map(|(words, one)| words.len() - one.begins.iter().flatten().count())
        .sum();
    if cut > 0 {
        Log::new(Verbosity::from_flags(false, true))
            .warning(format!("{cut} words are beyond {length} tokens of their text and are not seen"));
    }
    let (padding, device) = (recipe.model.config()?.dimensions().padding, task.parameters().device());
    let _inference = InferenceMode::enter()?;
    let _autocast = recipe.training.precision.autocast(device)?;
    let mut rows: Vec<Option<Row>> = (0..words.len()).map(|_| None).collect();
    for batch in by_length(words.len(), recipe.training.eval_batch_size(), |text| encoded[text].ids.len()) {
        let sequences: Vec<(Vec<i64>, usize)> = batch
            .iter()
            .map(|&text| {
                let ids: Vec<i64> = encoded[text].ids.iter().map(|&id| i64::from(id)).collect();
                let end = ids.len();
                (ids, end)
            })
            .collect();
        let tokens = TokenBatch::of(&sequences, padding)?.to_device(device)?;
        let scores = task.model().forward(&tokens.inputs(), false).f_softmax(-1, Kind::Float)?;
        let (best, tags) = scores.f_max_dim(-1, false)?;
        let best = Vec::<Vec<f64>>::try_from(best.f_to_kind(Kind::Double)?)?;
        let tags = Vec::<Vec<i64>>::try_from(tags)?;
        for ((&text, best), tags) in batch.iter().zip(best).zip(tags) {
            let content = table.rows[text].text(0);
            // Words that were not seen are outside of entities.
            let mut named = vec![("O".to_owned(), 0.0); words[text].len()];
            for (place, word) in encoded[text].begins.iter().enumerate() {
                if let Some(word) = word {
                    named[*word] = (task.tags()[tags[place] as usize].clone(), best[place]);
                }
            }
            let names: Vec<&str> = named.iter().map(|(tag, _)| tag.as_str()).collect();
            let found: Vec<Value> = entities(&names)
                .into_iter()
                .map(|entity| {
                    let bytes = split[text][entity.first].0.start..split[text][entity.last].0.end;
                    let certainty =
                        named[entity.first..=entity.last].iter().map(|(_, p)| *p).fold(1.0, f64::min);
                    json!({
                        "type": entity.kind,
                        "text": content[bytes.clone()],
                        "start": content[..bytes.start].chars().count(),
                        "end": content[..bytes.end].chars().count(),
                        "probability": certainty,
                    })
                })
                .collect();
            let listed = found.iter().map(|one| {
                format!(
                    "{} ({})",
                    one["text"].as_str().unwrap_or_default(),
                    one["type"].as_str().unwrap_or_default()
                )
            });
            let shown = listed.collect::<Vec<_>>().join(", ");
            let object = json!({ "text": content, "entities": found, "words": words[text], "tags": names });
            rows[text] = Some(Row { text: content.to_owned(), shown, object });
        }
    }
    Ok(rows.into_iter().flatten().collect())
}

fn answer(arguments: &TextPredictArgs) -> Result<Vec<Row>> {
    let session = Session::<Encoders<Qa>>::open(&arguments.run.as_model())?;
    let (recipe, task) = (&session.recipe, &session.task);
    let mut questions = Vec::new();
    let mut ask = |id: String, question: &str, context: &str| {
        questions.push(Question {
            id,
            question: question.to_owned(),
            context: context.into(),
            answers: Vec::new(),
        });
    };
    if let (Some(question), Some(context)) = (&arguments.question, &arguments.context) {
        ask("--question".to_owned(), question, context);
    }
    let mut source = arguments.texts.clone();
    let (squad, others): (Vec<PathBuf>, Vec<PathBuf>) =
        source.inputs.drain(..).partition(|path| path.extension().is_some_and(|ending| ending == "json"));
    for path in &squad {
        for Question { id, question, context, .. } in read_squad(path)? {
            ask(id, &question, &context);
        }
    }
    source.inputs = others;
    if !source.inputs.is_empty() || !source.text.is_empty() {
        let table = source.read(&["question"], &["context"])?;
        for (number, row) in table.rows.iter().enumerate() {
            if row.fields.len() < 2 {
                bail_input!(
                    "{}: a question needs its context: a column `context`, or --pair",
                    table.place(number)
                );
            }
            ask(table.place(number), row.text(0), row.text(1));
        }
    }
    if questions.is_empty() {
        bail_input!("there is no question: give --question with --context, or a file with both");
    }
    let tokenizer = open_tokenizer(recipe)?;
    let windows = passages(&tokenizer, &questions, longest(recipe), recipe.data.stride)?;
    let (padding, device) = (recipe.model.config()?.dimensions().padding, task.parameters().device());
    let rule = task.rule();
    let _inference = InferenceMode::enter()?;
    let _autocast = recipe.training.precision.autocast(device)?;
    let mut spans: Vec<Vec<_>> = vec![Vec::new(); questions.len()];
    for batch in
        by_length(windows.len(), recipe.training.eval_batch_size(), |window| windows[window].ids.len())
    {
        let sequences: Vec<(Vec<i64>, usize)> =
            batch.iter().map(|&window| (windows[window].ids.clone(), windows[window].second)).collect();
        let tokens = TokenBatch::of(&sequences, padding)?.to_device(device)?;
        let scores = task.model().forward(&tokens.inputs(), false).f_to_kind(Kind::Float)?;
        for (row, &window) in batch.iter().enumerate() {
            let flat = Vec::<f32>::try_from(scores.f_select(0, row as i64)?.f_flatten(0, -1)?)?;
            let scores: Vec<(f32, f32)> = flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            let passage = &windows[window];
            spans[passage.question].push(best_span(passage, &scores, rule.max_answer_length));
        }
    }
    let row = |(question, spans): (&Question, &Vec<_>)| {
        let (answer, score) = answer_of(spans, &question.context, rule);
        let object =
            json!({ "id": question.id, "question": question.question, "answer": answer, "score": score });
        let shown = if answer.is_empty() { "(no answer)".to_owned() } else { answer.to_owned() };
        Row { text: question.question.clone(), shown, object }
    };
    Ok(questions.iter().zip(&spans).map(row).collect())
}
