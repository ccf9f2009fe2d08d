//! Sequences with labels: texts, and series of numbers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tch::{Device, Tensor};

use super::arrays;
use super::config::{SYNTHETIC, SequenceDataConfig};
use crate::data::fingerprint::Fingerprint;
use crate::data::order::{Sampler, hold_out};
use crate::data::table::is_missing;
use crate::data::text::{
    EncodeOptions, EncodedTexts, LabelSet, LengthBuckets, TextForm, TextInput, TextTable, TextTokenizer, pad,
    read_rows,
};
use crate::data::{Batching, Splits};
use crate::{bad_input, bail_input, files};

/// What sequences are to be taken for.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// The number of one class each.
    One(Vec<i64>),
    /// The numbers of the classes of each.
    Several(Vec<Vec<usize>>),
}

impl Targets {
    fn len(&self) -> usize {
        match self {
            Self::One(classes) => classes.len(),
            Self::Several(sets) => sets.len(),
        }
    }

    fn of(&self, samples: &[usize]) -> Self {
        match self {
            Self::One(classes) => Self::One(samples.iter().map(|&sample| classes[sample]).collect()),
            Self::Several(sets) => {
                Self::Several(samples.iter().map(|&sample| sets[sample].clone()).collect())
            }
        }
    }
}

/// The steps of sequences.
#[derive(Debug)]
enum Content {
    Tokens(EncodedTexts),
    Numbers {
        /// `[sequence, step, feature]` one after the other.
        values: Vec<f32>,
        /// Behind the last step of each sequence.
        ends: Vec<usize>,
        features: usize,
    },
}

/// Sequences with what they are to be taken for. Parts share the content.
#[derive(Debug)]
pub struct LabelledSequences {
    content: Arc<Content>,
    /// Which sequences of the content are in this part.
    chosen: Vec<usize>,
    targets: Targets,
    classes: usize,
    lengths: Arc<[u32]>,
    /// Where each sequence is from, or what it says.
    origins: Arc<Vec<String>>,
    pad: i64,
}

/// Sequences of one batch, filled up behind.
#[derive(Debug)]
pub struct SequenceBatch {
    /// Tokens `[batch, longest]` int64, or numbers `[batch, longest, features]`.
    pub inputs: Tensor,
    /// Steps of each, `[batch]` int64, on the CPU always: that is where libtorch packs sequences from.
    pub lengths: Tensor,
    /// Classes `[batch]` int64, or `[batch, classes]` float32 of ones and zeros.
    pub targets: Tensor,
}

impl SequenceBatch {
    /// The same on another device.
    pub fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            inputs: self.inputs.f_to_device(device)?,
            lengths: self.lengths,
            targets: self.targets.f_to_device(device)?,
        })
    }
}

/// Sequences that were opened, with what they were read by.
#[derive(Debug)]
pub struct OpenedSequences {
    /// The parts.
    pub splits: Splits<LabelledSequences>,
    /// The classes by number.
    pub classes: Vec<String>,
    /// Of texts.
    pub tokenizer: Option<TextTokenizer>,
    /// Of numbers: features of each step, their mean and standard deviation in the training part.
    pub standards: Option<(usize, Vec<f64>, Vec<f64>)>,
}

/// Sequences of numbers before they are put together.
#[derive(Debug, Default)]
pub struct RawSequences {
    /// Numbers of each step.
    pub features: usize,
    /// `[step, feature]` of each sequence.
    pub values: Vec<Vec<f32>>,
    /// The label of each.
    pub labels: Vec<String>,
    /// Where each is from.
    pub origins: Vec<String>,
}

impl LabelledSequences {
    /// Encoded texts. `pad` fills them up.
    pub fn of_texts(
        texts: EncodedTexts,
        origins: Vec<String>,
        targets: Targets,
        classes: usize,
        pad: i64,
    ) -> Self {
        let chosen = (0..texts.len()).collect();
        Self::new(Content::Tokens(texts), chosen, targets, classes, origins, pad)
    }

