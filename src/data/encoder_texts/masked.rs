//! Texts of which some tokens are hidden, anew in each epoch.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::TokenBatch;
use super::classified::{add_texts, buckets};
use crate::data::fingerprint::Fingerprint;
use crate::data::order::Sampler;
use crate::data::random::Random;
use crate::data::text::{EncodedTexts, TextTokenizer};
use crate::data::{Batch, Batching, Dataset, Draw};
use crate::{bad_input, bail_input};

/// How tokens are hidden: BERT's rule, of what is chosen 80 % become the mask token, 10 % a random one, 10 % stay.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Masking {
    /// Share of tokens, or of words, that are chosen.
    pub probability: f64,
    /// Whether all tokens of a word are chosen together.
    pub whole_words: bool,
    /// Whether each text stays by itself; otherwise texts are put one behind the other and cut into sequences of equal length.
    pub line_by_line: bool,
}

impl Default for Masking {
    fn default() -> Self {
        Self { probability: 0.15, whole_words: false, line_by_line: false }
    }
}

impl Masking {
    /// Checks the share.
    pub fn validate(&self) -> Result<()> {
        if !(self.probability > 0.0 && self.probability < 1.0) {
            bail_input!("data.masking.probability is {}: it must be above 0 and below 1", self.probability);
        }
        Ok(())
    }
}

/// Which tokens begin a word, and which are never hidden.
#[derive(Clone, Debug)]
pub struct WordStarts {
    starts: Vec<bool>,
    special: Vec<bool>,
    mask: i64,
    /// Tokens that may stand in for a hidden one.
    ordinary: Vec<i64>,
}

impl WordStarts {
    /// Looks a vocabulary through.
    ///
    /// # Errors
    /// The tokenizer has no mask token.
    pub fn of(tokenizer: &TextTokenizer) -> Result<Self> {
        let special = tokenizer.special();
        let Some(mask) = special.mask else {
            bail_input!("the tokenizer has no mask token, which hidden words need");
        };
        let vocabulary = tokenizer.vocabulary();
        let begins = |token: &String| match tokenizer.kind() {
            "WordPiece" => !token.starts_with("##"),
            "BPE" => token.starts_with('Ġ') || token.starts_with('▁'),
            "Unigram" => token.starts_with('▁'),
            _ => true,
        };
        let kept = [special.pad, special.class, special.separator, special.mask, special.begin, special.end];
        let is_special = |id: usize| kept.contains(&Some(id as i64)) || vocabulary[id].is_empty();
        let special: Vec<bool> = (0..vocabulary.len()).map(is_special).collect();
        let ordinary: Vec<i64> =
            (0..vocabulary.len()).filter(|&id| !special[id]).map(|id| id as i64).collect();
        if ordinary.is_empty() {
            return Err(bad_input!("the tokenizer has no tokens but special ones"));
        }
        Ok(Self { starts: vocabulary.iter().map(begins).collect(), special, mask, ordinary })
    }

    /// Whether a token is never hidden.
    pub fn is_special(&self, id: i64) -> bool {
        self.special.get(id as usize).copied().unwrap_or(true)
    }

    /// The places of each word (or, with `tokens`, of each token) of a sequence.
    fn words(&self, ids: &[i64], tokens: bool) -> Vec<Vec<usize>> {
        let mut words: Vec<Vec<usize>> = Vec::new();
        let mut inside = false;
        for (place, &id) in ids.iter().enumerate() {
            if self.is_special(id) {
                inside = false;
                continue;
            }
            match words.last_mut().filter(|_| inside && !tokens && !self.starts[id as usize]) {
                Some(word) => word.push(place),
                None => words.push(vec![place]),
            }
            inside = true;
        }
        words
    }
}

/// Sequences of tokens to guess in.
#[derive(Debug)]
pub struct MaskedTexts {
    texts: EncodedTexts,
    lengths: Arc<[u32]>,
    words: Arc<WordStarts>,
    masking: Masking,
    padding: i64,
    buckets: bool,
}

