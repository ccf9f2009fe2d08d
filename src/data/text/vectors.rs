//! Word vectors in the text forms of GloVe and word2vec.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Result, anyhow};
use tch::Tensor;

use super::tokenizer::TextTokenizer;
use crate::bail_input;
use crate::data::table::open_bytes;

/// Vectors of the words of a vocabulary.
#[derive(Debug)]
pub struct WordVectors {
    /// Numbers of each vector.
    pub width: usize,
    /// The vector of each token that has one.
    pub of_tokens: HashMap<usize, Vec<f32>>,
}

impl WordVectors {
    /// Reads the vectors of the tokens of a vocabulary from a file, gzipped or plain: on each line a word and its numbers, with spaces between
    /// them. A first line of two numbers (word2vec's counts) is left out; lines of other words are not kept.
    ///
    /// # Errors
    /// A line that is no UTF-8, has another number of values than the first, or one that is no number; no word of the vocabulary in the file.
    pub fn read(path: &Path, tokenizer: &TextTokenizer) -> Result<Self> {
        let name = path.display();
        let mut reader = BufReader::with_capacity(1 << 18, open_bytes(path)?);
        let (mut bytes, mut line, mut width, mut of_tokens) = (Vec::new(), 0u64, None, HashMap::new());
        loop {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes).map_err(|error| anyhow!("cannot read {name}: {error}"))?
                == 0
            {
                break;
            }
            line += 1;
            let text = match std::str::from_utf8(&bytes) {
                Ok(text) => text.trim_end(),
                Err(_) => bail_input!(
                    "{name}, line {line}: this is not UTF-8: is it the text form of word vectors?"
                ),
            };
            let Some((word, rest)) = text.split_once(' ') else {
                bail_input!(
                    "{name}, line {line}: a word and its numbers are wanted, with spaces between them"
                );
            };
            if line == 1 && word.parse::<u64>().is_ok() && rest.trim().parse::<u64>().is_ok() {
                continue;
            }
            let count = rest.split(' ').filter(|value| !value.is_empty()).count();
            // Some words of GloVe's largest file have spaces in them; the numbers are the last ones.
            let wanted = *width.get_or_insert(count);
            if count < wanted {
                bail_input!("{name}, line {line}: {count} numbers where the first line has {wanted}");
            }
            if count > wanted {
                continue;
            }
            let Some(token) = tokenizer.id(word) else { continue };
            let values: Vec<f32> = rest
                .split(' ')
                .filter(|value| !value.is_empty())
                .map(|value| fast_float2::parse(value).ok().filter(|number: &f32| number.is_finite()))
                .collect::<Option<_>>()
                .ok_or_else(|| {
                    crate::bad_input!("{name}, line {line}: not all values of `{word}` are numbers")
                })?;
            of_tokens.entry(token as usize).or_insert(values);
        }
        match width {
            Some(width) if !of_tokens.is_empty() => Ok(Self { width, of_tokens }),
            _ => bail_input!("{name} has no vector of any word of the vocabulary"),
        }
    }

    /// Overwrites the rows of an embedding `[tokens, width]` that have a vector.
    ///
    /// # Errors
    /// The embedding has another width.
    pub fn write_into(&self, embedding: &Tensor) -> Result<()> {
        let width = embedding.size()[1];
        if width != self.width as i64 {
            bail_input!("the word vectors have {} numbers each, but model.embedding is {width}", self.width);
        }
        let mut rows: Vec<usize> = self.of_tokens.keys().copied().collect();
        rows.sort_unstable();
        let values: Vec<f32> = rows.iter().flat_map(|row| self.of_tokens[row].iter().copied()).collect();
        let numbers: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let _guard = tch::no_grad_guard();
        let device = embedding.device();
        let values =
            Tensor::f_from_slice(&values)?.f_view([rows.len() as i64, width])?.f_to_device(device)?;
        let mut target = embedding.shallow_clone();
        let _ = target.f_index_copy_(0, &Tensor::f_from_slice(&numbers)?.f_to_device(device)?, &values)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::training::{TokenizerConfig, TokenizerKind};
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn vectors_go_into_the_rows_of_their_words() -> Result<()> {
        let config = TokenizerConfig { kind: TokenizerKind::Words, ..Default::default() };
        let tokenizer = TextTokenizer::train(&config, ["a b c"].iter())?;
        let path = std::env::temp_dir().join(format!("tch-suite-vectors-{}.txt", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text)?;
            WordVectors::read(&path, &tokenizer)
        };
        let vectors = read("3 2\nb 1 2.5\nzebra 3 4\nc -1 0\n. . . 7 8\n")?;
        assert_eq!((vectors.width, vectors.of_tokens.len()), (2, 2));
        let embedding = Tensor::zeros([6, 2], (Kind::Float, Device::Cpu));
        vectors.write_into(&embedding)?;
        let rows = Vec::<Vec<f32>>::try_from(&embedding)?;
        let b = tokenizer.id("b").unwrap_or(0) as usize;
        assert_eq!(rows[b], [1.0, 2.5]);
        assert_eq!(rows[0], [0.0, 0.0]);
        for (text, words) in [
            ("b 1 2\nc 1\n", "line 2: 1 numbers"),
            ("b 1 x\n", "line 1: not all"),
            ("q 1 2\n", "has no vector of any"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
        Ok(std::fs::remove_file(&path)?)
    }
}
