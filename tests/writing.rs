//! `transformer` as a translator and as a language model: from training to texts, and what is wrong with its input.

use serde_json::{Value, json};

use crate::support::Scratch;
use crate::support::process::{Finished, assert_refused, run, run_with_input, transformer};
use crate::support::runs::read_json;

const DIGITS: [(&str, &str); 6] = [
    ("one", "eins"),
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
];

/// Pairs of digits in two languages; `part` makes other pairs.
fn pairs(count: usize, part: usize) -> (String, String) {
    let line = |number: usize, side: fn((&'static str, &'static str)) -> &'static str| {
        let mut state = number * 7919 + part * 104_729 + 1;
        let words = (0..1 + (number + part) % 4).map(|_| {
            state = (state * 1_103_515_245 + 12_345) % (1 << 31);
            side(DIGITS[(state >> 16) % DIGITS.len()])
        });
        words.collect::<Vec<_>>().join(" ") + "\n"
    };
    (
        (0..count).map(|number| line(number, |pair| pair.0)).collect(),
        (0..count).map(|number| line(number, |pair| pair.1)).collect(),
    )
}

struct Place(Scratch);

impl Place {
    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn text(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// A folder with aligned files.
    fn aligned(&self) -> String {
        for (name, count, part) in [("train", 800, 0), ("val", 20, 1), ("test", 20, 2)] {
            let (source, target) = pairs(count, part);
            self.write(&format!("pairs/{name}.en"), &source);
            self.write(&format!("pairs/{name}.de"), &target);
        }
        self.text("pairs")
    }

    fn translation_recipe(&self, data: Value) -> String {
        let mut recipe = json!({
            "name": "digits",
            "model": {"task": "translate", "search": {"beam": 1, "max_length": 12}, "config": {
                "model_type": "transformer", "d_model": 32, "nhead": 4, "num_encoder_layers": 1, "num_decoder_layers": 1,
                "dim_feedforward": 48, "dropout": 0.0, "max_length": 16, "norm_first": true,
            }},
            "data": {"source": "en", "target": "de", "max_length": 16,
                     "tokenizer": {"kind": "bpe", "vocab_size": 300}},
            "training": {
                "epochs": 16, "batch_size": 12, "eval_batch_size": 20, "threads": 1, "label_smoothing": 0.05,
                "optimizer": {"name": "adam", "lr": 0.003, "betas": [0.9, 0.98]}, "schedule": {"name": "linear"},
                "warmup": 20, "clip_norm": 1.0, "metric": "bleu",
            },
        });
        for (key, value) in data.as_object().unwrap() {
            recipe["data"][key] = value.clone();
        }
        self.write("translate.json", &recipe.to_string())
    }

    fn train(&self, name: &str, arguments: &[&str]) -> Finished {
        let out = self.text(name);
        run(&mut transformer(["train", "--quiet", "--out", &out].iter().chain(arguments)))
    }
}

fn done(finished: Finished) -> String {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout
}

#[test]
fn a_translator_learns_digits_and_keeps_lines() {
    let place = Place(Scratch::new());
    let (data, recipe) = (place.aligned(), place.translation_recipe(json!({"batch_tokens": 64})));
    done(place.train("run", &["--recipe", &recipe, "--data", &data]));
    let run_folder = place.text("run");
    let summary = read_json(&place.0.join("run/summary.json"));
    assert!(summary["test"]["bleu"].as_f64().unwrap() > 90.0, "{summary}");
    let told = done(run(&mut transformer(["eval", &run_folder, "--set", "model.search.beam=3"])));
    assert!(told.contains("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0 = "), "{told}");

    let lines = "three two\n\none\nsix five four\n";
    let translated = done(run_with_input(&mut transformer(["translate", &run_folder, "--beam", "4"]), lines));
    assert_eq!(translated, "drei zwei\n\neins\nsechs fünf vier\n");
    let found = done(run_with_input(
        &mut transformer(["translate", &run_folder, "--n-best", "2", "--format", "jsonl", "--align"]),
        "two six\n",
    ));
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["text"], "zwei sechs");
    assert_eq!(found["candidates"].as_array().unwrap().len(), 2);
    assert!(found["candidates"][0]["score"].as_f64() >= found["candidates"][1]["score"].as_f64());
    assert!(!found["alignment"].as_array().unwrap().is_empty());
    // The same seed draws the same text.
    let drawn = || {
        let arguments = ["translate", &run_folder, "--sample", "--temperature", "2.0", "--seed", "5"];
        done(run_with_input(&mut transformer(arguments), "one two three\n"))
    };
    assert_eq!(drawn(), drawn());

    // A run that is continued is one that was never interrupted.
    done(place.train("whole", &["--recipe", &recipe, "--data", &data, "--epochs", "2"]));
    done(place.train("part", &["--recipe", &recipe, "--data", &data, "--epochs", "2", "--steps", "9"]));
    let part = place.text("part");
    let resumed =
        run(&mut transformer(["train", "--quiet", "--resume", &part, "--steps", &results_steps(&place)]));
    done(resumed);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes =
            |name: &str| std::fs::read(place.0.join(name).join("checkpoints/last").join(file)).unwrap();
        assert!(bytes("whole") == bytes("part"), "{file}");
    }
}

/// The steps that the uninterrupted run took.
fn results_steps(place: &Place) -> String {
    let state = read_json(&place.0.join("whole/checkpoints/last/state.json"));
    state["progress"]["step"].as_u64().or(state["step"].as_u64()).unwrap().to_string()
}