impl MaskedTexts {
    /// Puts the parts together. Sequences have their special tokens already.
    ///
    /// # Errors
    /// There is nothing to hide.
    pub fn new(
        texts: EncodedTexts,
        words: Arc<WordStarts>,
        masking: Masking,
        padding: i64,
        buckets: bool,
    ) -> Result<Self> {
        let has_word = |text: usize| texts.ids(text).iter().any(|&id| !words.is_special(id));
        let mut kept = EncodedTexts::new(words.special.len());
        for text in (0..texts.len()).filter(|&text| has_word(text)) {
            let ids: Vec<u32> = texts.ids(text).into_iter().map(|id| id as u32).collect();
            kept.push(&ids, texts.second_from(text));
        }
        if kept.is_empty() {
            bail_input!("the texts hold no word to hide");
        }
        Ok(Self { lengths: kept.lengths(), texts: kept, words, masking, padding, buckets })
    }

    /// The tokens of a sequence, nothing hidden.
    pub fn ids(&self, text: usize) -> Vec<i64> {
        self.texts.ids(text)
    }

    /// Hides tokens of a sequence; their places.
    fn hide(&self, ids: &mut [i64], random: &mut Random) -> Vec<usize> {
        let words = self.words.words(ids, !self.masking.whole_words);
        let mut places: Vec<usize> =
            words.iter().filter(|_| random.unit() < self.masking.probability).flatten().copied().collect();
        if places.is_empty() {
            // A sequence without a hidden token would teach nothing.
            places.clone_from(&words[random.below(words.len() as u32) as usize]);
        }
        for &place in &places {
            ids[place] = match random.unit() {
                fate if fate < 0.8 => self.words.mask,
                fate if fate < 0.9 => {
                    self.words.ordinary[random.below(self.words.ordinary.len() as u32) as usize]
                }
                _ => ids[place],
            };
        }
        places
    }
}

/// Sequences with hidden tokens.
#[derive(Debug)]
pub struct MaskedBatch {
    /// The sequences, tokens hidden.
    pub tokens: TokenBatch,
    /// Where the hidden tokens are in `[batch · longest]`, `[hidden]` int64.
    pub places: Tensor,
    /// What they are, `[hidden]` int64.
    pub targets: Tensor,
}

impl Batch for MaskedBatch {
    fn to_device(self, device: Device) -> Result<Self> {
        Ok(Self {
            tokens: self.tokens.to_device(device)?,
            places: self.places.f_to_device(device)?,
            targets: self.targets.f_to_device(device)?,
        })
    }
}

impl Dataset for MaskedTexts {
    type Batch = MaskedBatch;

    fn len(&self) -> usize {
        self.texts.len()
    }

