//! How sentences are cut into words before they are compared: the rules of mteval-v13a, mteval-v14 and others, as sacreBLEU applies them.

use std::sync::LazyLock;

use clap::ValueEnum;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::is_white_space;

/// sacreBLEU's `--tokenize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Tokenizer {
    /// The rules of mteval-v13a, which WMT uses.
    #[default]
    #[serde(rename = "13a")]
    #[value(name = "13a")]
    Mteval13a,
    /// The rules of mteval-v14: Unicode's punctuation and symbols.
    #[serde(rename = "intl")]
    #[value(name = "intl")]
    International,
    /// Chinese characters each by itself, the rest as 13a.
    #[serde(rename = "zh")]
    #[value(name = "zh")]
    Chinese,
    /// Every character by itself.
    #[serde(rename = "char")]
    #[value(name = "char")]
    Character,
    /// White space only, for text that is tokenised already.
    #[serde(rename = "none")]
    #[value(name = "none")]
    None,
}

impl Tokenizer {
    /// Its name in signatures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mteval13a => "13a",
            Self::International => "intl",
            Self::Chinese => "zh",
            Self::Character => "char",
            Self::None => "none",
        }
    }

    /// The sentence with white space between its words.
    pub(super) fn apply(self, sentence: &str) -> String {
        let sentence = sentence.trim_end_matches(is_white_space);
        match self {
            Self::Mteval13a => {
                let joined = sentence.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
                separate_western(&format!(" {} ", unescape(&joined)))
            }
            Self::International => separate_international(sentence),
            Self::Chinese => separate_western(&separate_chinese(sentence.trim_matches(is_white_space))),
            Self::Character => sentence.chars().flat_map(|character| [character, ' ']).collect(),
            Self::None => sentence.to_owned(),
        }
    }
}

/// XML's names for four characters, in mteval's order.
pub(super) fn unescape(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
}

/// Rewrites every match of each expression in turn.
pub(super) fn rewrite(text: &str, rules: &[(Regex, &str)]) -> String {
    rules.iter().fold(text.to_owned(), |text, (expression, replacement)| {
        expression.replace_all(&text, *replacement).into_owned()
    })
}

/// Compiles rules whose expressions are constants of this program.
pub(super) fn rules<const N: usize>(pairs: [(&str, &'static str); N]) -> Vec<(Regex, &'static str)> {
    pairs
        .into_iter()
        .filter_map(|(expression, replacement)| Some((Regex::new(expression).ok()?, replacement)))
        .collect()
}

/// ASCII's punctuation but apostrophe, comma, hyphen and full stop.
pub(super) const ASCII_PUNCTUATION: (&str, &str) = (r"([{-~\[-` -&(-+:-@/])", " ${1} ");
/// A comma or full stop is part of a number only.
pub(super) const MARK_AFTER_TEXT: (&str, &str) = (r"([^0-9])([.,])", "${1} ${2} ");
/// Likewise.
pub(super) const MARK_BEFORE_TEXT: (&str, &str) = (r"([.,])([^0-9])", " ${1} ${2}");
/// A hyphen after a digit.
pub(super) const HYPHEN_AFTER_DIGIT: (&str, &str) = (r"([0-9])(-)", "${1} ${2} ");

fn separate_western(text: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &str)>> =
        LazyLock::new(|| rules([ASCII_PUNCTUATION, MARK_AFTER_TEXT, MARK_BEFORE_TEXT, HYPHEN_AFTER_DIGIT]));
    rewrite(text, &RULES)
}

fn separate_international(text: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        rules([(r"(\P{N})(\p{P})", "${1} ${2} "), (r"(\p{P})(\P{N})", " ${1} ${2}"), (r"(\p{S})", " ${1} ")])
    });
    rewrite(text, &RULES)
}

fn separate_chinese(text: &str) -> String {
    text.chars().fold(String::with_capacity(3 * text.len()), |mut line, character| {
        if is_chinese(character) {
            line.extend([' ', character, ' ']);
        } else {
            line.push(character);
        }
        line
    })
}

/// sacreBLEU's table. Its two entries beyond the basic plane are written with four digits too few there and so mean U+2001 to U+2A6D and
/// U+2F81 to U+2FA1; they are kept, since scores are to be equal.
fn is_chinese(character: char) -> bool {
    matches!(character,
        '\u{3400}'..='\u{4db5}' | '\u{4e00}'..='\u{9fbb}' | '\u{f900}'..='\u{fa2d}' | '\u{fa30}'..='\u{fa6a}'
        | '\u{fa70}'..='\u{fad9}' | '\u{2001}'..='\u{2a6d}' | '\u{2f81}'..='\u{2fa1}' | '\u{ff00}'..='\u{ffef}'
        | '\u{2e80}'..='\u{2eff}' | '\u{3000}'..='\u{303f}' | '\u{31c0}'..='\u{31ef}' | '\u{2f00}'..='\u{2fdf}'
        | '\u{2ff0}'..='\u{2fff}' | '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}' | '\u{fe10}'..='\u{fe1f}'
        | '\u{fe30}'..='\u{fe4f}' | '\u{3200}'..='\u{33ff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_compiles() {
        assert_eq!(
            rules([ASCII_PUNCTUATION, MARK_AFTER_TEXT, MARK_BEFORE_TEXT, HYPHEN_AFTER_DIGIT]).len(),
            4
        );
        assert_eq!(Tokenizer::International.apply("a.b 1.5 €").split_whitespace().count(), 5);
    }
}
