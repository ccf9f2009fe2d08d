//! `transformer` as a translator and as a language model: from training to texts, and what is wrong with its input.

use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::support::Scratch;
use crate::support::process::{
    Finished, assert_refused, run, run_with_input, start, transformer, wait_until,
};
use crate::support::runs::{assert_same_files, checkpoints, metrics, read_json, results, tensors};

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
    let scripts = place.text("scripts");
    done(run(&mut transformer(["export", &run_folder, "--format", "torchscript", "--out", &scripts])));
    for part in ["encoder", "decoder"] {
        assert!(tch::CModule::load(format!("{scripts}/{part}.pt")).is_ok(), "{part}");
    }
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
fn a_mean_of_checkpoints_is_the_mean_of_their_weights() {
    let place = Place(Scratch::new());
    let (data, recipe) = (place.aligned(), place.translation_recipe(json!({})));
    let saving = ["--recipe", &recipe, "--data", &data, "--steps", "23", "--save-every", "5", "--keep", "3"];
    done(place.train("run", &[&saving[..], &["--set", "training.eval_every=1000"]].concat()));
    let folder = place.text("run");
    let export = |count: usize| {
        let out = place.text(&format!("mean-{count}.safetensors"));
        let checkpoint = format!("average:{count}");
        let arguments =
            ["export", &folder, "--format", "safetensors", "--checkpoint", &checkpoint, "--out", &out];
        done(run(&mut transformer(arguments)));
        tch_suite::weights::read_safetensors(out.as_ref()).unwrap()
    };
    let kept: Vec<_> =
        [15, 20, 23].map(|step| tensors(&place.0.join("run"), &format!("step-{step}"), "model")).into();
    for count in [1, 2, 3] {
        let mean = export(count);
        let newest = &kept[3 - count..];
        assert_eq!(mean.len(), newest[0].len());
        for (name, found) in mean {
            let sum: Tensor = newest.iter().map(|one| one[&name].to_kind(Kind::Double)).sum();
            let expected = (sum / count as f64).to_kind(Kind::Float);
            assert!(found == expected, "{name} of {count}");
        }
    }
    let lines = "two\n";
    let arguments = ["translate", &folder, "--checkpoint", "average:2"];
    assert_eq!(done(run_with_input(&mut transformer(arguments), lines)).lines().count(), 1);
    let told = done(run(&mut transformer(["eval", &folder, "--checkpoint", "average:2"])));
    assert!(told.contains("20, 23"), "{told}");
    for (checkpoint, words) in
        [("average:4", &["has 3 checkpoints", "--keep 4"][..]), ("average:0", &["average:5"])]
    {
        let refused = run(&mut transformer(["eval", &folder, "--checkpoint", checkpoint]));
        assert_refused(&refused, 2, words);
    }
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
        let script = place.text(&format!("{name}.pt"));
        done(run(&mut transformer(["export", &folder, "--format", "torchscript", "--out", &script])));
        assert!(tch::CModule::load(&script).is_ok());
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

/// A recipe for the layers of `model` that lasts some seconds, and a text for it.
fn small_language_model(place: &Place, model: &Value, training: Value) -> [String; 2] {
    let text = "the cat sat on the mat. the dog sat on the log.\n".repeat(40);
    let mut recipe = json!({
        "name": "small", "model": {"task": "lm", "config": model},
        "data": {"tokenizer": {"kind": "characters"}, "block": 32},
        "training": {"steps": 60, "batch_size": 8, "threads": 1, "eval_every": 30, "log_every": 1,
                     "optimizer": {"name": "adamw", "lr": 0.01}, "clip_norm": 1.0},
    });
    for (key, value) in training.as_object().unwrap() {
        recipe["training"][key] = value.clone();
    }
    [place.write("small.json", &recipe.to_string()), place.write("small.txt", &text)]
}

fn small_models() -> [(&'static str, Value); 2] {
    let gpt2 = json!({"model_type": "gpt2", "vocab_size": 0, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2,
                      "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1});
    let llama = json!({"model_type": "llama", "vocab_size": 0, "hidden_size": 32, "intermediate_size": 48,
                       "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                       "max_position_embeddings": 64, "attention_dropout": 0.1});
    [("gpt2", gpt2), ("llama", llama)]
}

#[test]
fn recomputed_layers_of_a_language_model_change_nothing() {
    for (name, model) in small_models() {
        let place = Place(Scratch::new());
        let [recipe, data] = small_language_model(&place, &model, json!({"steps": 12}));
        let arguments = ["--recipe", &recipe, "--data", &data];
        done(place.train("kept", &arguments));
        done(place.train("again", &[&arguments[..], &["--gradient-checkpointing"]].concat()));
        let [kept, again] = ["kept", "again"].map(|run| place.0.join(run));
        assert_same_files(&checkpoints(&again), &checkpoints(&kept), name);
        assert_eq!(results(&again), results(&kept), "{name}");
    }
}

#[test]
fn a_killed_language_model_ends_as_if_nothing_had_happened() {
    let settings = [
        json!({"steps": 120, "save_every": 7}),
        json!({"steps": 90, "save_every": 5, "precision": "bf16", "accumulate": 2, "keep": 2, "ema": 0.9}),
    ];
    for ((name, model), settings) in small_models().into_iter().zip(settings) {
        let place = Place(Scratch::new());
        let [recipe, data] = small_language_model(&place, &model, settings);
        done(place.train("whole", &["--recipe", &recipe, "--data", &data]));
        let [whole, killed] = ["whole", "killed"].map(|run| place.0.join(run));
        let out = killed.display().to_string();
        let mut arguments = vec!["train", "--quiet", "--recipe", &recipe, "--data", &data, "--out", &out];
        for (killed_before, kill_after) in [3, 30, 60].into_iter().enumerate() {
            let mut child = start(&mut transformer(&arguments));
            if !wait_until(&mut child, || metrics(&killed).len() >= kill_after) {
                // A busy machine may look away from its last steps, but not from all of them.
                assert!(killed_before > 0, "it ended before");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            if killed.join("recipe.json").exists() {
                arguments = vec!["train", "--quiet", "--resume", &out];
            }
        }
        done(run(&mut transformer(&arguments)));
        assert_same_files(&checkpoints(&killed), &checkpoints(&whole), name);
        assert_eq!(results(&killed), results(&whole), "{name}");
    }
}

#[test]
fn adapters_of_language_models_learn_are_merged_and_leave_in_pefts_form() {
    for (name, model) in small_models() {
        let place = Place(Scratch::new());
        let [recipe, data] = small_language_model(&place, &model, json!({}));
        done(place.train("base", &["--recipe", &recipe, "--data", &data]));
        let base = place.text("base-hf");
        done(run(&mut transformer(["export", &place.text("base"), "--format", "hf", "--out", &base])));
        let other = place.write("other.txt", &"the dog ate the cat. the cat ate the dog.\n".repeat(40));
        let arguments = ["--task", "lm", "--init-from", &base, "--data", &other, "--lora-rank", "4"];
        let more = [
            "--steps",
            "40",
            "--lr",
            "0.02",
            "--threads",
            "1",
            "--batch-size",
            "8",
            "--set",
            "data.block=32",
        ];
        done(place.train("lora", &[&arguments[..], &more].concat()));
        let run_folder = place.text("lora");
        let trained = tensors(&place.0.join("lora"), "last", "model");
        let before =
            tch_suite::weights::read_safetensors(format!("{base}/model.safetensors").as_ref()).unwrap();
        let adapters: Vec<&String> = trained.keys().filter(|name| name.contains(".lora_")).collect();
        assert_eq!(trained.len(), before.len() + adapters.len());
        assert!(before.iter().all(|(key, tensor)| trained[key] == *tensor), "{name}: the base has changed");
        let (merged, alone) = (place.text("merged"), place.text("adapters"));
        done(run(&mut transformer(["export", &run_folder, "--format", "hf", "--out", &merged])));
        done(run(&mut transformer(["export", &run_folder, "--format", "peft", "--out", &alone])));
        let config = read_json(&place.0.join("adapters/adapter_config.json"));
        assert_eq!((&config["task_type"], &config["r"]), (&json!("CAUSAL_LM"), &json!(4)));
        assert_eq!(config["fan_in_fan_out"], json!(name == "gpt2"));
        let saved =
            tch_suite::weights::read_safetensors(format!("{alone}/adapter_model.safetensors").as_ref())
                .unwrap();
        assert_eq!(saved.len(), adapters.len());
        let layer = match name {
            "gpt2" => "transformer.h.0.attn.c_attn",
            _ => "model.layers.0.self_attn.q_proj",
        };
        assert!(saved.contains_key(&format!("base_model.model.{layer}.lora_A.weight")), "{name}");
        // Merged or beside the layers, the function is the same, and not that of the base.
        let likelihood = |model: &str| {
            let arguments = ["score", model, &other, "--format", "json", "--set", "data.block=32"];
            let scored = done(run(&mut transformer(arguments)));
            serde_json::from_str::<Value>(&scored).unwrap()["loss"].as_f64().unwrap()
        };
        let (beside, inside, without) = (likelihood(&run_folder), likelihood(&merged), likelihood(&base));
        assert!((beside - inside).abs() < 1e-5, "{name}: {beside} and {inside}");
        assert!(beside < without - 0.2, "{name}: {beside}, {without} before");
    }
}
