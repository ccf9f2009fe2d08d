//! `explain`: which tokens a prediction rests on.
//!
//! Integrated gradients: Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", 2017. The path leads from a text of padding between the same
//! special tokens to the text itself, in the space of word embeddings. The attributions of all tokens add up to the difference of the label's score at
//! both ends; what is missing of that is told.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tch::{Kind, Tensor};

use super::family::{Encoders, batch_of, longest, open_tokenizer};
use super::predict::{PAIRS, TEXTS, TextSource};
use super::{Classify, TaskName, task_of};
use crate::cli::args::{EvalFormat, RunArgs};
use crate::cli::print;
use crate::cli::session::Session;
use crate::data::encoder_texts::{TokenBatch, encode};
use crate::data::text::TextInput;
use crate::models::encoders::EncoderInputs;
use crate::recipe::nearest_hint;
use crate::reporting::{Log, Verbosity};
use crate::tasks::Task;
use crate::tasks::text_classification::TextClassification;
use crate::{bail_input, files};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub texts: TextSource,
    /// The label whose score is explained [default: the predicted one]
    #[arg(long, value_name = "NAME")]
    pub label: Option<String>,
    /// Points on the path of integrated gradients
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub points: usize,
    /// Also write a page with the attributions and the attention of every layer
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
}

/// What was found about one text.
struct Explanation {
    text: String,
    label: String,
    tokens: Vec<String>,
    attributions: Vec<f64>,
    score: f64,
    /// Score of the text minus score of the padding, which the attributions add up to but for the error of the sum.
    difference: f64,
    /// For each layer and head the weights, `[queries][keys]`.
    attention: Vec<Vec<Vec<Vec<f32>>>>,
}

/// Runs the verb.
pub fn run(arguments: &ExplainArgs) -> Result<()> {
    let kind = task_of(Some(&arguments.run.run))?;
    if kind != TaskName::Classify {
        bail_input!(
            "{} is for `{}`: predictions of `classify` are explained",
            arguments.run.run.display(),
            kind.name()
        );
    }
    if arguments.points == 0 {
        bail_input!("--points is 0: it must be at least 1");
    }
    if let Some(out) = &arguments.out {
        crate::cli::export::refuse_existing(out)?;
    }
    let session = Session::<Encoders<Classify>>::open(&arguments.run.as_model())?;
    let (recipe, task) = (&session.recipe, &session.task);
    let tokenizer = open_tokenizer(recipe)?;
    let table = arguments.texts.read(&TEXTS, &PAIRS)?;
    let inputs: Vec<TextInput<'_>> = table
        .rows
        .iter()
        .map(|row| TextInput { first: row.text(0), second: (row.fields.len() > 1).then(|| row.text(1)) })
        .collect();
    let (encoded, cut) = encode(&tokenizer, &inputs, longest(recipe), false, |row| table.place(row))
        .map_err(|error| table.blame(error))?;
    let log = Log::new(Verbosity::from_flags(false, true));
    if cut > 0 {
        log.warning(format!("{cut} texts are longer than {} tokens and were cut", longest(recipe)));
    }
    let (padding, device) = (recipe.model.config()?.dimensions().padding, task.parameters().device());
    let special = tokenizer.special();
    let kept = [special.class, special.separator, special.begin, special.end];
    let mut explanations = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let ids = encoded.ids(number);
        let tokens = batch_of(&encoded, &[number], padding, device)?;
        let empty: Vec<i64> =
            ids.iter().map(|&id| if kept.contains(&Some(id)) { id } else { padding }).collect();
        let empty = TokenBatch::of(&[(empty, encoded.second_from(number))], padding)?.to_device(device)?;
        let label = arguments.label.as_deref();
        let mut explanation = explain(task, &tokens, &empty, label, arguments.points)?;
        explanation.text = input
            .second
            .map_or_else(|| input.first.to_owned(), |second| format!("{} — {second}", input.first));
        explanation.tokens =
            ids.iter().map(|&id| tokenizer.token(id).unwrap_or_else(|| id.to_string())).collect();
        explanations.push(explanation);
    }
    if let Some(out) = &arguments.out {
        files::write_atomic(out, page(&explanations).as_bytes())?;
        log.result(format!("wrote {}", out.display()));
    }
    let lines: Vec<String> = match arguments.format {
        EvalFormat::Json => explanations.iter().map(json_line).collect(),
        EvalFormat::Table => explanations.iter().map(terminal).collect(),
    };
    print(&lines.join("\n"))
}

