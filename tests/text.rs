//! The text layer against Python's, and on real files.

use std::path::Path;

use anyhow::Result;
use tch_suite::data::order::Sampler;
use tch_suite::data::text::*;
use tch_suite::recipe::Attachments;

use crate::support::{data, fixture};

#[test]
fn bert_s_tokenizer_does_what_transformers_does() -> Result<()> {
    let (Some(cases), Some(folder)) =
        (data("parity/bert_tokenizer_cases.json"), data("pretrained/minilm-l6-h384"))
    else {
        return Ok(());
    };
    let cases: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(cases)?)?;
    assert_eq!(cases.len(), 13);
    // tokenizer.json asks for padding and truncation, which are left out; vocab.txt says the same in BERT's own form.
    for path in [folder.clone(), folder.join("tokenizer.json"), folder.join("vocab.txt")] {
        let tokenizer = TextTokenizer::open(&path)?;
        let special = tokenizer.special();
        assert_eq!((special.pad, special.unknown, special.class), (Some(0), Some(100), Some(101)));
        assert_eq!(
            (special.separator, special.mask, tokenizer.vocabulary_size()),
            (Some(102), Some(103), 30_522)
        );
        let options = EncodeOptions { special_tokens: true, max_length: None };
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            let pair = case["pair"].as_str();
            let input = TextInput { first: text, second: pair };
            let encoded = tokenizer.encode_all(&[input], options)?;
            let key = if pair.is_some() { "input_ids" } else { "ids" };
            let expected: Vec<i64> = serde_json::from_value(case[key].clone())?;
            assert_eq!(encoded.ids(0), expected, "{}: {text:?}", path.display());
            if pair.is_some() {
                let types: Vec<i64> = serde_json::from_value(case["token_type_ids"].clone())?;
                let second = encoded.second_from(0);
                let found: Vec<i64> = (0..types.len()).map(|place| i64::from(place >= second)).collect();
                assert_eq!(found, types);
            }
        }
    }
    Ok(())
}

#[test]
fn sst2_is_read_whole_and_batched_with_little_padding() -> Result<()> {
    let Some(path) = data("sst2/train.tsv") else { return Ok(()) };
    let table = read_rows(&path, &TextForm::default(), &["sentence", "label"])?;
    assert_eq!(table.rows.len(), 67_349, "a quote does not swallow lines");
    let labels = LabelSet::collect(table.rows.iter().map(|row| row.text(1)))?;
    assert_eq!(labels.names(), ["0", "1"]);
    assert_eq!(labels.numbers_of(&table, 1)?.iter().sum::<i64>(), 37_569);
    let config = TokenizerConfig {
        kind: TokenizerKind::Words,
        split: WordSplit::Space,
        vocab_size: 20_000,
        ..Default::default()
    };
    let tokenizer = TextTokenizer::train(&config, table.rows.iter().map(|row| row.text(0)))?;
    let inputs: Vec<TextInput<'_>> = table.rows.iter().map(|row| TextInput::single(row.text(0))).collect();
    let encoded = tokenizer.encode_all(&inputs, EncodeOptions::default())?;
    let lengths = encoded.lengths();
    let buckets = LengthBuckets { lengths: lengths.clone(), batch_size: 64, seed: 1, shuffled: true };
    let share = padding_share(&buckets.plan(0)?, &lengths);
    assert!(share < 0.1, "{share}");
    Ok(())
}