    fn batch(&self, samples: &[usize], draw: Draw) -> Result<MaskedBatch> {
        // What is looked at is the same in every evaluation.
        let draw = if draw.train { draw } else { Draw { epoch: 0, ..draw } };
        let longest = samples.iter().map(|&sample| self.texts.length(sample)).max().unwrap_or(0);
        let (mut sequences, mut places, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (row, &sample) in samples.iter().enumerate() {
            let whole = self.texts.ids(sample);
            let mut ids = whole.clone();
            for place in self.hide(&mut ids, &mut Random::of_sample(draw, sample, 0)) {
                places.push((row * longest + place) as i64);
                targets.push(whole[place]);
            }
            sequences.push((ids, self.texts.second_from(sample)));
        }
        Ok(MaskedBatch {
            tokens: TokenBatch::of(&sequences, self.padding)?,
            places: Tensor::f_from_slice(&places)?,
            targets: Tensor::f_from_slice(&targets)?,
        })
    }

    fn sampler(&self, wanted: Batching) -> Result<Option<Arc<dyn Sampler>>> {
        Ok(buckets(&self.lengths, self.buckets, wanted))
    }

    fn fingerprint(&self) -> Result<Fingerprint> {
        let mut print = Fingerprint::new(self.len());
        add_texts(&mut print, &self.texts);
        Ok(print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::text::{TokenizerConfig, TokenizerKind};

    fn data(masking: Masking) -> Result<(TextTokenizer, MaskedTexts)> {
        let config =
            TokenizerConfig { kind: TokenizerKind::WordPiece, vocab_size: 60, ..TokenizerConfig::default() };
        let lines = ["abracadabra and alakazam", "a spell is cast by abracadabra alone"];
        let tokenizer = TextTokenizer::train(&config, lines.iter())?;
        let inputs: Vec<_> =
            lines.iter().cycle().take(200).map(|line| crate::data::text::TextInput::single(line)).collect();
        let (encoded, _) = super::super::encode(&tokenizer, &inputs, 64, false, |_| String::new())?;
        let words = Arc::new(WordStarts::of(&tokenizer)?);
        let padding = tokenizer.special().pad.unwrap();
        Ok((tokenizer, MaskedTexts::new(encoded, words, masking, padding, true)?))
    }

    #[test]
    fn a_share_is_hidden_by_berts_rule_and_special_tokens_never() -> Result<()> {
        let (tokenizer, data) = data(Masking::default())?;
        let special = tokenizer.special();
        let (mut all, mut hidden, mut masked, mut same) = (0, 0, 0, 0);
        let samples: Vec<usize> = (0..data.len()).collect();
        let batch = data.batch(&samples, Draw { seed: 1, epoch: 0, train: true, copies: &[] })?;
        let ids = Vec::<i64>::try_from(batch.tokens.ids.flatten(0, -1))?;
        for &sample in &samples {
            all += data.ids(sample).len() - 2;
        }
        for (place, target) in
            Vec::<i64>::try_from(&batch.places)?.into_iter().zip(Vec::<i64>::try_from(&batch.targets)?)
        {
            assert!(
                Some(target) != special.class
                    && Some(target) != special.separator
                    && Some(target) != special.pad
            );
            hidden += 1;
            masked += usize::from(Some(ids[place as usize]) == special.mask);
            same += usize::from(ids[place as usize] == target);
        }
        let share = hidden as f64 / all as f64;
        assert!((0.12..0.19).contains(&share), "{share}");
        assert!(
            (0.72..0.88).contains(&(f64::from(masked as u32) / f64::from(hidden))),
            "{masked} of {hidden}"
        );
        assert!(same > 0);
        Ok(())
    }

    #[test]
    fn choices_depend_on_seed_epoch_and_sample_alone() -> Result<()> {
        let (_, data) = data(Masking::default())?;
        let places = |samples: &[usize], seed, epoch, train| -> Result<Vec<i64>> {
            Ok(Vec::try_from(data.batch(samples, Draw { seed, epoch, train, copies: &[] })?.places)?)
        };
        assert_eq!(places(&[4], 1, 3, true)?, places(&[4], 1, 3, true)?);
        assert_ne!(places(&[0, 2, 4, 6], 1, 3, true)?, places(&[0, 2, 4, 6], 1, 4, true)?);
        assert_eq!(places(&[0, 2], 0, 3, false)?, places(&[0, 2], 0, 9, false)?);
        Ok(())
    }

    #[test]
    fn words_are_hidden_whole() -> Result<()> {
        let (_, data) = data(Masking { whole_words: true, ..Masking::default() })?;
        let words = data.words.words(&data.ids(0), false);
        assert!(words.len() == 3 && words.iter().any(|word| word.len() > 1), "{words:?}");
        for sample in 0..20 {
            let ids = data.ids(sample);
            let words = data.words.words(&ids, false);
            let batch = data.batch(&[sample], Draw { seed: 2, epoch: 0, train: true, copies: &[] })?;
            let places: Vec<usize> =
                Vec::<i64>::try_from(&batch.places)?.into_iter().map(|place| place as usize).collect();
            for word in words {
                let chosen = word.iter().filter(|place| places.contains(place)).count();
                assert!(chosen == 0 || chosen == word.len());
            }
        }
        Ok(())
    }
}
