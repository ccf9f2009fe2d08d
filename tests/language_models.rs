//! Translation and language models against PyTorch and transformers, from weights to generated tokens; searches against counting everything out.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;
use tch::{CModule, Device, IValue, Kind, Tensor};
use tch_suite::cli::transformer::{LanguageModelling, Translating};
use tch_suite::cli::{Family, ScriptPart};
use tch_suite::data::text::{TextTokenizer, TokenizerConfig, TokenizerKind};
use tch_suite::data::translation::PairTokenizers;
use tch_suite::generation::search::{Marks, SearchConfig, TargetWriter, Writer, search};
use tch_suite::models::attention::{AttentionOptions, MultiheadAttention};
use tch_suite::models::decoders::gpt2::Gpt2;
use tch_suite::models::decoders::llama::Llama;
use tch_suite::models::decoders::{Decoder, DecoderCache, Layout};
use tch_suite::models::encoder_decoder::EncoderDecoder;
use tch_suite::models::encoder_decoder::marian::Marian;
use tch_suite::models::encoder_decoder::t5::T5;
use tch_suite::models::encoder_decoder::transformer::{
    DecoderLayer, EncoderLayer, Transformer, TransformerConfig, Tying,
};
use tch_suite::models::{Parameters, Role, Scope};
use tch_suite::native::trace::{Entry, Stored, trace_module};
use tch_suite::tasks::Task;
use tch_suite::tasks::language_model::LanguageModel;
use tch_suite::tasks::translation::Translation;

use crate::support::{Scratch, data, formula};

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language_models.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn integers(rows: &Value) -> Tensor {
    let rows: Vec<Vec<i64>> = serde_json::from_value(rows.clone()).unwrap();
    Tensor::from_slice2(&rows)
}

fn floats(values: &Value) -> Tensor {
    let values: Vec<f32> = serde_json::from_value(values.clone()).unwrap();
    Tensor::from_slice(&values)
}

fn difference(ours: &Tensor, theirs: &Tensor) -> f64 {
    let theirs = theirs.view(ours.size().as_slice());
    f64::try_from((ours - theirs).abs().max().to_kind(Kind::Double)).unwrap()
}