    fn of_numbers(raw: RawSequences, targets: Targets, classes: usize, max_length: Option<usize>) -> Self {
        let features = raw.features;
        let (mut values, mut ends) = (Vec::new(), Vec::new());
        for sequence in raw.values {
            let steps = (sequence.len() / features).min(max_length.unwrap_or(usize::MAX));
            values.extend_from_slice(&sequence[..steps * features]);
            ends.push(values.len() / features);
        }
        let chosen = (0..ends.len()).collect();
        Self::new(Content::Numbers { values, ends, features }, chosen, targets, classes, raw.origins, 0)
    }

    fn new(
        content: Content,
        chosen: Vec<usize>,
        targets: Targets,
        classes: usize,
        origins: Vec<String>,
        pad: i64,
    ) -> Self {
        let mut made = Self {
            content: Arc::new(content),
            chosen,
            targets,
            classes,
            lengths: Arc::from([]),
            origins: Arc::new(origins),
            pad,
        };
        made.lengths = made.chosen.iter().map(|&sequence| made.content.length(sequence) as u32).collect();
        made
    }

    fn part(&self, samples: &[usize]) -> Self {
        let chosen: Vec<usize> = samples.iter().map(|&sample| self.chosen[sample]).collect();
        Self {
            content: self.content.clone(),
            lengths: samples.iter().map(|&sample| self.lengths[sample]).collect(),
            targets: self.targets.of(samples),
            classes: self.classes,
            origins: self.origins.clone(),
            pad: self.pad,
            chosen,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Steps of each.
    pub fn lengths(&self) -> &Arc<[u32]> {
        &self.lengths
    }

    /// The class of each, where each has one.
    pub fn classes(&self) -> Option<Vec<i64>> {
        match &self.targets {
            Targets::One(classes) => Some(classes.clone()),
            Targets::Several(_) => None,
        }
    }

    /// Batches of like lengths, unless all are equal.
    pub fn sampler(&self, wanted: Batching) -> Option<Arc<dyn Sampler>> {
        let Batching { batch_size, seed, train, .. } = wanted;
        let equal = self.lengths.windows(2).all(|pair| pair[0] == pair[1]);
        (!equal).then(|| {
            Arc::new(LengthBuckets { lengths: self.lengths.clone(), batch_size, seed, shuffled: train })
                as Arc<dyn Sampler>
        })
    }

    /// Some of them as tensors.
    pub fn batch(&self, samples: &[usize]) -> Result<SequenceBatch> {
        let (inputs, lengths) = match &*self.content {
            Content::Tokens(texts) => {
                let sequences: Vec<Vec<i64>> =
                    samples.iter().map(|&sample| texts.ids(self.chosen[sample])).collect();
                let padded = pad(&sequences, self.pad)?;
                (padded.ids, padded.lengths)
            }
            Content::Numbers { values, features, .. } => {
                let lengths: Vec<i64> =
                    samples.iter().map(|&sample| i64::from(self.lengths[sample])).collect();
                let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
                let mut all = Vec::with_capacity(samples.len() * longest * features);
                for &sample in samples {
                    let (start, end) = self.content.range(self.chosen[sample]);
                    all.extend_from_slice(&values[start * features..end * features]);
                    all.resize(all.len() + (longest - (end - start)) * features, 0.0);
                }
                let size = [samples.len() as i64, longest as i64, *features as i64];
                (Tensor::f_from_slice(&all)?.f_view(size)?, Tensor::f_from_slice(&lengths)?)
            }
        };
        let targets = match &self.targets {
            Targets::One(classes) => {
                Tensor::f_from_slice(&samples.iter().map(|&sample| classes[sample]).collect::<Vec<_>>())?
            }
            Targets::Several(sets) => {
                let mut rows = vec![0f32; samples.len() * self.classes];
                for (row, &sample) in samples.iter().enumerate() {
                    sets[sample].iter().for_each(|class| rows[row * self.classes + class] = 1.0);
                }
                Tensor::f_from_slice(&rows)?.f_view([samples.len() as i64, self.classes as i64])?
            }
        };
        Ok(SequenceBatch { inputs, lengths, targets })
    }

    /// Where a sequence is from.
    pub fn describe(&self, sample: usize) -> String {
        self.origins[self.chosen[sample]].clone()
    }

    /// What tells these sequences from others.
    pub fn take_print(&self, print: &mut Fingerprint) {
        for (&sequence, length) in self.chosen.iter().zip(self.lengths.iter()) {
            print.add(&length.to_le_bytes());
            match &*self.content {
                Content::Tokens(texts) => {
                    let ids = texts.ids(sequence);
                    print.add(&ids.iter().flat_map(|id| (*id as u32).to_le_bytes()).collect::<Vec<u8>>());
                }
                Content::Numbers { values, features, .. } => {
                    let (start, end) = self.content.range(sequence);
                    let numbers = &values[start * features..end * features];
                    print.add(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>());
                }
            }
        }
        print.add(format!("{:?}", self.targets).as_bytes());
    }
}

impl Content {
    fn range(&self, sequence: usize) -> (usize, usize) {
        match self {
            Self::Tokens(texts) => (0, texts.length(sequence)),
            Self::Numbers { ends, .. } => {
                (if sequence == 0 { 0 } else { ends[sequence - 1] }, ends[sequence])
            }
        }
    }

    fn length(&self, sequence: usize) -> usize {
        let (start, end) = self.range(sequence);
        end - start
    }
}

/// Opens the sequences of a recipe. Texts become tokens by the tokenizer that their run has `kept`, else by one that is made from them.
///
/// # Errors
/// A missing file or column, an empty text or sequence, a label that is none of the classes, a value that is no number: with file and line.
pub fn open_labelled(
    config: &SequenceDataConfig,
    seed: u64,
    kept: Option<TextTokenizer>,
) -> Result<OpenedSequences> {
    if config.format == SYNTHETIC {
        return numbers(config, seed, synthetic(2000, 7)?, None, Some(synthetic(500, 8)?));
    }
    let Some(path) = &config.path else {
        bail_input!(
            "data.format `{}` is a text for language models: give --data PATH with labelled sequences, or --data {SYNTHETIC}",
            config.format
        );
    };
    if let Some([train, validation, test]) = arrays::read(path)? {
        let Some(train) = train else { bail_input!("{} has no x and y to train on", path.display()) };
        return numbers(config, seed, train, validation, test);
    }
    if let Some(id) = &config.id {
        let read = |path: &Path| long_table(path, id, config);
        let (train, validation, test) = parts(path, config)?;
        let (validation, test) =
            (validation.as_deref().map(read).transpose()?, test.as_deref().map(read).transpose()?);
        return numbers(config, seed, read(&train)?, validation, test);
    }
    if path.is_dir() && find(path, &["train"])?.is_none() {
        return numbers(config, seed, class_folders(path)?, None, None);
    }
    texts(config, seed, path, kept)
}

/// The training, validation and test file.
type Parts = (PathBuf, Option<PathBuf>, Option<PathBuf>);

fn parts(path: &Path, config: &SequenceDataConfig) -> Result<Parts> {
    let (mut validation, mut test) = (config.validation.clone(), config.test.clone());
    if !path.is_dir() {
        return Ok((path.to_owned(), validation, test));
    }
    let Some(train) = find(path, &["train"])? else {
        bail_input!("{} has no file train.tsv, train.csv or train.jsonl", path.display());
    };
    validation = match validation {
        Some(given) => Some(given),
        None => find(path, &["dev", "validation", "val", "valid"])?,
    };
    test = match test {
        Some(given) => Some(given),
        None => find(path, &["test"])?,
    };
    Ok((train, validation, test))
}

/// The file of a folder with one of the names, whatever its end.
fn find(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    const ENDS: [&str; 5] = ["tsv", "csv", "jsonl", "ndjson", "tsv.gz"];
    if !folder.exists() {
        bail_input!("{} does not exist", folder.display());
    }
    let candidates =
        names.iter().flat_map(|name| ENDS.iter().map(move |end| folder.join(format!("{name}.{end}"))));
    Ok(candidates.into_iter().find(|path| path.is_file()))
}

fn form(config: &SequenceDataConfig) -> TextForm {
    TextForm { format: config.text_format, columns: config.columns.clone(), quoting: config.quoting }
}

fn texts(
    config: &SequenceDataConfig,
    seed: u64,
    path: &Path,
    kept: Option<TextTokenizer>,
) -> Result<OpenedSequences> {
    let (train, validation, test) = parts(path, config)?;
    let read = |path: &Path| -> Result<TextTable> {
        let table = read_rows(path, &form(config), &[&config.text, &config.label])?;
        table.require_text(0)?;
        Ok(table)
    };
    let train = read(&train)?;
    let validation = validation.as_deref().map(read).transpose()?;
    let test = test.as_deref().map(read).transpose()?;

    let labels = match &config.classes {
        Some(names) => LabelSet::new(names.clone())?,
        None => LabelSet::collect(train.rows.iter().flat_map(|row| -> Box<dyn Iterator<Item = &str>> {
            match config.multi_label {
                true => crate::data::text::split_labels(&row.fields[1]),
                false => Box::new(std::iter::once(row.text(1))),
            }
        }))?,
    };
    let chosen =
        |table: &TextTable| -> Vec<String> { table.rows.iter().map(|row| row.text(0).to_owned()).collect() };
    let tokenizer = match kept {
        Some(kept) => kept,
        None => TextTokenizer::train(&config.tokenizer, train.rows.iter().map(|row| row.text(0)))?,
    };
    let encode = |table: &TextTable| -> Result<LabelledSequences> {
        let targets = match config.multi_label {
            true => Targets::Several(labels.sets_of(table, 1)?),
            false => Targets::One(labels.numbers_of(table, 1)?),
        };
        let encoded = encode_texts(&tokenizer, &chosen(table), config.max_length)
            .map_err(|error| table.blame(error))?;
        if let Some(empty) = (0..encoded.len()).find(|&text| encoded.length(text) == 0) {
            bail_input!("{}: nothing is left of the text once it is tokenised", table.place(empty));
        }
        let origins = chosen(table);
        Ok(LabelledSequences::of_texts(
            encoded,
            origins,
            targets,
            labels.names().len(),
            tokenizer.special().pad.unwrap_or(0),
        ))
    };
    let train = encode(&train)?;
    let validation = validation.as_ref().map(encode).transpose()?;
    let test = test.as_ref().map(encode).transpose()?;
    let splits = held_out(train, validation, test, config.val_fraction, seed)?;
    Ok(OpenedSequences {
        splits,
        classes: labels.names().to_vec(),
        tokenizer: Some(tokenizer),
        standards: None,
    })
}

/// Encodes texts as they are classified: without special tokens, cut at their end.
pub fn encode_texts(
    tokenizer: &TextTokenizer,
    texts: &[String],
    max_length: Option<usize>,
) -> Result<EncodedTexts> {
    let inputs: Vec<TextInput<'_>> = texts.iter().map(|text| TextInput::single(text)).collect();
    tokenizer.encode_all(&inputs, EncodeOptions { special_tokens: false, max_length })
}

fn held_out(
    train: LabelledSequences,
    validation: Option<LabelledSequences>,
    test: Option<LabelledSequences>,
    fraction: f64,
    seed: u64,
) -> Result<Splits<LabelledSequences>> {
    if validation.is_some() || fraction == 0.0 {
        return Ok(Splits { train, validation, test });
    }
    let (learned, looked) = hold_out(train.len(), fraction, seed)?;
    Ok(Splits { train: train.part(&learned), validation: Some(train.part(&looked)), test })
}

fn numbers(
    config: &SequenceDataConfig,
    seed: u64,
    train: RawSequences,
    validation: Option<RawSequences>,
    test: Option<RawSequences>,
) -> Result<OpenedSequences> {
    let features = train.features;
    for part in [Some(&train), validation.as_ref(), test.as_ref()].into_iter().flatten() {
        if part.features != features {
            bail_input!("sequences of {} and of {features} features are of one set", part.features);
        }
        if let Some(empty) = part.values.iter().position(Vec::is_empty) {
            bail_input!("{}: the sequence has no step", part.origins[empty]);
        }
    }
    let labels = match &config.classes {
        Some(names) => LabelSet::new(names.clone())?,
        None => LabelSet::collect(train.labels.iter().map(String::as_str))?,
    };
    let standards = match (&config.mean, &config.std) {
        (Some(mean), Some(std)) if mean.len() == features && std.len() == features => {
            (mean.clone(), std.clone())
        }
        (Some(mean), _) => {
            bail_input!("data.mean has {} numbers, but steps have {features} features", mean.len())
        }
        _ => standards_of(&train.values, features),
    };
    let make = |mut raw: RawSequences| -> Result<LabelledSequences> {
        for value in &mut raw.values {
            for step in value.chunks_mut(features) {
                for ((number, mean), std) in step.iter_mut().zip(&standards.0).zip(&standards.1) {
                    *number = ((f64::from(*number) - mean) / std) as f32;
                }
            }
        }
        let known = |(label, origin): (&String, &String)| {
            labels.number(label).map(|number| number as i64).ok_or_else(|| {
                bad_input!(
                    "{origin}: the label `{label}` is none of the {} classes{}",
                    labels.names().len(),
                    crate::recipe::nearest_hint(label, labels.names().iter().map(String::as_str))
                )
            })
        };
        let targets = Targets::One(raw.labels.iter().zip(&raw.origins).map(known).collect::<Result<_>>()?);
        if targets.len() != raw.values.len() {
            bail_input!("there are {} sequences and {} labels", raw.values.len(), targets.len());
        }
        Ok(LabelledSequences::of_numbers(raw, targets, labels.names().len(), config.max_length))
    };
    let validation = validation.map(make).transpose()?;
    let test = test.map(make).transpose()?;
    let splits = held_out(make(train)?, validation, test, config.val_fraction, seed)?;
    let (mean, std) = standards;
    Ok(OpenedSequences {
        splits,
        classes: labels.names().to_vec(),
        tokenizer: None,
        standards: Some((features, mean, std)),
    })
}

/// Mean and population standard deviation of each feature over all steps; 1 for a feature that never changes.
fn standards_of(values: &[Vec<f32>], features: usize) -> (Vec<f64>, Vec<f64>) {
    let steps = values.iter().map(|value| value.len() / features).sum::<usize>().max(1) as f64;
    let mut mean = vec![0.0; features];
    for step in values.iter().flat_map(|value| value.chunks(features)) {
        mean.iter_mut().zip(step).for_each(|(sum, &number)| *sum += f64::from(number));
    }
    mean.iter_mut().for_each(|sum| *sum /= steps);
    let mut std = vec![0.0; features];
    for step in values.iter().flat_map(|value| value.chunks(features)) {
        for ((sum, &number), mean) in std.iter_mut().zip(step).zip(&mean) {
            *sum += (f64::from(number) - mean).powi(2);
        }
    }
    std.iter_mut().for_each(|sum| *sum = if *sum > 0.0 { (*sum / steps).sqrt() } else { 1.0 });
    (mean, std)
}

/// A number of a table.
pub(super) fn number(text: &str, place: &dyn Fn() -> String) -> Result<f32> {
    let text = text.trim();
    if is_missing(text.as_bytes()) {
        bail_input!("{}: a value is missing (`{text}`): fill it in or take the row out", place());
    }
    match fast_float2::parse::<f32, _>(text) {
        Ok(number) if number.is_finite() => Ok(number),
        _ => bail_input!("{}: `{text}` is no finite number", place()),
    }
}

/// Names of all columns of a CSV or TSV file.
pub(super) fn column_names(path: &Path) -> Result<Vec<String>> {
    use crate::data::table::{Dialect, open_bytes};
    use std::io::BufRead;
    let mut line = Vec::new();
    std::io::BufReader::new(open_bytes(path)?)
        .read_until(b'\n', &mut line)
        .map_err(|error| files::cannot_read(path, &error))?;
    let delimiter =
        if TextForm::default().of(path) == crate::data::text::TextFormat::Tsv { b'\t' } else { b',' };
    let (fields, _) = Dialect { delimiter, quoted: true }.line(&line, 0);
    if line.is_empty() {
        bail_input!("{} is empty", path.display());
    }
    Ok(fields.iter().map(|field| String::from_utf8_lossy(field).trim().to_owned()).collect())
}

/// Sequences of a table whose rows are steps: those with the same id, in their order.
fn long_table(path: &Path, id: &str, config: &SequenceDataConfig) -> Result<RawSequences> {
    let names = column_names(path)?;
    let features: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| *name != id && *name != config.label).collect();
    if features.is_empty() {
        bail_input!("{} has no column of numbers beside `{id}` and `{}`", path.display(), config.label);
    }
    let columns: Vec<&str> = [id, &config.label].into_iter().chain(features.iter().copied()).collect();
    let table = read_rows(path, &form(config), &columns)?;
    let mut raw = RawSequences { features: features.len(), ..Default::default() };
    let mut numbers: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for (row, fields) in table.rows.iter().enumerate() {
        let (name, label) = (fields.text(0), fields.text(1));
        let sequence = *numbers.entry(name).or_insert_with(|| {
            raw.values.push(Vec::new());
            raw.labels.push(label.to_owned());
            raw.origins.push(format!("{}, {id} {name}", table.name));
            raw.values.len() - 1
        });
        if raw.labels[sequence] != label {
            bail_input!(
                "{}: the sequence {name} is labelled `{label}`, but `{}` before",
                table.place(row),
                raw.labels[sequence]
            );
        }
        for column in 2..columns.len() {
            raw.values[sequence].push(number(fields.text(column), &|| table.place(row))?);
        }
    }
    Ok(raw)
}

/// Sequences of CSV files, in a folder for each class.
fn class_folders(path: &Path) -> Result<RawSequences> {
    let entries = |folder: &Path| -> Result<Vec<PathBuf>> {
        let mut found = std::fs::read_dir(folder)
            .map_err(|error| files::cannot_read(folder, &error))?
            .map(|entry| entry.map(|entry| entry.path()).map_err(|error| files::cannot_read(folder, &error)))
            .collect::<Result<Vec<_>>>()?;
        found.sort();
        Ok(found)
    };
    let mut raw = RawSequences::default();
    for folder in entries(path)?.into_iter().filter(|entry| entry.is_dir()) {
        let label = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for file in entries(&folder)? {
            if file.extension().is_none_or(|end| end != "csv" && end != "tsv") {
                continue;
            }
            let (features, values) = sequence_of_table(&file)?;
            if raw.features != 0 && raw.features != features {
                bail_input!(
                    "{} has {features} columns, but the files before have {}",
                    file.display(),
                    raw.features
                );
            }
            raw.features = features;
            raw.values.push(values);
            raw.labels.push(label.clone());
            raw.origins.push(file.display().to_string());
        }
    }
    if raw.values.is_empty() {
        bail_input!(
            "{} has neither a train file (tsv, csv, jsonl, npy) nor a folder of CSV files for each class",
            path.display()
        );
    }
    Ok(raw)
}

/// The steps of one CSV file: every column a feature.
fn sequence_of_table(path: &Path) -> Result<(usize, Vec<f32>)> {
    let names = column_names(path)?;
    let columns: Vec<&str> = names.iter().map(String::as_str).collect();
    let table = read_rows(path, &TextForm::default(), &columns)?;
    let mut values = Vec::new();
    for (row, fields) in table.rows.iter().enumerate() {
        for column in 0..columns.len() {
            values.push(number(fields.text(column), &|| table.place(row))?);
        }
    }
    Ok((columns.len(), values))
}

/// The sequences of files to be predicted: each file one sequence, or a long table where `id` names its column.
///
/// # Errors
/// As for training; another number of features than the model was trained on.
pub fn sequences_of_table(
    paths: &[PathBuf],
    config: &SequenceDataConfig,
    features: usize,
) -> Result<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    for path in paths {
        let (count, values) = sequence_of_table(path)?;
        if count != features {
            bail_input!("{} has {count} columns, but the model was trained on {features}", path.display());
        }
        found.push((path.display().to_string(), values));
    }
    let (mean, std) = match (&config.mean, &config.std) {
        (Some(mean), Some(std)) => (mean.clone(), std.clone()),
        _ => (vec![0.0; features], vec![1.0; features]),
    };
    let scaled = |values: &[f32]| -> Vec<f32> {
        let step = values.iter().enumerate();
        step.map(|(place, &value)| {
            ((f64::from(value) - mean[place % features]) / std[place % features]) as f32
        })
        .collect()
    };
    found
        .into_iter()
        .map(|(name, values)| {
            let steps = (values.len() / features).min(config.max_length.unwrap_or(usize::MAX));
            let values = scaled(&values[..steps * features]);
            Ok((name, Tensor::f_from_slice(&values)?.f_view([1, steps as i64, features as i64])?))
        })
        .collect()
}

