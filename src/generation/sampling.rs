//! The choice of the next token.

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::bail_input;

/// How tokens are drawn. Each setting does what it does in Hugging Face's `generate`, and they are applied in its order: repetition penalty,
/// temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Divides the logits: below 1 likely tokens become likelier; 0 takes the likeliest always.
    pub temperature: f64,
    /// Only so many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Only tokens at least this many times as likely as the likeliest.
    pub min_p: f64,
    /// Divides the positive and multiplies the negative logits of tokens that are there already (Keskar et al. 2019).
    pub repetition_penalty: f64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl SamplingConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the flag whose value is impossible.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            bail_input!("--temperature {}: it must not be negative", self.temperature);
        }
        if self.top_k == Some(0) {
            bail_input!("--top-k 0: at least one token must be left to choose");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            bail_input!("--top-p {}: it must be above 0 and at most 1", self.top_p);
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            bail_input!("--min-p {}: it must be between 0 and 1", self.min_p);
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            bail_input!("--repetition-penalty {}: it must be above 0", self.repetition_penalty);
        }
        Ok(())
    }
}

/// Draws tokens from logits. The same seed draws the same tokens from the same logits.
#[derive(Debug)]
pub struct TokenSampler {
    config: SamplingConfig,
    generator: ChaCha8Rng,
    /// Kept from token to token: the logits after penalties, the tokens left to choose from, which tokens the penalty has met.
    logits: Vec<f64>,
    left: Vec<(usize, f64)>,
    met: Vec<bool>,
}