/// What `layout` of the reference script makes of all names and shapes.
fn layout(parameters: &Parameters) -> u64 {
    let mut entries = parameters.entries();
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let lines = entries.iter().map(|entry| format!("{} {:?}\n", entry.name, entry.tensor.size()));
    u64::from(crc32(lines.collect::<String>().as_bytes()))
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn assert_gradients(parameters: &Parameters, expected: &Value, what: &str) {
    let expected = expected.as_object().unwrap();
    let learned: Vec<_> =
        parameters.entries().into_iter().filter(|entry| entry.role == Role::Parameter).collect();
    assert_eq!(learned.len(), expected.len(), "{what}");
    for entry in learned {
        let norm = f64::try_from(entry.tensor.grad().to_kind(Kind::Double).norm()).unwrap();
        let theirs = expected[&entry.name].as_f64().unwrap();
        assert!(
            (norm - theirs).abs() < 1e-5 + 1e-4 * theirs,
            "{what}: the gradient of {} has the norm {norm}, PyTorch's {theirs}",
            entry.name
        );
    }
}

fn loss_of(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Tensor {
    logits.flatten(0, 1).cross_entropy_loss(
        &labels.flatten(0, -1),
        None::<&Tensor>,
        tch::Reduction::Mean,
        -100,
        smoothing,
    )
}

/// The model section of a case without its `model_type`.
fn config<T: serde::de::DeserializeOwned>(case: &Value) -> T {
    let mut config = case["model"].clone();
    config.as_object_mut().unwrap().remove("model_type");
    serde_json::from_value(config).unwrap()
}

#[test]
fn the_transformer_is_torch_nns() -> Result<()> {
    let fixture = fixture();
    let (source, target) = (integers(&fixture["source"]), integers(&fixture["target"]));
    for case in fixture["transformer"].as_array().unwrap() {
        let parameters = Parameters::new(Device::Cpu);
        tch::manual_seed(3);
        let model = Transformer::new(
            &parameters.root(),
            TransformerConfig {
                source_vocabulary: 23,
                target_vocabulary: 19,
                d_model: 16,
                nhead: 4,
                num_encoder_layers: 2,
                num_decoder_layers: 3,
                dim_feedforward: 24,
                dropout: 0.0,
                activation: serde_json::from_value(case["activation"].clone())?,
                norm_first: case["norm_first"].as_bool().unwrap(),
                ..TransformerConfig::default()
            },
        )?;
        for entry in parameters.entries() {
            let values = entry.tensor.to_kind(Kind::Double);
            let sums = [values.sum(Kind::Double), values.square().sum(Kind::Double)];
            // The embeddings are drawn by another formula in Python; everything inside nn.Transformer is as it makes it.
            if entry.name.starts_with("transformer.") {
                for (sum, expected) in sums.into_iter().zip(case["begin"][&entry.name].as_array().unwrap()) {
                    let (sum, expected) = (f64::try_from(sum)?, expected.as_f64().unwrap());
                    assert!((sum - expected).abs() < 1e-9, "{}: {sum}, PyTorch {expected}", entry.name);
                }
            }
        }
        assert_eq!(layout(&parameters), case["layout"].as_u64().unwrap());
        formula::fill(&parameters)?;
        let logits = model.forward(&source, &source.ne(0), &target, true);
        assert!(difference(&logits, &floats(&case["logits"])) < 1e-5);
        let loss = loss_of(&logits, &integers(&fixture["labels"]), 0.1);
        assert!((f64::try_from(&loss)? - case["loss"].as_f64().unwrap()).abs() < 1e-5);
        loss.backward();
        assert_gradients(&parameters, &case["gradient_norms"], "nn.Transformer");
    }
    Ok(())
}

fn open_encoder_decoder(case: &Value, parameters: &Parameters) -> Result<Box<dyn EncoderDecoder>> {
    Ok(match case["model"]["model_type"].as_str() {
        Some("marian") => Box::new(Marian::new(&parameters.root(), config(case))?),
        _ => Box::new(T5::new(&parameters.root(), config(case))?),
    })
}

#[test]
fn marian_and_t5_are_transformers() -> Result<()> {
    let fixture = fixture();
    let (source, target) = (integers(&fixture["source"]), integers(&fixture["target"]));
    let mask = source.ne(0);
    for case in fixture["encoder_decoder"].as_array().unwrap() {
        let what = case["model"].to_string();
        let parameters = Parameters::new(Device::Cpu);
        let model = open_encoder_decoder(case, &parameters)?;
        assert_eq!(layout(&parameters), case["layout"].as_u64().unwrap(), "{what}");
        formula::fill(&parameters)?;
        // Nothing is dropped, and that in evaluation; the graph is there all the same.
        let logits = model.forward(&source, &mask, &target, false);
        let apart = difference(&logits, &floats(&case["logits"]));
        assert!(apart < 2e-5, "{what}: {apart}");
        let loss = loss_of(&logits, &integers(&fixture["labels"]), 0.0);
        assert!((f64::try_from(&loss)? - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}");
        loss.backward();
        assert_gradients(&parameters, &case["gradient_norms"], &what);
        for found in case["searches"].as_array().unwrap() {
            let settings = &found["settings"];
            let number =
                |name: &str, default| settings[name].as_u64().map_or(default, |value| value as usize);
            let search_config = SearchConfig {
                beam: number("num_beams", 1),
                length_penalty: settings["length_penalty"].as_f64().unwrap_or(1.0),
                min_length: number("min_new_tokens", 0),
                max_length: 12,
                no_repeat_ngram: number("no_repeat_ngram_size", 0),
                n_best: number("num_return_sequences", 1),
            };
            let marks = Marks { begin: 0, end: 1, ..Marks::default() };
            let mut writer = TargetWriter::new(model.as_ref(), &source, &mask);
            let texts: Vec<_> =
                search(&mut writer, 2, &marks, &search_config, Device::Cpu)?.into_iter().flatten().collect();
            let expected: Vec<Vec<i64>> = serde_json::from_value(found["sequences"].clone())?;
            assert_eq!(texts.len(), expected.len());
            for (number, (text, expected)) in texts.iter().zip(expected).enumerate() {
                let mut tokens = text.tokens.clone();
                tokens.extend(text.ended.then_some(1));
                assert_eq!(tokens[..], expected[1..=tokens.len()], "{what}: {settings}");
                if let Some(score) = found["scores"][number].as_f64() {
                    assert!(
                        (text.score - score).abs() < 1e-5,
                        "{what}: {settings}: {} and {score}",
                        text.score
                    );
                }
            }
        }
    }
    Ok(())
}

fn open_decoder(case: &Value, parameters: &Parameters) -> Result<Box<dyn Decoder>> {
    Ok(match case["model"]["model_type"].as_str() {
        Some("gpt2") => Box::new(Gpt2::new(&parameters.root(), config(case))?),
        _ => Box::new(Llama::new(&parameters.root(), config(case))?),
    })
}

#[test]
fn gpt2_and_llama_are_transformers() -> Result<()> {
    let fixture = fixture();
    let tokens = Tensor::from_slice2(&[[5i64, 9, 4, 12, 7, 3], [0, 0, 8, 6, 11, 2]]);
    let there = Tensor::from_slice2(&[[true; 6], [false, false, true, true, true, true]]);
    let positions = (there.cumsum(1, Kind::Int64) - 1).clamp_min(0);
    let mask = there.unsqueeze(1).unsqueeze(1);
    let labels = tokens.where_scalarother(&there, -100).narrow(1, 1, 5);
    let _ = labels.get(1).get(1).fill_(-100);
    for case in fixture["decoder"].as_array().unwrap() {
        let what = case["model"].to_string();
        let parameters = Parameters::new(Device::Cpu);
        let model = open_decoder(case, &parameters)?;
        assert_eq!(layout(&parameters), case["layout"].as_u64().unwrap(), "{what}");
        formula::fill(&parameters)?;
        let given = Layout { positions: Some(&positions), mask: Some(&mask) };
        let logits = model.forward(&tokens, given, false);
        let apart = difference(&logits.narrow(1, 2, 4).contiguous(), &floats(&case["logits"]));
        assert!(apart < 2e-5, "{what}: {apart}");
        let loss = loss_of(&logits.narrow(1, 0, 5), &labels, 0.0);
        assert!((f64::try_from(&loss)? - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}");
        loss.backward();
        assert_gradients(&parameters, &case["gradient_norms"], &what);
        // Ten tokens more, one after the other on the cache.
        let _guard = tch::no_grad_guard();
        let mut cache = DecoderCache::new(model.layers());
        let (mut newest, mut there, mut positions) =
            (tokens.shallow_clone(), there.shallow_clone(), positions.shallow_clone());
        let mut written = Vec::new();
        for _ in 0..10 {
            let mask = there.unsqueeze(1).unsqueeze(1);
            let given = Layout { positions: Some(&positions), mask: Some(&mask) };
            let logits = model.decode(&newest, given, &mut cache, false);
            newest = logits.select(1, -1).argmax(1, true);
            there = Tensor::cat(&[there, Tensor::ones([2, 1], (Kind::Bool, Device::Cpu))], 1);
            positions = positions.narrow(1, positions.size()[1] - 1, 1) + 1;
            written.push(newest.shallow_clone());
        }
        assert_eq!(Tensor::cat(&written, 1), integers(&case["greedy"]), "{what}");
    }
    Ok(())
}

#[test]
fn decoding_on_the_cache_gives_the_scores_of_whole_texts() -> Result<()> {
    let fixture = fixture();
    let source = integers(&fixture["source"]);
    let mask = source.ne(0);
    let target = Tensor::randint_low(2, 19, [2, 40], (Kind::Int64, Device::Cpu));
    let _guard = tch::no_grad_guard();
    let mut models: Vec<Box<dyn EncoderDecoder>> = Vec::new();
    for tie_embeddings in [Tying::None, Tying::Output] {
        let config = TransformerConfig {
            source_vocabulary: 23,
            target_vocabulary: 19,
            d_model: 16,
            nhead: 4,
            tie_embeddings,
            ..TransformerConfig::default()
        };
        models.push(Box::new(Transformer::new(&Parameters::new(Device::Cpu).root(), config)?));
    }
    for case in fixture["encoder_decoder"].as_array().unwrap() {
        // Marian's small table of positions is shorter than the text.
        if case["model"]["model_type"] == "t5" {
            models.push(open_encoder_decoder(case, &Parameters::new(Device::Cpu))?);
        }
    }
    for model in models {
        let whole = model.forward(&source, &mask, &target, false);
        let memory = model.encode(&source, &mask, false);
        let mut state = model.start(&memory, &mask);
        // Also with several tokens at once, and with rows that change places and back.
        let mut parts = Vec::new();
        let mut from = 0;
        for length in [1, 3, 1, 1, 30, 1, 3] {
            let swap = Tensor::from_slice(&[1i64, 0]);
            state.select(&swap, Some(&swap));
            state.select(&swap, Some(&swap));
            parts.push(model.decode(&target.narrow(1, from, length), &mut state, false));
            from += length;
        }
        assert!(difference(&Tensor::cat(&parts, 1), &whole) < 1e-5);
    }
    Ok(())
}

/// A language that depends on the last two tokens only.
struct Table {
    scores: Tensor,
    before: Tensor,
}

impl Writer for Table {
    fn step(&mut self, tokens: &Tensor) -> Tensor {
        let rows = &self.before * self.scores.size()[1] + tokens;
        self.before = tokens.shallow_clone();
        self.scores.flatten(0, 1).index_select(0, &rows)
    }

    fn select(&mut self, rows: &Tensor, _sources: Option<&Tensor>) {
        self.before = self.before.index_select(0, rows);
    }
}

#[test]
fn a_beam_wide_enough_finds_what_counting_everything_out_finds() {
    const VOCABULARY: i64 = 4;
    const LONGEST: usize = 4;
    for seed in 0..20 {
        tch::manual_seed(seed);
        let scores = Tensor::randn([VOCABULARY; 3], (Kind::Float, Device::Cpu)) * 2.0;
        let logs = Vec::<f32>::try_from(scores.log_softmax(-1, Kind::Float).flatten(0, -1)).unwrap();
        let log = |before: i64, last: i64, next: i64| {
            f64::from(logs[((before * VOCABULARY + last) * VOCABULARY + next) as usize])
        };
        for length_penalty in [0.0, 0.7, 1.5] {
            // Every text of the four tokens, 1 being the end.
            let mut best: Option<(f64, Vec<i64>)> = None;
            let mut open: Vec<(Vec<i64>, f64)> = vec![(vec![0, 0], 0.0)];
            for length in 1..=LONGEST {
                let mut next = Vec::new();
                for (tokens, sum) in open {
                    for token in 0..VOCABULARY {
                        let sum = sum + log(tokens[tokens.len() - 2], tokens[tokens.len() - 1], token);
                        let mut tokens = tokens.clone();
                        tokens.push(token);
                        if token == 1 || length == LONGEST {
                            let score = sum / (length as f64).powf(length_penalty);
                            if best.as_ref().is_none_or(|(most, _)| score > *most) {
                                best = Some((score, tokens));
                            }
                        } else {
                            next.push((tokens, sum));
                        }
                    }
                }
                open = next;
            }
            let (score, mut tokens) = best.unwrap();
            if tokens.last() == Some(&1) {
                tokens.pop();
            }
            let config =
                SearchConfig { beam: 256, length_penalty, max_length: LONGEST, ..SearchConfig::default() };
            let marks = Marks { begin: 0, end: 1, ..Marks::default() };
            let mut table = Table {
                scores: scores.shallow_clone(),
                before: Tensor::zeros([1], (Kind::Int64, Device::Cpu)),
            };
            let found = search(&mut table, 1, &marks, &config, Device::Cpu).unwrap();
            assert_eq!(found[0][0].tokens, tokens[2..], "seed {seed}, length penalty {length_penalty}");
            assert!((found[0][0].score - score).abs() < 1e-5);
        }
    }
}

/// The tensors of a parity file by name.
fn parity(name: &str) -> Option<std::collections::HashMap<String, Tensor>> {
    let path = data(&format!("parity/{name}.safetensors"))?;
    Some(Tensor::read_safetensors(path).unwrap().into_iter().collect())
}

/// Gives a layer the file's weights, whose names begin with `weight.`.
fn take_weights(parameters: &Parameters, file: &std::collections::HashMap<String, Tensor>) {
    let _guard = tch::no_grad_guard();
    for entry in parameters.entries() {
        entry.tensor.shallow_clone().copy_(&file[&format!("weight.{}", entry.name)]);
    }
}

fn assert_parity(
    parameters: &Parameters,
    file: &std::collections::HashMap<String, Tensor>,
    output: &Tensor,
    inputs: &[(&str, &Tensor)],
) {
    assert!(difference(output, &file["output"]) < 1e-5);
    (output * &file["probe"]).sum(Kind::Float).backward();
    for entry in parameters.entries() {
        let apart = difference(&entry.tensor.grad(), &file[&format!("grad.{}", entry.name)]);
        assert!(apart < 1e-5, "the gradient of {}: {apart}", entry.name);
    }
    for (name, input) in inputs {
        let apart = difference(&input.grad(), &file[&format!("grad_input.{name}")]);
        assert!(apart < 1e-5, "the gradient of the input {name}: {apart}");
    }
}

fn input(file: &std::collections::HashMap<String, Tensor>, name: &str) -> Tensor {
    file[&format!("input.{name}")].copy().set_requires_grad(true)
}

fn layer_config(norm_first: bool, activation: &str) -> TransformerConfig {
    TransformerConfig {
        d_model: 32,
        nhead: 4,
        dim_feedforward: 64,
        dropout: 0.0,
        norm_first,
        activation: serde_json::from_value(activation.into()).unwrap(),
        ..TransformerConfig::default()
    }
}

#[test]
fn layers_equal_the_larger_datas() -> Result<()> {
    let scope = || -> (Parameters, Scope) {
        let parameters = Parameters::new(Device::Cpu);
        let scope = parameters.root();
        (parameters, scope)
    };
    for (name, norm_first, activation) in [
        ("transformer_encoder_layer_postnorm_relu", false, "relu"),
        ("transformer_encoder_layer_prenorm_gelu", true, "gelu"),
    ] {
        let Some(file) = parity(name) else { return Ok(()) };
        let (parameters, scope) = scope();
        let layer = EncoderLayer::new(&scope, &layer_config(norm_first, activation))?;
        take_weights(&parameters, &file);
        let x = input(&file, "x");
        let output = layer.forward(&x, &file["input.src_key_padding_mask"].logical_not());
        assert_parity(&parameters, &file, &output, &[("x", &x)]);
    }
    if let Some(file) = parity("transformer_decoder_layer") {
        let (parameters, scope) = scope();
        let layer = DecoderLayer::new(&scope, &layer_config(false, "relu"))?;
        take_weights(&parameters, &file);
        let (x, memory) = (input(&file, "x"), input(&file, "memory"));
        let output = layer.forward(&x, &memory, &file["input.memory_key_padding_mask"].logical_not());
        assert_parity(&parameters, &file, &output, &[("x", &x), ("memory", &memory)]);
    }
    if let Some(file) = parity("multihead_attention") {
        let (parameters, scope) = scope();
        let layer = MultiheadAttention::new(&scope, 32, 4)?;
        take_weights(&parameters, &file);
        let query = input(&file, "query");
        let causal = layer.forward(&query, AttentionOptions { causal: true, ..Default::default() });
        assert!(difference(&causal, &file["causal_self.output"]) < 1e-5);
        // Keys and values are projections of different inputs there.
        let (key_input, value_input) = (input(&file, "key"), input(&file, "value"));
        let [key, _] = layer.project_memory(&key_input);
        let [_, value] = layer.project_memory(&value_input);
        let mask = file["input.key_padding_mask"].logical_not().unsqueeze(1).unsqueeze(1);
        let options = AttentionOptions { mask: Some(&mask), ..Default::default() };
        let output = layer.attend(&layer.project_query(&query), &key, &value, options);
        let inputs = [("query", &query), ("key", &key_input), ("value", &value_input)];
        assert_parity(&parameters, &file, &output, &inputs);
    }
    Ok(())
}

/// Traces the parts of a network with two rows, and loads the files.
fn traced(parts: Vec<ScriptPart<'_>>, parameters: &Parameters) -> Result<Vec<(CModule, Vec<Tensor>)>> {
    let folder = Scratch::new();
    let entries = parameters.entries();
    let entries: Vec<Entry> = entries.iter().map(Entry::from).collect();
    let load = |part: ScriptPart<'_>| {
        let path = folder.join(format!("{}.pt", part.name));
        let named: Vec<(&str, &Tensor)> = part.inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        trace_module("Part", &entries, Stored::Used, &named, &path, &mut |inputs| (part.forward)(inputs))?;
        Ok((CModule::load(&path)?, part.inputs.into_iter().map(|(_, tensor)| tensor).collect()))
    };
    parts.into_iter().map(load).collect()
}

/// The two outputs of a module.
fn two(module: &CModule, inputs: &[&Tensor]) -> [Tensor; 2] {
    let inputs: Vec<IValue> = inputs.iter().map(|tensor| IValue::Tensor(tensor.shallow_clone())).collect();
    match module.forward_is(&inputs).unwrap() {
        IValue::Tuple(outputs) => match <[IValue; 2]>::try_from(outputs) {
            Ok([IValue::Tensor(first), IValue::Tensor(second)]) => [first, second],
            other => panic!("not two tensors: {other:?}"),
        },
        other => panic!("no tuple: {other:?}"),
    }
}

#[test]
fn traced_encoders_and_steps_compute_what_the_translators_do() -> Result<()> {
    let fixture = fixture();
    let rows = [[5i64, 9, 4, 12, 7, 3, 1, 2, 8], [8, 6, 11, 1, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7, 1, 0, 0, 0]];
    let source = Tensor::from_slice2(&rows);
    let mask = source.ne(0);
    let target = Tensor::from_slice2(&[[0i64, 6, 10, 4, 9, 3], [0, 7, 5, 2, 2, 4], [0, 3, 3, 5, 8, 11]]);
    let config: TransformerConfig = serde_json::from_value(serde_json::json!({
        "source_vocabulary": 23, "target_vocabulary": 23, "d_model": 16, "nhead": 4, "num_encoder_layers": 2,
        "num_decoder_layers": 2, "dim_feedforward": 24, "positions": "learned", "norm_first": true,
    }))?;
    let parameters = Parameters::new(Device::Cpu);
    let model: Box<dyn EncoderDecoder> = Box::new(Transformer::new(&parameters.root(), config)?);
    let mut models = vec![("transformer".to_owned(), parameters, model)];
    for case in fixture["encoder_decoder"].as_array().unwrap() {
        let parameters = Parameters::new(Device::Cpu);
        let model = open_encoder_decoder(case, &parameters)?;
        models.push((case["model"].to_string(), parameters, model));
    }
    for (what, parameters, model) in models {
        formula::fill(&parameters)?;
        let tokenizer = TokenizerConfig { kind: TokenizerKind::Bytes, ..TokenizerConfig::default() };
        let tokenizer = Arc::new(TextTokenizer::train(&tokenizer, std::iter::empty::<&str>())?);
        let tokenizers =
            PairTokenizers { source: tokenizer.clone(), target: tokenizer, pad: 0, begin: 0, end: 1 };
        let marks = Marks { begin: 0, end: 1, ..Marks::default() };
        let task = Translation::new(parameters, model, Arc::new(tokenizers), marks, 0.0, None);
        let _guard = tch::no_grad_guard();
        let parts = Translating::script_parts(&task)?.unwrap();
        let files = traced(parts, task.parameters())?;
        let [(encoder, _), (decoder, _)] = &files[..] else { panic!("not two files") };
        let there = mask.to_kind(Kind::Int64);
        let [encoded, memory] = two(encoder, &[&source, &there]);
        let expected = task.model().encode(&source, &mask, false);
        let real = mask.unsqueeze(2).to_kind(Kind::Float);
        assert!(difference(&(encoded * &real), &(expected * &real)) < 1e-5, "{what}");
        // From nothing, several tokens at once and one by one.
        let mut past = memory.narrow(4, 0, 0);
        let mut scores = Vec::new();
        let mut from = 0;
        for count in [2, 1, 3] {
            let [new, all] = two(decoder, &[&target.narrow(1, from, count), &there, &memory, &past]);
            scores.push(new);
            past = all;
            from += count;
        }
        let expected = task.model().forward(&source, &mask, &target, false);
        assert!(difference(&Tensor::cat(&scores, 1), &expected) < 1e-5, "{what}");
        // Each file has what it needs of the model, and nothing else.
        let names = |module: &CModule| -> Vec<String> {
            module.named_parameters().unwrap().into_iter().map(|(name, _)| name).collect()
        };
        let total = task.parameters().entries().len();
        assert!(names(encoder).len() < total && names(decoder).len() < total, "{what}");
    }
    Ok(())
}

#[test]
fn a_traced_step_computes_what_the_language_models_do() -> Result<()> {
    let fixture = fixture();
    let tokens =
        Tensor::from_slice2(&[[5i64, 9, 4, 12, 7, 3, 2], [0, 0, 8, 6, 11, 2, 4], [0, 0, 0, 0, 3, 3, 9]]);
    let first = Tensor::from_slice(&[0i64, 2, 4]).unsqueeze(1);
    let there = Tensor::arange(7, (Kind::Int64, Device::Cpu)).unsqueeze(0).ge_tensor(&first);
    let positions = (there.cumsum(1, Kind::Int64) - 1).clamp_min(0);
    let mask = there.unsqueeze(1).unsqueeze(1);
    for case in fixture["decoder"].as_array().unwrap() {
        let what = case["model"].to_string();
        let parameters = Parameters::new(Device::Cpu);
        let model = open_decoder(case, &parameters)?;
        formula::fill(&parameters)?;
        let task = LanguageModel::new(parameters, model);
        let _guard = tch::no_grad_guard();
        let layout = Layout { positions: Some(&positions), mask: Some(&mask) };
        let real = there.unsqueeze(2).to_kind(Kind::Float);
        let expected = task.model().forward(&tokens, layout, false) * &real;
        let files = traced(LanguageModelling::script_parts(&task)?.unwrap(), task.parameters())?;
        let [(step, examples)] = &files[..] else { panic!("not one file") };
        let mut past = examples[2].narrow(4, 0, 0).narrow(2, 0, 1).expand([-1, -1, 3, -1, -1, -1], false);
        let mut scores = Vec::new();
        let mut from = 0;
        for count in [3, 1, 1, 2] {
            let seen = there.narrow(1, 0, from + count).to_kind(Kind::Int64);
            let [new, all] = two(step, &[&tokens.narrow(1, from, count), &seen, &past]);
            scores.push(new);
            past = all;
            from += count;
        }
        assert!(difference(&(Tensor::cat(&scores, 1) * &real), &expected) < 1e-5, "{what}");
    }
    Ok(())
}
