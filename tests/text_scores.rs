//! BLEU, chrF, TER and ROUGE against sacreBLEU and rouge-score.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tch_suite::scoring::{bleu, chrf, rouge, ter};

use crate::support::data;

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_scores.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// The hypotheses with as many references each as the case has.
fn pairs<'a>(fixture: &'a Value, case: &Value) -> Vec<(&'a str, Vec<&'a str>)> {
    let count = case["references"].as_u64().unwrap() as usize;
    let references =
        fixture["references"].as_array().unwrap().iter().map(|texts| strings(texts)[..count].to_vec());
    strings(&fixture["hypotheses"]).into_iter().zip(references).collect()
}

fn assert_close(ours: f64, theirs: &Value, what: impl std::fmt::Debug) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() < 1e-9, "{what:?}: {ours}, the reference {theirs}");
}

#[test]
fn bleu_equals_sacrebleu() {
    let fixture = fixture();
    for case in fixture["bleu"].as_array().unwrap() {
        let settings = bleu::Settings {
            lowercase: case["lowercase"].as_bool().unwrap(),
            tokenize: serde_json::from_value(case["tokenize"].clone()).unwrap(),
            smoothing: serde_json::from_value(case["smoothing"].clone()).unwrap(),
            effective_order: false,
        };
        let mut corpus = bleu::Bleu::new(settings);
        for (hypothesis, references) in pairs(&fixture, case) {
            corpus.add(hypothesis, &references);
        }
        assert_close(corpus.score().score, &case["score"], settings);
        assert_eq!(corpus.signature(), case["signature"]);
    }
    for (smoothing, scores) in fixture["sentence_bleu"].as_object().unwrap() {
        let smoothing = serde_json::from_value(smoothing.as_str().into()).unwrap();
        let pairs = pairs(&fixture, &serde_json::json!({"references": 1}));
        for ((hypothesis, references), score) in pairs.iter().zip(scores.as_array().unwrap()) {
            let settings = bleu::Settings { smoothing, effective_order: true, ..Default::default() };
            let mut sentence = bleu::Bleu::new(settings);
            sentence.add(hypothesis, references);
            assert_close(sentence.score().score, score, hypothesis);
        }
    }
}

#[test]
fn chrf_equals_sacrebleu() {
    let fixture = fixture();
    for case in fixture["chrf"].as_array().unwrap() {
        let settings = chrf::Settings {
            word_order: case["word_order"].as_u64().unwrap() as usize,
            whitespace: case["whitespace"].as_bool().unwrap(),
            lowercase: case["lowercase"].as_bool().unwrap(),
            ..Default::default()
        };
        let mut corpus = chrf::Chrf::new(settings);
        for (hypothesis, references) in pairs(&fixture, case) {
            corpus.add(hypothesis, &references);
        }
        assert_close(corpus.score(), &case["score"], settings);
        assert_eq!(corpus.signature(), case["signature"]);
    }
}

#[test]
fn ter_equals_sacrebleu() {
    let fixture = fixture();
    for case in fixture["ter"].as_array().unwrap() {
        let settings = ter::Settings {
            normalized: case["normalized"].as_bool().unwrap(),
            no_punctuation: case["no_punctuation"].as_bool().unwrap(),
            case_sensitive: case["case_sensitive"].as_bool().unwrap(),
        };
        let mut corpus = ter::Ter::new(settings);
        for (hypothesis, references) in pairs(&fixture, case) {
            corpus.add(hypothesis, &references);
        }
        assert_close(corpus.score(), &case["score"], settings);
        assert_eq!(corpus.signature(), case["signature"]);
    }
    let pairs = pairs(&fixture, &serde_json::json!({"references": 1}));
    for ((hypothesis, references), score) in pairs.iter().zip(fixture["sentence_ter"].as_array().unwrap()) {
        let mut sentence = ter::Ter::new(ter::Settings::default());
        sentence.add(hypothesis, references);
        assert_close(sentence.score(), score, hypothesis);
    }
}

#[test]
fn rouge_equals_rouge_score() {
    let fixture = fixture();
    let pairs = pairs(&fixture, &serde_json::json!({"references": 1}));
    for ((hypothesis, references), scores) in pairs.iter().zip(fixture["rouge"].as_array().unwrap()) {
        let mut text = rouge::Rouge::default();
        text.add(hypothesis, references[0]);
        let ours = serde_json::to_value(text.score()).unwrap();
        for kind in ["rouge1", "rouge2", "rougeL", "rougeLsum"] {
            assert_close(ours[kind].as_f64().unwrap(), &scores[kind], (kind, hypothesis));
        }
    }
}

#[test]
fn multi30k_scores_equal_sacrebleus() {
    let (Some(expected), Some(references)) = (data("parity/bleu.json"), data("multi30k/test_2016_flickr.en"))
    else {
        return;
    };
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let hypotheses = read(&expected.with_file_name("bleu_hyps.txt"));
    let (references, expected) = (read(&references), read(&expected));
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let pairs: Vec<_> = hypotheses.lines().zip(references.lines()).collect();
    assert_eq!(pairs.len(), 1000);
    for case in expected["corpus_bleu"].as_array().unwrap() {
        let setting = |name: &str| case["settings"].get(name).cloned();
        let smoothing = setting("smooth_method").map(|value| serde_json::from_value(value).unwrap());
        let tokenize = setting("tokenize").map(|value| serde_json::from_value(value).unwrap());
        let mut corpus = bleu::Bleu::new(bleu::Settings {
            lowercase: setting("lowercase").is_some(),
            tokenize: tokenize.unwrap_or_default(),
            smoothing: smoothing.unwrap_or_default(),
            effective_order: false,
        });
        pairs.iter().for_each(|(hypothesis, reference)| corpus.add(hypothesis, &[reference]));
        let score = corpus.score();
        assert_close(score.score, &case["score"], &case["settings"]);
        assert_close(score.brevity_penalty, &case["bp"], &case["settings"]);
        assert_eq!(corpus.signature(), case["signature"]);
    }
    let mut two = bleu::Bleu::default();
    pairs
        .iter()
        .for_each(|(hypothesis, reference)| two.add(hypothesis, &[reference, &reference.to_lowercase()]));
    assert_close(two.score().score, &expected["two_references"]["score"], "two references");
    let mut chrf = chrf::Chrf::new(chrf::Settings::default());
    pairs.iter().for_each(|(hypothesis, reference)| chrf.add(hypothesis, &[reference]));
    assert_close(chrf.score(), &expected["chrf"]["score"], "chrF");
    let mut ter = ter::Ter::default();
    pairs[..200].iter().for_each(|(hypothesis, reference)| ter.add(hypothesis, &[reference]));
    assert_close(ter.score(), &expected["ter_first_200"]["score"], "TER");
}