fn explain(
    task: &TextClassification,
    tokens: &TokenBatch,
    empty: &TokenBatch,
    label: Option<&str>,
    points: usize,
) -> Result<Explanation> {
    const POINTS_AT_A_TIME: usize = 16;
    let Some(encoder) = task.model().encoder() else {
        bail_input!(
            "explain looks at the word vectors and the attention of an encoder, which a TorchScript module does not show"
        );
    };
    let score_of = |words: &Tensor| -> Result<Tensor> {
        let count = words.size()[0];
        let repeated = |tensor: &Tensor| tensor.expand([count, -1], false);
        let ids = repeated(&tokens.ids);
        let segments = tokens.segments.as_ref().map(repeated);
        let inputs = EncoderInputs { ids: &ids, segments: segments.as_ref(), mask: None };
        let hidden = encoder.forward_from(words, &inputs, false);
        Ok(task.model().scores(&hidden, false).f_to_kind(Kind::Float)?)
    };
    let (words, baseline) = {
        let _guard = tch::no_grad_guard();
        (encoder.embed_words(&tokens.ids), encoder.embed_words(&empty.ids)) // [1, length, width]
    };
    let (at_text, at_baseline, attention) = {
        let _guard = tch::no_grad_guard();
        (score_of(&words)?, score_of(&baseline)?, encoder.attention_weights(&tokens.inputs()))
    };
    let classes = task.classes();
    let class = match label {
        Some(label) => match classes.iter().position(|name| name == label) {
            Some(class) => class as i64,
            None => bail_input!(
                "--label {label}: there is no such label{}",
                nearest_hint(label, classes.iter().map(String::as_str))
            ),
        },
        None => at_text.f_argmax(-1, false)?.f_int64_value(&[0])?,
    };
    let path = (&words - &baseline).detach();
    let mut gradients = path.f_zeros_like()?;
    // The middle of each part of the path.
    let shares: Vec<f32> = (0..points).map(|point| (point as f32 + 0.5) / points as f32).collect();
    for shares in shares.chunks(POINTS_AT_A_TIME) {
        let shares = Tensor::f_from_slice(shares)?.f_to_device(words.device())?.f_view([-1, 1, 1])?;
        let place = (&baseline + &path * shares).detach().set_requires_grad(true); // [points, length, width]
        let score = score_of(&place)?.f_select(1, class)?.f_sum(Kind::Float)?;
        let gradient = Tensor::f_run_backward(&[score], &[&place], false, false)?;
        gradients = gradients.f_add(&gradient[0].f_sum_dim_intlist(0i64, true, Kind::Float)?)?;
    }
    let attributions =
        (gradients.f_div_scalar(points as f64)? * &path).f_sum_dim_intlist(-1i64, false, Kind::Double)?; // [1, length]
    let score = at_text.f_double_value(&[0, class])?;
    let attention = attention
        .iter()
        .map(|layer| {
            let (_, heads, ..) = layer.size4()?;
            (0..heads)
                .map(|head| Ok(Vec::<Vec<f32>>::try_from(layer.f_select(0, 0)?.f_select(0, head)?)?))
                .collect()
        })
        .collect::<Result<_>>()?;
    Ok(Explanation {
        text: String::new(),
        label: classes.get(class as usize).cloned().unwrap_or_else(|| "value".to_owned()),
        tokens: Vec::new(),
        attributions: Vec::try_from(attributions.f_squeeze_dim(0)?)?,
        score,
        difference: score - at_baseline.f_double_value(&[0, class])?,
        attention,
    })
}

fn json_line(one: &Explanation) -> String {
    let tokens: Vec<_> = one
        .tokens
        .iter()
        .zip(&one.attributions)
        .map(|(token, value)| json!({"token": token, "attribution": value}))
        .collect();
    json!({
        "text": one.text,
        "label": one.label,
        "score": one.score,
        "difference": one.difference,
        "missing": one.difference - one.attributions.iter().sum::<f64>(),
        "tokens": tokens,
    })
    .to_string()
}

