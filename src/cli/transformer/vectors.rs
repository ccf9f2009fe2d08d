//! `embed` and `similar`: texts as vectors, with the encoder of any run or folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::json;
use tch::{Kind, Tensor};

use super::TaskName;
use super::family::{EncoderRecipe, EncoderSection, batch_of, open_tokenizer, tokenizer_at};
use super::predict::{TEXTS, TextSource, by_length};
use super::pretrained::Pretrained;
use crate::bail_input;
use crate::cli::args::{DeviceArgs, EvalFormat};
use crate::cli::{print, session};
use crate::data::encoder_texts::encode;
use crate::data::text::{TOKENIZER_FILE, TextInput, TextTable, TextTokenizer};
use crate::files;
use crate::models::Parameters;
use crate::models::encoders::{EncoderModel, HeadKind};
use crate::native::modes::InferenceMode;
use crate::recipe;
use crate::reporting::{Log, Verbosity};
use crate::tasks::Mode;
use crate::tasks::sentence_embedding::{PairLoss, Pooling, SentenceEmbedding, normalised};
use crate::training::config::TrainingConfig;
use crate::training::run::{find_checkpoint, read_recipe};
use crate::weights::{self, NamedTensors, write_safetensors};

/// Arguments of `embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    pub encoder: EncoderArgs,
    #[command(flatten)]
    pub texts: TextSource,
    /// Form of the output; NPY and safetensors need --out
    #[arg(long, value_enum, default_value_t = VectorFormat::Jsonl)]
    pub format: VectorFormat,
    /// The file to write [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Arguments of `similar`.
#[derive(Debug, Args)]
pub struct SimilarArgs {
    #[command(flatten)]
    pub encoder: EncoderArgs,
    #[command(flatten)]
    pub texts: TextSource,
    /// Texts to look among, one a line or with columns; without it the texts are compared with each other
    #[arg(long, value_name = "FILE")]
    pub corpus: Option<PathBuf>,
    /// Most alike texts to print for each
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub top_k: usize,
    /// How to print
    #[arg(long, value_enum, default_value_t = EvalFormat::Table)]
    pub format: EvalFormat,
}

/// Which encoder, and how it makes one vector of many.
#[derive(Clone, Debug, Args)]
pub struct EncoderArgs {
    /// A run, a Hugging Face or sentence-transformers folder, or hf:ORG/NAME
    #[arg(value_name = "DIR|RUN")]
    pub source: PathBuf,
    /// best, last or step-N of a run
    #[arg(long, value_name = "NAME")]
    pub checkpoint: Option<String>,
    /// How the vectors of tokens become one [default: by the folder's files, else mean]
    #[arg(long, value_enum)]
    pub pooling: Option<Pooling>,
    /// Leave embeddings as long as they are
    #[arg(long)]
    pub no_normalize: bool,
    /// Most tokens of a text [default: by the folder's files, else what the model reads]
    #[arg(long, value_name = "N")]
    pub max_length: Option<i64>,
    /// Refuse longer texts instead of cutting them
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Texts computed at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch_size: usize,
}

/// Forms of vectors in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VectorFormat {
    /// `{"text", "embedding"}` on each line.
    Jsonl,
    /// An array of NumPy, `[texts, width]` float32.
    Npy,
    /// The tensor `embeddings`, `[texts, width]` float32.
    Safetensors,
}

/// An encoder that is ready to embed.
pub struct TextEmbedder {
    recipe: EncoderRecipe,
    task: SentenceEmbedding,
    tokenizer: TextTokenizer,
    length: i64,
    batch_size: usize,
    strict: bool,
}