#[test]
fn what_is_wrong_with_pairs_is_told() {
    let place = Place(Scratch::new());
    let recipe = place.translation_recipe(json!({}));
    let refused = |data: &str, words: &[&str]| {
        let finished = place.train("refused", &["--recipe", &recipe, "--data", data]);
        assert_refused(&finished, 2, words);
    };
    place.write("short/train.en", "one\ntwo\nthree\n");
    place.write("short/train.de", "eins\nzwei\n");
    refused(&place.text("short"), &["train.en has 3 lines", "line 3"]);
    place.write("empty/train.en", "one\n \nthree\n");
    place.write("empty/train.de", "eins\nzwei\ndrei\n");
    refused(&place.text("empty"), &["train.en, line 2", "the source is empty"]);
    place.write("lonely/train.en", "one\n");
    refused(&place.text("lonely"), &["train.de", "missing"]);
    refused(&place.text("nowhere"), &["nowhere"]);
    let path = place.0.join("bytes/train.en");
    place.write("bytes/train.de", "eins\nzwei\n");
    std::fs::write(path, b"one\ntw\xffo\n").unwrap();
    refused(&place.text("bytes"), &["train.en", "line 2", "UTF-8"]);
}

#[test]
fn a_language_model_learns_writes_scores_and_is_exported() {
    let place = Place(Scratch::new());
    let text = "the cat sat on the mat. the dog sat on the log.\n".repeat(60);
    let data = place.write("text.txt", &text);
    let recipe = |model: Value| {
        place.write(
            "lm.json",
            &json!({
                "name": "small", "model": {"task": "lm", "config": model},
                "data": {"tokenizer": {"kind": "characters"}, "block": 32},
                "training": {"steps": 400, "batch_size": 16, "threads": 1, "eval_every": 200,
                             "optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "linear"},
                             "warmup": 20, "clip_norm": 1.0},
            })
            .to_string(),
        )
    };
    let gpt2 = json!({"model_type": "gpt2", "vocab_size": 0, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2,
                      "resid_pdrop": 0.1, "embd_pdrop": 0.0, "attn_pdrop": 0.0});
    let llama = json!({"model_type": "llama", "vocab_size": 0, "hidden_size": 32, "intermediate_size": 48,
                       "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
                       "max_position_embeddings": 64});
    for (name, model) in [("gpt2", gpt2), ("llama", llama)] {
        done(place.train(name, &["--recipe", &recipe(model), "--data", &data]));
        let folder = place.text(name);
        let summary = read_json(&place.0.join(name).join("summary.json"));
        let loss = summary["best"]["loss"].as_f64().unwrap();
        assert!(loss < 0.5, "{name}: {loss}");
        assert!((summary["best"]["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-6);
        let arguments = ["generate", &folder, "--prompt", "the cat ", "--temperature", "0", "--length", "12"];
        assert_eq!(done(run(&mut transformer(arguments))), "the cat sat on the m\n");
        let prompts = place.write("prompts.txt", "the dog\ncat sat on\n");
        let arguments = ["generate", &folder, "--prompts", &prompts, "--temperature", "0", "--length", "8"];
        let written: Vec<Value> = done(run(&mut transformer(arguments)))
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!([&written[0]["text"], &written[1]["text"]], [" sat on ", " the mat"]);
        let scored = done(run(&mut transformer(["score", &folder, &data, "--format", "json"])));
        let scored: Value = serde_json::from_str(&scored).unwrap();
        assert_eq!(scored["tokens"].as_u64().unwrap() as usize, text.len() - 1);
        assert!(scored["loss"].as_f64().unwrap() < 0.5, "{scored}");
        // The exported folder is a model that stands wherever a run does.
        let exported = place.text(&format!("{name}-hf"));
        done(run(&mut transformer(["export", &folder, "--format", "hf", "--out", &exported])));
        let arguments =
            ["generate", &exported, "--prompt", "the cat ", "--temperature", "0", "--length", "12"];
        assert_eq!(done(run(&mut transformer(arguments))), "the cat sat on the m\n");
        let long = "the cat ".repeat(20);
        let refused = run(&mut transformer(["generate", &folder, "--prompt", &long]));
        assert_refused(&refused, 2, &["160 tokens", "64"]);
    }
}

#[test]
fn answers_are_learned_from_conversations() {
    let place = Place(Scratch::new());
    let rows: String = (0..80)
        .map(|number| {
            let (english, german) = DIGITS[number % DIGITS.len()];
            json!({"prompt": format!("{english}?"), "completion": german}).to_string() + "\n"
        })
        .collect();
    let data = place.write("chats.jsonl", &rows);
    let recipe = place.write(
        "chat.json",
        &json!({
            "name": "chat",
            "model": {"task": "lm", "config": {"model_type": "gpt2", "vocab_size": 0, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}},
            "data": {"tokenizer": {"kind": "bpe", "vocab_size": 300}, "block": 64, "pack": true},
            "training": {"epochs": 40, "batch_size": 4, "threads": 1, "optimizer": {"name": "adamw", "lr": 0.005}, "warmup": 10},
        })
        .to_string(),
    );
    done(place.train("run", &["--recipe", &recipe, "--data", &data]));
    let folder = place.text("run");
    let arguments =
        ["generate", &folder, "--chat", "--prompt", "three?", "--temperature", "0", "--length", "10"];
    assert_eq!(done(run(&mut transformer(arguments))).trim(), "drei");
    let wrong =
        place.write("wrong.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"\n");
    assert_refused(
        &place.train("refused", &["--recipe", &recipe, "--data", &wrong]),
        2,
        &["wrong.jsonl, line 2"],
    );
}
