//! Tokens that become text while they come.

use anyhow::Result;

use crate::data::text::TextTokenizer;

/// Tokens before the latest text that are decoded with it, since a token's text depends on its neighbours (a space, the rest of a character).
const CONTEXT: usize = 8;
/// A sequence of tokens this long that is still no whole character will not become one.
const LONGEST_CHARACTER: usize = 16;

/// Turns tokens into text as they come: whole characters only, and nothing of a text at which to stop.
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    stops: Vec<String>,
    /// Context, then tokens that are not text yet.
    tokens: Vec<i64>,
    context: usize,
    /// Bytes that are no whole character yet, of tokenizers whose tokens are bytes.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop.
    held: String,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream that goes on from a prompt, which it does not repeat. Text from the first of `stops` on is left out.
    pub fn after(tokenizer: &'a TextTokenizer, prompt: &[i64], stops: Vec<String>) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            tokenizer,
            stops,
            context: tokens.len(),
            tokens,
            bytes: Vec::new(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Whether a stop has been met: all that comes after it is left out.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a token and returns the text that has become certain, often none.
    pub fn push(&mut self, token: i64) -> Result<String> {
        let new = match self.tokenizer.token_bytes(token) {
            Some(bytes) => {
                self.bytes.extend_from_slice(bytes);
                whole_characters(&mut self.bytes)
            }
            None => self.decode(token)?,
        };
        Ok(self.certain(&new))
    }

    /// What was held back, once no more tokens come.
    pub fn finish(&mut self) -> Result<String> {
        let mut rest = String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned();
        if self.context < self.tokens.len() {
            rest.push_str(&self.beyond_context()?);
            self.context = self.tokens.len();
        }
        let mut text = self.certain(&rest);
        if !self.stopped {
            text.push_str(&std::mem::take(&mut self.held));
        }
        Ok(text)
    }

    fn decode(&mut self, token: i64) -> Result<String> {
        self.tokens.push(token);
        let new = self.beyond_context()?;
        if new.ends_with(char::REPLACEMENT_CHARACTER) && self.tokens.len() - self.context < LONGEST_CHARACTER
        {
            return Ok(String::new());
        }
        self.tokens.drain(..self.tokens.len().saturating_sub(CONTEXT));
        self.context = self.tokens.len();
        Ok(new)
    }

    /// The text that the tokens behind the context add to it.
    fn beyond_context(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.tokens[..self.context], true)?;
        let all = self.tokenizer.decode(&self.tokens, true)?;
        Ok(match all.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // A decoder that mends the end of a text when more comes: what both have in common is written already.
            None => {
                let common = all
                    .chars()
                    .zip(before.chars())
                    .take_while(|(a, b)| a == b)
                    .map(|(a, _)| a.len_utf8())
                    .sum();
                all[common..].to_owned()
            }
        })
    }

    fn certain(&mut self, new: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(new);
        if let Some(stop) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.stopped = true;
            self.held.truncate(stop);
            return std::mem::take(&mut self.held);
        }
        let may_begin = |start: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..]));
        let kept =
            self.held.char_indices().map(|(start, _)| start).find(may_begin).unwrap_or(self.held.len());
        let held = self.held.split_off(kept);
        std::mem::replace(&mut self.held, held)
    }
}

/// Takes the whole characters from the front of bytes; bytes that cannot be part of one become U+FFFD.
fn whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        match std::str::from_utf8(bytes) {
            Ok(whole) => {
                text.push_str(whole);
                bytes.clear();
                return text;
            }
            Err(error) => {
                text.push_str(&String::from_utf8_lossy(&bytes[..error.valid_up_to()]));
                let Some(wrong) = error.error_len() else {
                    bytes.drain(..error.valid_up_to());
                    return text;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                bytes.drain(..error.valid_up_to() + wrong);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::text::{TokenizerConfig, TokenizerKind};

    const TEXT: &str = "Straße 🙂🙂 naïve, the end.\n日本語 the cat";

    fn tokenizer(kind: TokenizerKind) -> Result<TextTokenizer> {
        let config = TokenizerConfig { kind, vocab_size: 290, ..Default::default() };
        TextTokenizer::train(&config, [TEXT].iter())
    }

    #[test]
    fn characters_come_whole_and_all_of_them_come() -> Result<()> {
        for kind in [
            TokenizerKind::Characters,
            TokenizerKind::Bytes,
            TokenizerKind::Bpe,
            TokenizerKind::Unigram,
            TokenizerKind::Words,
        ] {
            let tokenizer = tokenizer(kind)?;
            let tokens = tokenizer.encode(TEXT)?;
            let (prompt, rest) = tokens.split_at(3);
            let mut stream = TextStream::after(&tokenizer, prompt, Vec::new());
            let mut text = tokenizer.decode(prompt, true)?;
            // A prompt may end within a character; what follows then is no character of its own.
            let prompt_is_whole = !text.ends_with(char::REPLACEMENT_CHARACTER);
            for &token in rest {
                let new = stream.push(token)?;
                assert!(!prompt_is_whole || !new.contains(char::REPLACEMENT_CHARACTER), "{kind:?}: {new:?}");
                text.push_str(&new);
            }
            text.push_str(&stream.finish()?);
            assert_eq!(text, tokenizer.decode(&tokens, true)?, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn nothing_of_a_stop_is_written() -> Result<()> {
        let tokenizer = tokenizer(TokenizerKind::Characters)?;
        let write = |stops: &[&str]| -> Result<(String, bool)> {
            let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
            let mut stream = TextStream::after(&tokenizer, &[], stops);
            let mut text = String::new();
            for token in tokenizer.encode(TEXT)? {
                text.push_str(&stream.push(token)?);
            }
            text.push_str(&stream.finish()?);
            Ok((text, stream.stopped()))
        };
        assert_eq!(write(&["the end", "cat"])?, ("Straße 🙂🙂 naïve, ".to_owned(), true));
        assert_eq!(write(&["the dog", "tt"])?, (TEXT.to_owned(), false));
        assert_eq!(write(&["cat"])?.0, TEXT.trim_end_matches("cat"));
        Ok(())
    }

    #[test]
    fn bytes_that_are_no_text_do_not_stop_the_stream() -> Result<()> {
        let tokenizer = tokenizer(TokenizerKind::Bytes)?;
        let mut stream = TextStream::after(&tokenizer, &[], Vec::new());
        let mut text = String::new();
        for byte in [0x61, 0xff, 0xc3, 0x62, 0xe2, 0x82] {
            text.push_str(&stream.push(byte)?);
        }
        assert_eq!(text, "a\u{fffd}\u{fffd}b");
        assert_eq!(stream.finish()?, "\u{fffd}");
        Ok(())
    }
}