#[test]
fn a_hugging_face_folder_without_tokenizer_json_is_read() -> Result<()> {
    let scratch = crate::support::Scratch::new();
    // GPT-2's form: two letters are joined.
    std::fs::write(scratch.join("vocab.json"), r#"{"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<|endoftext|>": 4}"#)?;
    std::fs::write(scratch.join("merges.txt"), "#version: 0.2\na b\n")?;
    std::fs::write(
        scratch.join("special_tokens_map.json"),
        r#"{"eos_token": {"content": "<|endoftext|>"}}"#,
    )?;
    let tokenizer = TextTokenizer::open(&scratch)?;
    assert_eq!(tokenizer.encode("ab a<|endoftext|>")?, [2, 3, 0, 4]);
    assert_eq!(tokenizer.special().end, Some(4));
    assert_eq!(tokenizer.decode(&[2, 3, 0], true)?, "ab a");
    let nothing = TextTokenizer::open(Path::new("missing")).unwrap_err().to_string();
    assert!(nothing.contains("missing does not exist"), "{nothing}");
    Ok(())
}

#[test]
fn a_run_knows_the_special_tokens_that_its_folder_named() -> Result<()> {
    let folder = crate::support::Scratch::new();
    let vocabulary = r#"{"[PAD]": 0, "start": 1, "stop": 2, "word": 3, "</s>": 4}"#;
    std::fs::write(
        folder.join("tokenizer.json"),
        format!(
            r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {{"type": "Whitespace"}},
                "model": {{"type": "WordLevel", "vocab": {vocabulary}, "unk_token": "[PAD]"}}}}"#
        ),
    )?;
    let named = r#"{"bos_token": "start", "eos_token": {"content": "stop"}}"#;
    std::fs::write(folder.join("tokenizer_config.json"), named)?;
    let opened = TextTokenizer::open(&folder)?;
    assert_eq!((opened.special().begin, opened.special().end), (Some(1), Some(2)));
    let mut attachments = Attachments::default();
    opened.attach(&mut attachments, TOKENIZER_FILE)?;
    let again = TextTokenizer::attached(&attachments, TOKENIZER_FILE)?.expect("it was attached");
    assert_eq!(again.special(), opened.special());
    Ok(())
}

#[test]
fn sentencepiece_models_are_read_as_sentencepiece_reads_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentencepiece");
    // Made by scripts/references/sentencepiece_models.py.
    let cases = fixture("sentencepiece/cases.json");
    let mut compared = 0;
    let mut check = |tokenizer: &TextTokenizer, name: &str, unknown: i64| {
        for case in cases[name].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<i64> = serde_json::from_value(case["tokens"].clone()).unwrap();
            // Marks of Hugging Face's tokenizers are found in texts, which the package does not know.
            if text.contains("</s>") || text.contains("<extra_id_0>") {
                continue;
            }
            let found = tokenizer.encode(text).unwrap();
            let written = |tokens: &[i64]| tokens.iter().map(|&id| tokenizer.token(id)).collect::<Vec<_>>();
            assert_eq!(
                found,
                expected,
                "{name}: {text:?}: {:?}, not {:?}",
                written(&found),
                written(&expected)
            );
            if let Some(decoded) = case["decoded"].as_str().filter(|_| !expected.contains(&unknown)) {
                assert_eq!(tokenizer.decode(&expected, false).unwrap(), decoded, "{name}: {text:?}");
            }
            compared += 1;
        }
    };
    let (source, target) = marian_tokenizers(&folder.join("marian")).unwrap().unwrap();
    check(&source, "marian source", 1);
    check(&target, "marian target", 1);
    let t5 = TextTokenizer::open(&folder.join("t5")).unwrap();
    check(&t5, "t5", 2);
    let pieces = cases["t5 size"].as_i64().unwrap();
    assert_eq!(t5.vocabulary_size() as i64, pieces + 100);
    assert_eq!((t5.id("<extra_id_99>"), t5.id("<extra_id_0>")), (Some(pieces), Some(pieces + 99)));
    assert_eq!((t5.special().pad, t5.special().end, t5.special().unknown), (Some(0), Some(1), Some(2)));
    let llama = TextTokenizer::open(&folder.join("llama")).unwrap();
    check(&llama, "llama", 0);
    assert_eq!(llama.vocabulary_size() as i64, cases["llama size"].as_i64().unwrap());
    assert!(compared > 50, "{compared}");
}
