//! Conversations: what is asked, and the answers that are learned.

use std::path::Path;

use anyhow::{Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::table::open_bytes;
use crate::data::text::{TextTokenizer, for_each_line};
use crate::{bad_input, bail_input, files};

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// Messages in their order; those of the assistant are learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// Its line in the file.
    pub line: u64,
    /// All of them.
    pub messages: Vec<Message>,
}

/// The names that question and answer have in the usual files.
const PAIRS: [(&str, &str); 4] =
    [("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer")];

/// Reads JSON lines: `{"messages": [{"role", "content"}, …]}`, or a question and an answer as `prompt` and `completion` (or `response`),
/// `instruction` (with `input`) and `output`, `question` and `answer`.
///
/// # Errors
/// A line that is no such object, or has nothing to learn; file and line are named.
pub fn read_conversations(path: &Path) -> Result<Vec<Conversation>> {
    let name = path.display().to_string();
    let mut conversations = Vec::new();
    for_each_line(open_bytes(path)?, &name, |line, text| {
        if !text.trim().is_empty() {
            let messages = messages(text).with_context(|| format!("{name}, line {line}"))?;
            conversations.push(Conversation { line, messages });
        }
        Ok(())
    })?;
    if conversations.is_empty() {
        bail_input!("{name} holds no conversation");
    }
    Ok(conversations)
}

fn messages(line: &str) -> Result<Vec<Message>> {
    let value: Value =
        serde_json::from_str(line).map_err(|error| bad_input!("this is no JSON: {}", error))?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let messages: Vec<Message> = if let Some(messages) = value.get("messages") {
        serde_json::from_value(messages.clone()).map_err(|_| {
            bad_input!("`messages` must be a list of objects with the texts `role` and `content`")
        })?
    } else {
        let found = PAIRS.iter().find_map(|(question, answer)| Some((text(question)?, text(answer)?)));
        let Some((question, answer)) = found else {
            bail_input!(
                "there is neither a list of `messages` nor a `prompt` with its `completion` (or instruction and output, question and answer)"
            );
        };
        let question = match text("input").filter(|input| !input.is_empty()) {
            Some(input) => format!("{question}\n\n{input}"),
            None => question,
        };
        let said = |role: &str, content| Message { role: role.to_owned(), content };
        vec![said("user", question), said("assistant", answer)]
    };
    if !messages.iter().any(|message| message.role == "assistant" && !message.content.is_empty()) {
        bail_input!("nothing is answered here: a message of the role `assistant` is needed");
    }
    Ok(messages)
}

/// How a conversation becomes one text.
#[derive(Clone, Debug, Default)]
pub struct ChatTemplate {
    /// A Jinja template as Hugging Face's tokenizers have it; without one, messages follow each other with an empty line between them, and answers end with
    /// the end of a text.
    template: Option<String>,
    /// What the template knows as `bos_token` and `eos_token`.
    marks: [String; 2],
}

impl ChatTemplate {
    /// A template, or none, with the marks of a tokenizer.
    ///
    /// # Errors
    /// It is no template.
    pub fn of(template: Option<String>, tokenizer: &TextTokenizer) -> Result<Self> {
        let mark = |id: Option<i64>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let special = tokenizer.special();
        let found = Self { template, marks: [mark(special.begin), mark(special.end)] };
        let _ = found.text(&[Message { role: "user".to_owned(), content: "?".to_owned() }], true)?;
        Ok(found)
    }

    /// The template of a model's folder (`chat_template.jinja`, or the key `chat_template` of `tokenizer_config.json`), if it has one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn find(folder: &Path) -> Result<Option<String>> {
        let own = folder.join("chat_template.jinja");
        if own.is_file() {
            return Ok(Some(files::read_text(&own)?));
        }
        let config = folder.join("tokenizer_config.json");
        if !config.is_file() {
            return Ok(None);
        }
        let config = crate::recipe::parse(&files::read_text(&config)?, &config.display().to_string())?;
        Ok(config.get("chat_template").and_then(Value::as_str).map(str::to_owned))
    }

    /// The text of messages; with `question` it ends where the next answer begins.
    ///
    /// # Errors
    /// The template refuses them, as some do when roles do not alternate.
    pub fn text(&self, messages: &[Message], question: bool) -> Result<String> {
        let Some(template) = &self.template else {
            let [_, end] = &self.marks;
            let text = messages.iter().map(|message| match message.role.as_str() {
                "assistant" => format!("{}{end}", message.content),
                _ => format!("{}\n\n", message.content),
            });
            return Ok(text.collect());
        };
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As transformers sets Jinja up.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, reason))
        });
        let [bos_token, eos_token] = &self.marks;
        environment
            .render_str(
                template,
                context! { messages => Serde(messages), add_generation_prompt => question, bos_token, eos_token },
            )
            .map_err(|error| bad_input!("the chat template refuses this conversation: {error}"))
    }

    /// The tokens of a conversation, and which of them are answers: those of an answer's text, its end mark included.
    ///
    /// # Errors
    /// The template or the tokenizer refuses the text.
    pub fn encode(&self, messages: &[Message], tokenizer: &TextTokenizer) -> Result<(Vec<i64>, Vec<bool>)> {
        let text = self.text(messages, false)?;
        let mut answers = Vec::new();
        for (number, message) in messages.iter().enumerate() {
            if message.role == "assistant" {
                let before = self.text(&messages[..number], true)?;
                let after = self.text(&messages[..=number], false)?;
                // A template that says something else of the beginning once more has been said has no such places.
                if !(text.starts_with(&before) && text.starts_with(&after)) {
                    bail_input!(
                        "the chat template does not keep what it said of earlier messages, so answers cannot be told from questions"
                    );
                }
                answers.push(before.len()..after.len());
            }
        }
        let positions = tokenizer.positions(&text, false)?;
        let learned = positions.iter().map(|token| {
            answers.iter().any(|answer| {
                token.bytes.start >= answer.start && token.bytes.end <= answer.end && !token.bytes.is_empty()
            })
        });
        Ok((positions.iter().map(|token| token.id).collect(), learned.collect()))
    }
}
