//! Texts that a language model writes: how the next token is chosen, and how tokens become text while they come.
//!
//! ```no_run
//! # use tch_suite::data::text::TextTokenizer;
//! # use tch_suite::generation::{SamplingConfig, TextStream, TokenSampler};
//! # fn next_logits(_: &[i64]) -> Vec<f32> { Vec::new() }
//! # fn main() -> anyhow::Result<()> {
//! # let tokenizer = TextTokenizer::of_json("")?;
//! let mut tokens = tokenizer.encode("Once upon a time")?;
//! let mut sampler = TokenSampler::new(SamplingConfig { top_p: 0.9, ..Default::default() }, 7)?;
//! let mut stream = TextStream::after(&tokenizer, &tokens, vec!["\n\n".to_owned()]);
//! while tokens.len() < 100 && !stream.stopped() {
//!     let logits: Vec<f32> = next_logits(&tokens); // of the last position, [vocabulary]
//!     let token = sampler.next(&logits, &tokens);
//!     tokens.push(token);
//!     print!("{}", stream.push(token)?); // whole characters only
//! }
//! print!("{}", stream.finish()?);
//! # Ok(())
//! # }
//! ```

mod sampling;
pub mod search;
mod stream;

pub use sampling::{SamplingConfig, TokenSampler};
pub use stream::TextStream;