impl TextEmbedder {
    /// Opens the encoder below whatever head the source has.
    pub fn open(arguments: &EncoderArgs) -> Result<Self> {
        let pretrained = Pretrained::find(&arguments.source)?;
        let (pooling, normalise, known_length) = pretrained.pooling()?;
        let pooling = arguments.pooling.or(pooling).unwrap_or_default();
        let normalise = !arguments.no_normalize && normalise.unwrap_or(true);
        let config = pretrained.encoder()?;
        let longest = config.longest_text();
        let length = arguments.max_length.or(known_length).unwrap_or(longest).min(longest);
        let mut settings = json!({
            "name": "embed",
            "model": EncoderSection { config: Some(config), ..EncoderSection::of(TaskName::Embed) },
            "data": {},
        });
        let mut flags = Vec::new();
        arguments.device.settings(&mut flags);
        for (key, value) in flags {
            recipe::set(&mut settings, key, value)?;
        }
        let mut recipe: EncoderRecipe = recipe::typed(settings, "the command line")?;
        recipe.data.tokenizer = Some(tokenizer_at(match arguments.source.join("recipe.json").is_file() {
            true => pretrained.folder.join(TOKENIZER_FILE),
            false => pretrained.folder.clone(),
        }));
        let device = session::prepare(&mut recipe.training)?;
        let lora = match arguments.source.join("recipe.json").is_file() {
            true => {
                let training = read_recipe(&arguments.source)?["training"].clone();
                recipe::typed::<TrainingConfig>(training, &pretrained.origin)?.fine_tune.lora
            }
            false => None,
        };
        let parameters = Parameters::undrawn(device).with_lora(lora);
        let model = EncoderModel::new(&parameters.root(), recipe.model.config()?, HeadKind::None, false)?;
        let weights_at = match &arguments.checkpoint {
            Some(name) => find_checkpoint(&arguments.source, Some(name))?,
            None => arguments.source.clone(),
        };
        // The pooler has no part in an embedding, and many models have none; heads have no place here.
        let loaded =
            weights::load_pretrained(&parameters, &weights_at, false, |name| name.starts_with("pooler."))?;
        if loaded.report.loaded.is_empty()
            || loaded.report.missing.iter().any(|name| !name.starts_with("pooler."))
        {
            bail_input!("{} does not fit this model: {}", pretrained.origin, loaded.report.describe());
        }
        let tokenizer = open_tokenizer(&recipe)?;
        if tokenizer.vocabulary_size() as i64 > recipe.model.config()?.dimensions().vocabulary {
            bail_input!(
                "the tokenizer of {} has {} tokens, but the model's word table only {}: they do not belong together",
                pretrained.origin,
                tokenizer.vocabulary_size(),
                recipe.model.config()?.dimensions().vocabulary
            );
        }
        let task = SentenceEmbedding::new(parameters, model, pooling, normalise, PairLoss::default());
        let (batch_size, strict) = (arguments.batch_size, arguments.strict);
        Ok(Self { recipe, task, tokenizer, length, batch_size, strict })
    }

    /// One vector for each row, `[texts, width]` float32 on the CPU.
    pub fn embed(&self, table: &TextTable) -> Result<Tensor> {
        use crate::tasks::Task;
        let inputs: Vec<TextInput<'_>> =
            table.rows.iter().map(|row| TextInput::single(row.text(0))).collect();
        let place = |row: usize| table.place(row);
        let (encoded, cut) = encode(&self.tokenizer, &inputs, self.length, self.strict, place)
            .map_err(|error| table.blame(error))?;
        if cut > 0 {
            Log::new(Verbosity::from_flags(false, true))
                .warning(format!("{cut} texts are longer than {} tokens and were cut", self.length));
        }
        let numbers = self.recipe.model.config()?.dimensions();
        let device = self.task.parameters().device();
        let _inference = InferenceMode::enter()?;
        let _autocast = self.recipe.training.precision.autocast(device)?;
        // On the CPU, where files are written from.
        let all = Tensor::f_empty([inputs.len() as i64, numbers.width], (Kind::Float, tch::Device::Cpu))?;
        for batch in by_length(inputs.len(), self.batch_size, |text| encoded.length(text)) {
            let tokens = batch_of(&encoded, &batch, numbers.padding, device)?;
            let vectors = self.task.embed(&tokens, Mode::Evaluate)?.f_to_device(tch::Device::Cpu)?;
            let rows: Vec<i64> = batch.iter().map(|&text| text as i64).collect();
            let _ = all.shallow_clone().f_index_copy_(0, &Tensor::f_from_slice(&rows)?, &vectors)?;
        }
        Ok(all)
    }
}