/// A line for each token with a bar: to the right for the label, to the left against it.
fn terminal(one: &Explanation) -> String {
    const HALF: usize = 20;
    let largest = one.attributions.iter().fold(1e-12, |largest: f64, value| largest.max(value.abs()));
    let width = one.tokens.iter().map(|token| token.chars().count()).max().unwrap_or(0);
    let missing = one.difference - one.attributions.iter().sum::<f64>();
    let mut lines = vec![
        one.text.clone(),
        format!(
            "label {}, score {:.4}, {:.4} above a text of padding ({:.1} % of that unaccounted for)",
            one.label,
            one.score,
            one.difference,
            100.0 * (missing / one.difference).abs()
        ),
    ];
    for (token, value) in one.tokens.iter().zip(&one.attributions) {
        let length = (value.abs() / largest * HALF as f64).round() as usize;
        let bar = "█".repeat(length);
        let bar = match *value < 0.0 {
            true => format!("{}{bar}│", " ".repeat(HALF - length)),
            false => format!("{}│{bar}", " ".repeat(HALF)),
        };
        lines.push(format!("{token:width$}  {value:>+8.4}  {bar}"));
    }
    lines.join("\n")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page of its own: coloured tokens, then a map of the attention of each head of each layer.
fn page(explanations: &[Explanation]) -> String {
    let mut body = String::new();
    for one in explanations {
        let largest = one.attributions.iter().fold(1e-12, |largest: f64, value| largest.max(value.abs()));
        body += &format!(
            "<h2>{}</h2><p>Label <b>{}</b>, score {:.4}.</p><p>",
            escaped(&one.text),
            escaped(&one.label),
            one.score
        );
        for (token, value) in one.tokens.iter().zip(&one.attributions) {
            let strength = value.abs() / largest;
            let colour = if *value < 0.0 { "211,84,0" } else { "41,128,185" };
            body += &format!(
                "<span title=\"{value:+.4}\" style=\"background:rgba({colour},{strength:.3})\">{}</span> ",
                escaped(token)
            );
        }
        body += "</p><details><summary>Attention</summary>";
        for (number, layer) in one.attention.iter().enumerate() {
            body += &format!("<h3>Layer {}</h3><div class=\"heads\">", number + 1);
            for (head, weights) in layer.iter().enumerate() {
                body += &map(weights, &one.tokens, head + 1);
            }
            body += "</div>";
        }
        body += "</details>";
    }
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Explanations</title><style>\
         body{{font:16px/1.7 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}\
         span{{padding:.1em .2em;border-radius:.2em}}.heads{{display:flex;flex-wrap:wrap;gap:1rem}}\
         figure{{margin:0}}figcaption{{font-size:.8rem}}</style></head><body><h1>Explanations</h1>\
         <p>Blue tokens speak for the label, orange ones against it (integrated gradients; point at a token for its number).</p>{body}</body></html>\n"
    )
}

/// One head's weights as squares, queries from top to bottom, keys from left to right.
fn map(weights: &[Vec<f32>], tokens: &[String], head: usize) -> String {
    const SIDE: usize = 160;
    let count = weights.len().max(1);
    let cell = SIDE as f64 / count as f64;
    let mut squares = String::new();
    for (query, row) in weights.iter().enumerate() {
        for (key, weight) in row.iter().enumerate() {
            // What cannot be seen is left out.
            if *weight < 0.01 {
                continue;
            }
            let name = |place: usize| tokens.get(place).map(|token| escaped(token)).unwrap_or_default();
            squares += &format!(
                "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{cell:.2}\" height=\"{cell:.2}\" fill-opacity=\"{weight:.3}\"><title>{} to {}: {weight:.3}</title></rect>",
                key as f64 * cell,
                query as f64 * cell,
                name(query),
                name(key)
            );
        }
    }
    format!(
        "<figure><svg width=\"{SIDE}\" height=\"{SIDE}\" viewBox=\"0 0 {SIDE} {SIDE}\" style=\"border:1px solid #ccc\" fill=\"#2980b9\">{squares}</svg><figcaption>head {head}</figcaption></figure>"
    )
}