impl TokenSampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    /// Impossible settings.
    pub fn new(config: SamplingConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let generator = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self { config, generator, logits: Vec::new(), left: Vec::new(), met: Vec::new() })
    }

    /// The next token: `logits` has one value for each token of the vocabulary, `before` are the tokens so far, prompt included.
    pub fn next(&mut self, logits: &[f32], before: &[i64]) -> i64 {
        if self.config.temperature == 0.0 {
            self.penalise(logits, before);
            return likeliest(&self.logits) as i64;
        }
        self.choose_from(logits, before);
        let all: f64 = self.left.iter().map(|(_, weight)| weight).sum();
        // 53 random bits: uniform in 0..1.
        let mut point = (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * all;
        for &(token, weight) in &self.left {
            point -= weight;
            if point < 0.0 {
                return token as i64;
            }
        }
        // Rounding left a last crumb.
        self.left.last().map_or(0, |&(token, _)| token as i64)
    }

    /// The tokens that may come next with their probabilities, in the order of their numbers.
    pub fn distribution(&mut self, logits: &[f32], before: &[i64]) -> Vec<(usize, f64)> {
        if self.config.temperature == 0.0 {
            self.penalise(logits, before);
            return vec![(likeliest(&self.logits), 1.0)];
        }
        self.choose_from(logits, before);
        let all: f64 = self.left.iter().map(|(_, weight)| weight).sum();
        let mut listed: Vec<(usize, f64)> =
            self.left.iter().map(|&(token, weight)| (token, weight / all)).collect();
        listed.sort_by_key(|&(token, _)| token);
        listed
    }

    fn penalise(&mut self, logits: &[f32], before: &[i64]) {
        self.logits.clear();
        self.logits.extend(logits.iter().map(|&logit| f64::from(logit)));
        let penalty = self.config.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.met.clear();
        self.met.resize(logits.len(), false);
        for &token in before {
            let Some(met) = self.met.get_mut(token as usize) else { continue };
            if !std::mem::replace(met, true) {
                let logit = &mut self.logits[token as usize];
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    /// Fills `left` with tokens and weights in proportion to their probabilities.
    fn choose_from(&mut self, logits: &[f32], before: &[i64]) {
        self.penalise(logits, before);
        let SamplingConfig { temperature, top_k, top_p, min_p, .. } = self.config;
        let largest = self.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scaled = |logit: f64| ((logit - largest) / temperature).exp();
        self.left.clear();
        match top_k.filter(|&top_k| top_k < self.logits.len()) {
            Some(top_k) => {
                let mut sorted = self.logits.clone();
                let (_, least, _) = sorted.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
                // Tokens as likely as the last one stay too.
                let least = *least;
                let kept = self.logits.iter().enumerate().filter(|(_, logit)| **logit >= least);
                self.left.extend(kept.map(|(token, &logit)| (token, scaled(logit))));
            }
            None => {
                self.left.extend(self.logits.iter().enumerate().map(|(token, &logit)| (token, scaled(logit))))
            }
        }
        if top_p < 1.0 {
            let all: f64 = self.left.iter().map(|(_, weight)| weight).sum();
            self.left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let (mut sum, mut kept) = (0.0, 0);
            // The token that reaches the share is the last one.
            while kept < self.left.len() && sum < top_p * all {
                sum += self.left[kept].1;
                kept += 1;
            }
            self.left.truncate(kept.max(1));
        }
        if min_p > 0.0 {
            // The likeliest token has weight 1.
            self.left.retain(|&(_, weight)| weight >= min_p);
        }
    }
}

/// The first of the largest values.
fn likeliest(logits: &[f64]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn distributions_are_those_of_transformers() -> Result<()> {
        // Made by scripts/references/sampling.py.
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/sampling.json"))?;
        let cases = fixture["cases"].as_array().cloned().unwrap_or_default();
        assert!(cases.len() >= 10);
        for case in cases {
            let config: SamplingConfig = serde_json::from_value(case["config"].clone())?;
            let logits: Vec<f32> = serde_json::from_value(case["logits"].clone())?;
            let before: Vec<i64> = serde_json::from_value(case["before"].clone())?;
            let expected: Vec<f64> = serde_json::from_value(case["probabilities"].clone())?;
            let mut found = vec![0.0; logits.len()];
            for (token, probability) in TokenSampler::new(config, 0)?.distribution(&logits, &before) {
                found[token] = probability;
            }
            for (token, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{}: token {token}: {found}, not {expected}",
                    case["config"]
                );
            }
        }
        Ok(())
    }

    #[test]
    fn draws_follow_the_distribution_and_repeat_with_their_seed() -> Result<()> {
        let logits = [1.0f32, 2.0, 0.0, -1.0];
        let mut sampler = TokenSampler::new(SamplingConfig::default(), 5)?;
        let expected = sampler.distribution(&logits, &[]);
        let draws: Vec<i64> = (0..20_000).map(|_| sampler.next(&logits, &[])).collect();
        for (token, probability) in expected {
            let share = draws.iter().filter(|&&draw| draw == token as i64).count() as f64 / 20_000.0;
            assert!((share - probability).abs() < 0.01, "{token}: {share}, not {probability}");
        }
        let mut again = TokenSampler::new(SamplingConfig::default(), 5)?;
        assert_eq!(draws[..50], (0..50).map(|_| again.next(&logits, &[])).collect::<Vec<_>>()[..]);
        let mut greedy = TokenSampler::new(SamplingConfig { temperature: 0.0, ..Default::default() }, 0)?;
        assert_eq!(greedy.next(&logits, &[]), 1);
        Ok(())
    }

    #[test]
    fn impossible_settings_are_named() {
        let usual = SamplingConfig::default;
        for (config, flag) in [
            (SamplingConfig { temperature: -1.0, ..usual() }, "--temperature"),
            (SamplingConfig { temperature: f64::NAN, ..usual() }, "--temperature"),
            (SamplingConfig { top_k: Some(0), ..usual() }, "--top-k"),
            (SamplingConfig { top_p: 0.0, ..usual() }, "--top-p"),
            (SamplingConfig { min_p: 1.5, ..usual() }, "--min-p"),
            (SamplingConfig { repetition_penalty: 0.0, ..usual() }, "--repetition-penalty"),
        ] {
            assert!(TokenSampler::new(config, 0).unwrap_err().to_string().contains(flag));
        }
    }
}