/// Made-up sequences of 100 steps with 64 features in ten classes: noise, and a burst of a pattern that all classes share, which moves through
/// the features with a direction and speed of the class, from a random place at a random time. No step by itself, and no sum over steps, tells
/// the class, so a linear model of the 6,400 numbers is right about one time in ten; what tells it is the order.
pub fn synthetic(count: usize, seed: u64) -> Result<RawSequences> {
    const STEPS: usize = 100;
    const FEATURES: usize = 64;
    const SPEEDS: [i64; 10] = [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = move || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut raw = RawSequences { features: FEATURES, ..Default::default() };
    for sequence in 0..count {
        let class = sequence % SPEEDS.len();
        let mut values: Vec<f32> = (0..STEPS * FEATURES)
            .map(|_| {
                // Standard normal (Box and Muller 1958), a fifth of it.
                let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
                (0.2 * radius * (std::f64::consts::TAU * uniform()).cos()) as f32
            })
            .collect();
        let begins = (uniform() * (STEPS - 60) as f64) as i64;
        let place = (uniform() * FEATURES as f64) as i64;
        // Either sign, so that the mean of a class is no pattern either.
        let sign = if uniform() < 0.5 { -1.0 } else { 1.0 };
        for step in 0..60i64 {
            let centre = (place + SPEEDS[class] * step).rem_euclid(FEATURES as i64);
            for width in 0..6i64 {
                let feature = ((centre + width) % FEATURES as i64) as usize;
                values[(begins + step) as usize * FEATURES + feature] += sign;
            }
        }
        raw.values.push(values);
        raw.labels.push(class.to_string());
        raw.origins.push(format!("made-up sequence {sequence}"));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_standardised_by_the_training_part_and_filled_up() -> Result<()> {
        let raw = |values: Vec<Vec<f32>>| RawSequences {
            features: 2,
            labels: values.iter().map(|value| value.len().to_string()).collect(),
            origins: values.iter().map(|value| format!("s{}", value.len())).collect(),
            values,
        };
        let train = raw(vec![vec![1.0, 10.0, 3.0, 10.0], vec![5.0, 10.0]]);
        let test = raw(vec![vec![3.0, 11.0]]);
        let config = SequenceDataConfig { val_fraction: 0.0, ..Default::default() };
        let opened = numbers(&config, 0, train, None, Some(test))?;
        let (_, mean, std) = opened.standards.clone().unwrap_or_default();
        assert_eq!((mean, std[1]), (vec![3.0, 10.0], 1.0));
        let batch = opened.splits.train.batch(&[1, 0])?;
        assert_eq!(batch.inputs.size(), [2, 2, 2]);
        assert_eq!(Vec::<i64>::try_from(&batch.lengths)?, [1, 2]);
        assert_eq!(batch.inputs.double_value(&[0, 1, 0]), 0.0, "filled up");
        let test = opened.splits.test.as_ref().map(|test| test.batch(&[0])).transpose()?;
        assert_eq!(test.map(|batch| batch.inputs.double_value(&[0, 0, 0])), Some(0.0));
        Ok(())
    }

    #[test]
    fn made_up_sequences_repeat_and_hide_their_class_from_means() -> Result<()> {
        let (one, again) = (synthetic(200, 1)?, synthetic(200, 1)?);
        assert_eq!(one.values, again.values);
        assert_ne!(one.values, synthetic(200, 2)?.values);
        assert_eq!((one.values[0].len(), one.features), (6400, 64));
        Ok(())
    }
}
