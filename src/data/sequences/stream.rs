//! Windows of a long text, for language models whose state is carried from window to window.

use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use tch::{Device, Tensor};

use super::config::{SHAKESPEARE_MINI, SequenceDataConfig};
use crate::bail_input;
use crate::data::Splits;
use crate::data::fingerprint::Fingerprint;
use crate::data::order::{EpochPlan, Sampler, Sequential};
use crate::data::table::open_bytes;
use crate::data::text::{TextTokenizer, Tokens};

/// Marks a place behind the end of a stream, which has no next token: PyTorch's `ignore_index`.
pub const NO_TARGET: i64 = -100;

/// A text that is read as several streams side by side, each from its beginning to its end.
///
/// The text is parted into `streams` equal parts, of which each is read in windows; sample `window · streams + stream` is one window of one
/// stream. All samples of a window belong in one batch, and windows come in their order: [`TextWindows::sampler`]. Every token but the first is
/// predicted exactly once; the last stream may end earlier.
#[derive(Debug)]
pub struct TextWindows {
    tokens: Tokens,
    streams: usize,
    window: usize,
    /// Tokens that each stream predicts; the last one may have fewer.
    length: usize,
}

/// Each batch goes on where the one before it ended.
struct Windows(Sequential);

impl Sampler for Windows {
    fn batches_per_epoch(&self) -> usize {
        self.0.batches_per_epoch()
    }

    fn plan(&self, epoch: u64) -> Result<EpochPlan> {
        self.0.plan(epoch)
    }

    fn is_sequence(&self) -> bool {
        true
    }
}

/// A window of each stream.
#[derive(Debug)]
pub struct StreamBatch {
    /// `[streams, steps]` int64.
    pub tokens: Tensor,
    /// The token after each, `[streams, steps]` int64; [`NO_TARGET`] behind the end.
    pub targets: Tensor,
    /// How many targets there are.
    pub count: f64,
    /// Whether the streams begin with this window, so that nothing is carried into it.
    pub begins: bool,
}

impl StreamBatch {
    /// The same on another device.
    pub fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            tokens: self.tokens.f_to_device(device)?,
            targets: self.targets.f_to_device(device)?,
            ..self
        })
    }
}