/// Runs `embed`.
pub fn embed(arguments: &EmbedArgs) -> Result<()> {
    if arguments.out.is_none() && arguments.format != VectorFormat::Jsonl {
        bail_input!(
            "--format {}: name the file with --out",
            match arguments.format {
                VectorFormat::Npy => "npy",
                _ => "safetensors",
            }
        );
    }
    if let Some(out) = &arguments.out {
        crate::cli::export::refuse_existing(out)?;
    }
    let embedder = TextEmbedder::open(&arguments.encoder)?;
    let table = arguments.texts.read(&TEXTS, &[])?;
    let vectors = embedder.embed(&table)?;
    let lines = || -> Result<String> {
        let rows = Vec::<Vec<f32>>::try_from(&vectors)?;
        let line = |(row, vector): (&crate::data::text::TextRow, Vec<f32>)| {
            json!({ "text": row.text(0), "embedding": vector }).to_string()
        };
        Ok(table.rows.iter().zip(rows).map(line).collect::<Vec<_>>().join("\n"))
    };
    match (&arguments.out, arguments.format) {
        (None, _) => print(&lines()?),
        (Some(out), VectorFormat::Jsonl) => files::write_atomic(out, (lines()? + "\n").as_bytes()),
        (Some(out), VectorFormat::Npy) => files::write_atomic(out, &npy(&vectors)?),
        (Some(out), VectorFormat::Safetensors) => crate::cli::export::place(out, |staged| {
            write_safetensors(
                staged,
                &NamedTensors::from([("embeddings".to_owned(), vectors.shallow_clone())]),
            )
        }),
    }
}

/// An array file of NumPy, version 1.0: float32, rows first.
fn npy(vectors: &Tensor) -> Result<Vec<u8>> {
    let (rows, columns) = vectors.size2()?;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    // The numbers begin at a multiple of 64 bytes, behind a line end.
    const BEFORE: usize = 10;
    header.push_str(&" ".repeat((64 - (BEFORE + header.len() + 1) % 64) % 64));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).context("the header of the array")?.to_le_bytes());
    bytes.extend(header.as_bytes());
    let values = Vec::<f32>::try_from(vectors.f_contiguous()?.f_flatten(0, -1)?)?;
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    Ok(bytes)
}

/// Runs `similar`.
pub fn similar(arguments: &SimilarArgs) -> Result<()> {
    let embedder = TextEmbedder::open(&arguments.encoder)?;
    let queries = arguments.texts.read(&TEXTS, &[])?;
    let corpus = match &arguments.corpus {
        Some(path) => read_corpus(path, &arguments.texts)?,
        None if queries.rows.len() > 1 => queries.clone(),
        None => bail_input!("there is one text and nothing to compare it with: give --corpus or more texts"),
    };
    let of_queries = normalised(&embedder.embed(&queries)?)?;
    let of_corpus = normalised(&embedder.embed(&corpus)?)?;
    let likeness = of_queries.f_matmul(&of_corpus.f_transpose(0, 1)?)?; // [queries, corpus]
    let with_itself = arguments.corpus.is_none();
    let mut lines = Vec::new();
    for (number, query) in queries.rows.iter().enumerate() {
        let row = Vec::<f32>::try_from(likeness.f_select(0, number as i64)?)?;
        let mut ranked: Vec<(usize, f32)> =
            row.into_iter().enumerate().filter(|(other, _)| !(with_itself && *other == number)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(arguments.top_k.max(1));
        let text = |other: usize| corpus.rows[other].text(0);
        lines.push(match arguments.format {
            EvalFormat::Json => {
                let listed: Vec<_> = ranked
                    .iter()
                    .map(|(other, cosine)| json!({"text": text(*other), "line": corpus.rows[*other].line, "cosine": cosine}))
                    .collect();
                json!({ "text": query.text(0), "similar": listed }).to_string()
            }
            EvalFormat::Table => {
                let listed = ranked.iter().map(|(other, cosine)| format!("  {cosine:.4}  {}", text(*other)));
                std::iter::once(query.text(0).to_owned()).chain(listed).collect::<Vec<_>>().join("\n")
            }
        });
    }
    print(&lines.join("\n"))
}

fn read_corpus(path: &Path, like: &TextSource) -> Result<TextTable> {
    let source = TextSource {
        inputs: vec![path.to_owned()],
        text_column: like.text_column.clone(),
        ..TextSource::default()
    };
    source.read(&TEXTS, &[])
}