impl TextWindows {
    /// Parts a text.
    ///
    /// # Errors
    /// It has fewer than two tokens for each stream.
    pub fn new(tokens: Tokens, streams: usize, window: usize, what: &str) -> Result<Self> {
        if tokens.len() < 2 * streams {
            bail_input!(
                "the {what} text has {} tokens: too few for {streams} streams side by side (the batch size); take fewer streams or more text",
                tokens.len()
            );
        }
        let length = (tokens.len() - 1).div_ceil(streams);
        Ok(Self { tokens, streams, window, length })
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.length.div_ceil(self.window) * self.streams
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens themselves.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Window after window, all streams of each.
    pub fn sampler(&self) -> Arc<dyn Sampler> {
        Arc::new(Windows(Sequential { len: self.len(), batch_size: self.streams }))
    }

    /// One window of some streams.
    pub fn batch(&self, samples: &[usize]) -> Result<StreamBatch> {
        let number = samples.first().map_or(0, |sample| sample / self.streams);
        let first = number * self.window;
        let steps = self.window.min(self.length - first);
        let (mut tokens, mut targets, mut count) = (Vec::new(), Vec::new(), 0);
        let last = self.tokens.len() - 1;
        for sample in samples {
            let start = (sample % self.streams * self.length + first).min(last);
            let end = (start + steps).min(last).min((sample % self.streams + 1) * self.length);
            let read = self.tokens.ids(start..end + 1);
            let there = end - start;
            count += there;
            tokens.extend_from_slice(&read[..there]);
            targets.extend_from_slice(&read[1..]);
            // Behind the end stands any token: nothing is learned from it.
            tokens.resize(tokens.len() + steps - there, 0);
            targets.resize(targets.len() + steps - there, NO_TARGET);
        }
        let size = [samples.len() as i64, steps as i64];
        Ok(StreamBatch {
            tokens: Tensor::f_from_slice(&tokens)?.f_view(size)?,
            targets: Tensor::f_from_slice(&targets)?.f_view(size)?,
            count: count as f64,
            begins: number == 0,
        })
    }

    /// Where a window is.
    pub fn describe(&self, sample: usize) -> String {
        let (window, stream) = (sample / self.streams, sample % self.streams);
        format!("token {} of the text", stream * self.length + window * self.window)
    }

    /// What tells the text from others.
    pub fn take_print(&self, print: &mut Fingerprint) {
        print.add(&self.tokens.checksum().to_le_bytes());
        print.add(&(self.streams as u64).to_le_bytes());
    }
}

/// A text that was opened for a language model.
pub struct OpenedText {
    /// Its parts, the last ones held out.
    pub splits: Splits<TextWindows>,
    /// What it was encoded with.
    pub tokenizer: TextTokenizer,
}

/// The compiled-in text.
pub fn embedded_text() -> Result<String> {
    let mut text = String::new();
    GzDecoder::new(&include_bytes!("../../../assets/texts/shakespeare-mini.txt.gz")[..])
        .read_to_string(&mut text)
        .context("unpacking the compiled-in text")?;
    Ok(text)
}

/// The tokenizer that the recipe describes, made from the text.
fn stream_tokenizer(config: &SequenceDataConfig) -> Result<TextTokenizer> {
    if !config.tokenizer.needs_texts() {
        return TextTokenizer::train(&config.tokenizer, std::iter::empty::<&str>());
    }
    let text = match (&config.path, config.format == SHAKESPEARE_MINI) {
        (Some(path), false) => {
            let mut bytes = Vec::new();
            open_bytes(path)?
                .read_to_end(&mut bytes)
                .with_context(|| format!("reading {}", path.display()))?;
            String::from_utf8(bytes).map_err(|error| {
                let at = error.utf8_error().valid_up_to();
                let line = 1 + memchr::memchr_iter(b'\n', &error.as_bytes()[..at]).count();
                crate::bad_input!(
                    "{}, line {line}: byte 0x{:02x} is not UTF-8: save the file as UTF-8",
                    path.display(),
                    error.as_bytes()[at]
                )
            })?
        }
        _ => embedded_text()?,
    };
    if text.trim().is_empty() {
        bail_input!(
            "{} holds no text",
            config.path.as_ref().map_or("the text".to_owned(), |path| path.display().to_string())
        );
    }
    TextTokenizer::train(&config.tokenizer, text.split_inclusive('\n'))
}

/// Opens the text of a recipe: `streams` side by side for training, `eval_streams` for looking. It becomes tokens by the tokenizer that its run has
/// `kept`, else by the one that the recipe describes.
///
/// # Errors
/// No text, one that is too short, one that its tokenizer cannot encode.
pub fn open_text(
    config: &SequenceDataConfig,
    streams: usize,
    eval_streams: usize,
    kept: Option<TextTokenizer>,
) -> Result<OpenedText> {
    let tokenizer = kept.map_or_else(|| stream_tokenizer(config), Ok)?;
    let encode = |path: &std::path::Path| tokenizer.encode_file(path);
    let whole = match (&config.path, config.format == SHAKESPEARE_MINI) {
        (Some(path), false) => {
            let file = match path.is_dir() {
                true => ["train.txt", "input.txt", "wiki.train.tokens", "ptb.train.txt"]
                    .iter()
                    .map(|name| path.join(name))
                    .find(|file| file.is_file())
                    .ok_or_else(|| {
                        crate::bad_input!("{} has no train.txt or input.txt: name the file", path.display())
                    })?,
                false => path.clone(),
            };
            encode(&file)?
        }
        _ => tokenizer.encode_stream(embedded_text()?.as_bytes(), SHAKESPEARE_MINI)?,
    };
    if whole.len() < 2 {
        bail_input!("the text has {} tokens: there is nothing to predict", whole.len());
    }
    let validation = config.validation.as_deref().map(encode).transpose()?;
    let test = config.test.as_deref().map(encode).transpose()?;
    let share =
        |fraction: f64, given: bool| if given { 0 } else { (whole.len() as f64 * fraction).round() as usize };
    let for_test = share(config.test_fraction, test.is_some());
    // As in `data[:int(0.9 * len(data))]`: what is left of the last token is learned from no more.
    let for_validation = match validation {
        Some(_) => 0,
        None => {
            whole.len()
                - for_test
                - (whole.len() as f64 * (1.0 - config.val_fraction - config.test_fraction)) as usize
        }
    };
    let for_validation = if config.val_fraction == 0.0 { 0 } else { for_validation };
    let train_end = whole.len() - for_validation - for_test;
    let part = |from: usize, to: usize| (to > from).then(|| whole.slice(from..to));
    let validation = validation.or_else(|| part(train_end, train_end + for_validation));
    let test = test.or_else(|| part(train_end + for_validation, whole.len()));
    let look = |part: Option<Tokens>, what: &str| {
        part.map(|tokens| {
            // A short part has fewer streams than asked for.
            let streams = eval_streams.min(tokens.len() / 2).max(1);
            TextWindows::new(tokens, streams, config.window, what)
        })
        .transpose()
    };
    Ok(OpenedText {
        splits: Splits {
            train: TextWindows::new(whole.slice(0..train_end), streams, config.window, "training")?,
            validation: look(validation, "validation")?,
            test: look(test, "test")?,
        },
        tokenizer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::text::{TokenizerConfig, TokenizerKind};

    #[test]
    fn every_token_but_the_first_is_predicted_once() -> Result<()> {
        let config = TokenizerConfig { kind: TokenizerKind::Bytes, ..Default::default() };
        let tokenizer = TextTokenizer::train(&config, std::iter::empty::<&str>())?;
        let text: Vec<u8> = (0..103u8).collect();
        let tokens = tokenizer.encode_stream(&text[..], "t")?;
        for (streams, window) in [(1, 7), (4, 5), (3, 200), (10, 1), (51, 3)] {
            let data = TextWindows::new(tokens.clone(), streams, window, "t")?;
            let sampler = data.sampler();
            let plan = sampler.plan(0)?;
            let mut seen = Vec::new();
            for number in 0..plan.batches() {
                let batch = data.batch(plan.batch(number))?;
                assert_eq!(batch.begins, number == 0);
                let (from, to) =
                    (Vec::<Vec<i64>>::try_from(&batch.tokens)?, Vec::<Vec<i64>>::try_from(&batch.targets)?);
                let pairs = from.concat().into_iter().zip(to.concat());
                let there: Vec<(i64, i64)> = pairs.filter(|(_, target)| *target != NO_TARGET).collect();
                assert_eq!(there.len() as f64, batch.count);
                assert!(there.iter().all(|(token, target)| token + 1 == *target));
                seen.extend(there.into_iter().map(|(_, target)| target));
            }
            seen.sort_unstable();
            assert_eq!(seen, (1..103).collect::<Vec<_>>(), "{streams} streams, windows of {window}");
        }
        let short = TextWindows::new(tokens, 60, 3, "training").unwrap_err().to_string();
        assert!(short.contains("the training text has 103 tokens"), "{short}");
        Ok(())
    }

    #[test]
    fn the_last_tenth_is_held_out_whole() -> Result<()> {
        let config = SequenceDataConfig { format: SHAKESPEARE_MINI.to_owned(), ..Default::default() };
        let opened = open_text(&config, 8, 1, None)?;
        let whole = embedded_text()?;
        let count = whole.chars().count();
        let train = (count as f64 * 0.9) as usize;
        assert_eq!(opened.splits.train.tokens().len(), train);
        let validation = opened.splits.validation.context("no validation part")?;
        assert_eq!(validation.tokens().len(), count - train);
        let tail: String = whole.chars().skip(train).collect();
        assert_eq!(opened.tokenizer.decode(&validation.tokens().ids(0..count - train), false)?, tail);
        Ok(())
    }
}
