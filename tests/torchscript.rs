//! The program `torchscript`, and modules as networks of the suite.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};
use tch_suite::native::script::{ScriptModule, Value, optimise_graphs};
use tch_suite::weights::{NamedTensors, read_safetensors, write_safetensors};

use crate::support::process::{assert_refused, run, torchscript};
use crate::support::runs::read_json;
use crate::support::{Scratch, assert_close, data, exclusive_generator, numbers, small_data};

fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    folder.join(name).display().to_string()
}

fn stdout(arguments: &[&str]) -> String {
    let finished = run(&mut torchscript(arguments));
    assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
    finished.stdout
}

fn refuses(arguments: &[&str], words: &[&str]) {
    assert_refused(&run(&mut torchscript(arguments)), 2, words);
}

#[test]
fn info_tells_methods_parameters_operators_and_whether_it_trains() {
    let module = fixture("torchscript/classifier.pt");
    let found: Json = serde_json::from_str(&stdout(&["info", &module, "--format", "json"])).unwrap();
    assert_eq!(found["class"], "__torch__.Classifier");
    assert_eq!(found["methods"][0]["name"], "forward");
    assert_eq!(found["methods"][0]["signature"], "(x: Tensor) -> Tuple[Tensor, Tensor]");
    assert_eq!(found["methods"][1]["name"], "features");
    let names = |key: &str| -> Vec<String> {
        let rows = found[key].as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        names("parameters"),
        ["body.0.bias", "body.0.weight", "body.1.bias", "body.1.weight", "fc.bias", "fc.weight"]
    );
    assert_eq!(names("buffers"), ["body.1.num_batches_tracked", "body.1.running_mean", "body.1.running_var"]);
    assert!(found["operators"]["aten::conv2d"].as_u64().unwrap() > 0, "{}", found["operators"]);
    assert_eq!(found["trainable"], true);
    let table = stdout(&["info", &module]);
    assert!(
        table.contains("forward(x: Tensor) -> Tuple[Tensor, Tensor]") && table.contains("trainable   yes")
    );
    assert!(stdout(&["info", &module, "--code", "fc.forward"]).contains("def forward("));
    refuses(
        &["info", &module, "--code", "fc.forwad"],
        &["no method `fc.forwad`", "did you mean `fc.forward`?"],
    );

    let frozen: Json =
        serde_json::from_str(&stdout(&["info", &fixture("torchscript/frozen.pt"), "--format", "json"]))
            .unwrap();
    assert_eq!(frozen["trainable"], false);
    assert!(frozen["training"].as_str().unwrap().contains("frozen"), "{}", frozen["training"]);
    // Weights are told by the common verb.
    assert!(stdout(&["info", &fixture("weights/plain.pth")]).contains("PyTorch pickle"));
}

#[test]
fn values_of_every_kind_go_in_and_come_out() {
    let place = Scratch::new();
    let module = fixture("torchscript/nested.pt");
    let tensors = NamedTensors::from([("a".to_owned(), Tensor::from_slice(&[1f32, 2.0]))]);
    write_safetensors(&place.join("a.safetensors"), &tensors).unwrap();
    let groups = place.join("groups.json");
    std::fs::write(&groups, r#"{"first": [{"@": "a.safetensors#a"}, [[1, 2], [3, 4]]], "second": []}"#)
        .unwrap();
    let groups = format!("groups={}", groups.display());
    let base = ["run", &module, "--input", "x=json:[1.0, 2.5]", "--input", &groups, "--format", "json"];
    let result: Json =
        serde_json::from_str(&stdout(&[&base[..], &["--input", "pair=json:[3, null]"]].concat())).unwrap();
    // 2 x + 3 + 3 + 10
    assert_eq!(result, serde_json::json!({"total": [18.0, 21.0]}));
    let named = ["--input", "pair=json:[3, \"minus\"]", "--input", "scale=json:1"];
    let result: Json = serde_json::from_str(&stdout(&[&base[..], &named].concat())).unwrap();
    assert_eq!(result["minus"], serde_json::json!([-17.0, -18.5]));

    let flags = ["--method", "mixed", "--format", "json", "--input", "json:{\"4\": true, \"5\": false}"];
    let rows = ["--input", "rows=json:[[1, 2.5], [3, 4]]"];
    let result: Json =
        serde_json::from_str(&stdout(&[&["run", &module][..], &flags, &rows].concat())).unwrap();
    assert_eq!(result, serde_json::json!([[[1.0, 2.5], [3.0, 4.0]], [4], "text", null, 10.5]));
}

#[test]
fn what_a_method_does_not_take_is_refused_with_its_signature() {
    let module = fixture("torchscript/nested.pt");
    let x = ["--input", "x=zeros:2"];
    let signature =
        "forward(x: Tensor, groups: Dict[str, List[Tensor]], pair: Tuple[int, Optional[str]], scale: float";
    refuses(&[&["run", &module][..], &x].concat(), &[signature, "the input `groups` is missing"]);
    let groups = [&["run", &module][..], &x, &["--input", "groups=json:{\"a\": 1}"]].concat();
    refuses(&groups, &["the input `groups`[a] should be List[Tensor] but is an integer"]);
    let pair = ["--input", "groups=json:{}", "--input", "pair=json:[1]"];
    refuses(
        &[&["run", &module][..], &x, &pair].concat(),
        &["the input `pair` should have 2 elements but has 1"],
    );
    let ragged = ["run", &module, "--input", "x=json:[[1], [2, 3]]", "--input", "groups=json:{}"];
    refuses(&ragged, &["rows of different lengths"]);
    let more =
        [&x[..], &["--input", "groups=json:{}", "--input", "pair=json:[1, null]", "--input", "y=zeros:1"]];
    refuses(&[&["run", &module][..], &more.concat()].concat(), &["there is no input `y`"]);
    refuses(&["run", &module, "--method", "no"], &["there is no method `no`; the module has forward"]);
    let wrong = ["run", &module, "--method", "fails", "--input", "x=zeros:2x3"];
    refuses(&wrong, &["fails(x: Tensor) -> Tensor", "shape '[7, -1]' is invalid"]);
    refuses(&["run", &module, "--input", "x=nowhere.npy"], &["nowhere.npy does not exist"]);
    refuses(&["run", &fixture("weights/plain.pth")], &["is a pickled state_dict", "torch.jit.script"]);
    refuses(&["run", &fixture("torchscript/unregistered.pt")], &["needs the operator `nowhere::neg`"]);

    let place = Scratch::new();
    let whole = std::fs::read(&module).unwrap();
    let cut = place.join("cut.pt").display().to_string();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refuses(&["run", &cut], &["truncated or damaged"]);
    std::fs::write(&cut, b"text").unwrap();
    refuses(&["info", &cut], &["neither a TorchScript archive nor weights"]);
}

#[test]
fn a_stateful_module_goes_chunk_by_chunk_and_results_are_files() {
    let place = Scratch::new();
    let module = fixture("torchscript/stateful.pt");
    let x = Tensor::arange(14, (Kind::Float, Device::Cpu)).view([2, 7]);
    let input = place.join("x.safetensors");
    write_safetensors(&input, &NamedTensors::from([("x".to_owned(), x.shallow_clone())])).unwrap();
    let input = format!("x={}", input.display());
    let out = place.join("out.safetensors").display().to_string();
    let flags = ["--chunk", "x:1:3", "--reset", "reset", "--out", &out];
    stdout(&[&["run", &module, "--input", &input][..], &flags].concat());
    let found = read_safetensors(Path::new(&out)).unwrap();
    assert!(found["output.0"].equal(&x.cumsum(1, Kind::Float)));
    // Lengths of the chunks are no tensors to join: they are listed.
    let lengths: Vec<f64> = (0..3).map(|chunk| numbers(&found[&format!("output.1.{chunk}")])[0]).collect();
    assert_eq!(lengths, [3.0, 3.0, 1.0]);

    let whole = ["run", &module, "--input", &input, "--check", &out];
    assert!(stdout(&whole).contains("output.0: largest difference 0"));
    let npy = place.join("sums.npy").display().to_string();
    refuses(&["run", &module, "--input", &input, "--out", &npy], &["an NPY file holds one"]);
    let apart = run(&mut torchscript(["run", &module, "--input", "x=ones:2x7", "--check", &out]));
    assert_eq!(apart.code, Some(1));
    assert!(apart.stderr.contains("values of output.0 differ, by up to"), "{}", apart.stderr);
}

#[test]
fn images_become_inputs_and_outputs_agree_with_python() {
    let module = fixture("torchscript/classifier.pt");
    let expected = fixture("torchscript/classifier.safetensors");
    let input = format!("x={expected}#x");
    let printed = stdout(&["run", &module, "--input", &input, "--check", &expected, "--rtol", "1e-5"]);
    assert_eq!(printed.lines().count(), 2, "{printed}");

    let Some(folder) = data("pretrained/efficientnet_lite0") else { return };
    let file = |name: &str| folder.join(name).display().to_string();
    let images = format!("{},{}", file("images/china.jpg"), file("images/flower.jpg"));
    let trace = file("efficientnet_lite0.ts.pt");
    let (tensors, check) = (
        format!("{}#input", file("expected.safetensors")),
        format!("{}#logits", file("expected.safetensors")),
    );
    stdout(&["run", &trace, "--input", &tensors, "--check", &check, "--atol", "1e-4"]);
    // Another decoder of JPEG files rounds otherwise.
    let flags = ["--preprocess", "efficientnet-lite0", "--check", &check, "--atol", "3e-2"];
    stdout(&[&["run", &trace, "--input", &images][..], &flags].concat());
}

/// The three modules of index.json: outputs, gradients, and three steps of SGD.
#[test]
fn scripted_modules_learn_as_in_python() {
    let Some(folder) = data("pretrained/torchscript") else { return };
    let _lock = exclusive_generator();
    optimise_graphs(false);
    let index = read_json(&folder.join("index.json"));
    for (name, module) in index["modules"].as_object().unwrap() {
        let file = |key: &str| -> PathBuf { folder.join(module[key].as_str().unwrap()) };
        let expected = read_safetensors(&file("expected")).unwrap();
        let scripted = ScriptModule::load(&file("file"), Device::Cpu).unwrap();
        let count = module["inputs"].as_array().unwrap().len();
        let forward = |training: bool| -> Tensor {
            scripted.set_training(training).unwrap();
            let inputs = (0..count).map(|place| {
                (Value::Int(place as i64), Value::Tensor(expected[&format!("input.{place}")].shallow_clone()))
            });
            match scripted.call("forward", inputs.collect()).unwrap() {
                Value::Tensor(output) => output,
                Value::Tuple(outputs) => match &outputs[0] {
                    Value::Tensor(output) => output.shallow_clone(),
                    other => panic!("{name}: {other:?}"),
                },
                other => panic!("{name}: {other:?}"),
            }
        };
        let close = |found: &Tensor, key: &str| {
            assert_close(&numbers(found), &numbers(&expected[key]), 1e-5, &format!("{name}: {key}"));
        };
        close(&tch::no_grad(|| forward(false)), "eval_output");
        let parameters = scripted.parameters().unwrap();
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        let listed: Vec<&str> =
            module["parameter_names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(names, listed, "{name}");
        let buffers: Vec<String> = scripted.buffers().unwrap().into_iter().map(|(name, _)| name).collect();
        let listed: Vec<&str> =
            module["buffer_names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(buffers, listed, "{name}");

        let (lr, momentum) =
            (module["sgd"]["lr"].as_f64().unwrap(), module["sgd"]["momentum"].as_f64().unwrap());
        let mut velocity: Vec<Option<Tensor>> = parameters.iter().map(|_| None).collect();
        for (step, loss_of_python) in module["sgd"]["losses"].as_array().unwrap().iter().enumerate() {
            let output = forward(true);
            if step == 0 {
                close(&output, "train_output");
            }
            let loss = output.cross_entropy_for_logits(&expected["target"]);
            assert_close(
                &[loss.double_value(&[])],
                &[loss_of_python.as_f64().unwrap()],
                1e-5,
                &format!("{name}: loss of step {step}"),
            );
            loss.backward();
            let _guard = tch::no_grad_guard();
            for ((parameter, tensor), velocity) in parameters.iter().zip(&mut velocity) {
                let gradient = tensor.grad();
                if step == 0 {
                    for key in [format!("grad_first.{parameter}"), format!("grad_last.{parameter}")] {
                        if expected.contains_key(&key) {
                            close(&gradient, &key);
                        }
                    }
                    let norm = module["grad_norms_step_0"][parameter].as_f64().unwrap();
                    let found = gradient.to_kind(Kind::Double).norm().double_value(&[]);
                    assert!(
                        (found - norm).abs() <= 1e-4 * norm + 1e-6,
                        "{name}: {parameter}: {found}, {norm}"
                    );
                }
                let moved = match velocity.take() {
                    Some(before) => before * momentum + &gradient,
                    None => gradient.copy(),
                };
                let _ = tensor.shallow_clone().f_sub_(&(&moved * lr)).unwrap();
                *velocity = Some(moved);
                let mut gradient = tensor.grad();
                let _ = gradient.zero_();
            }
        }
        close(&tch::no_grad(|| forward(false)), "eval_output_after_3_steps");
    }
}

/// `torchscript train` of the small classifier.
fn train(module: &str, data: &Path, out: &Path, flags: &[&str]) -> crate::support::process::Finished {
    let (data, out) = (data.display().to_string(), out.display().to_string());
    let fixed = ["--quiet", "--threads", "1", "--data", &data, "--out", &out];
    run(&mut torchscript([&["train", module][..], &fixed, flags].concat()))
}

const SHAPED: [&str; 2] = ["--set", "data.mean=[0.3]"];

#[test]
fn a_module_is_fine_tuned_resumed_saved_and_judged() {
    let place = Scratch::new();
    let images = place.join("data");
    small_data::write(&images, 240, 0);
    let module = fixture("torchscript/classifier.pt");
    let flags = [
        &SHAPED[..],
        &["--optimizer", "adam", "--lr", "0.03", "--batch-size", "16", "--schedule", "constant"],
    ]
    .concat();
    let finished = train(&module, &images, &place.join("whole"), &[&flags[..], &["--epochs", "10"]].concat());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let summary = read_json(&place.join("whole/summary.json"));
    assert!(summary["best"]["accuracy"].as_f64().unwrap() > 0.5, "{summary}");

    // Stopped after some steps and continued, in a folder that has moved, it is the same run to the bit.
    let finished = train(&module, &images, &place.join("part"), &[&flags[..], &["--steps", "40"]].concat());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    std::fs::rename(place.join("part"), place.join("moved")).unwrap();
    let moved = place.join("moved").display().to_string();
    stdout(&["train", "--quiet", "--resume", &moved, "--set", "training.steps=null", "--epochs", "10"]);
    let bytes =
        |run: &str| std::fs::read(place.join(run).join("checkpoints/last/model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("moved"), "a resumed run differs");
    let tensors = read_safetensors(&place.join("whole/checkpoints/last/model.safetensors")).unwrap();
    assert!(tensors.contains_key("body.1.running_mean") && tensors.contains_key("fc.weight"));
    assert!(numbers(&tensors["body.1.num_batches_tracked"])[0] > 0.0);

    // The saved module computes what the run's evaluation says.
    let (run_folder, saved) =
        (place.join("whole").display().to_string(), place.join("saved.pt").display().to_string());
    stdout(&["export", &run_folder, "--format", "torchscript", "--out", &saved]);
    let metrics = |arguments: &[&str]| -> Json {
        serde_json::from_str::<Json>(&stdout(&[arguments, &["--format", "json"]].concat())).unwrap()["metrics"].clone()
    };
    let of_run = metrics(&["eval", &run_folder, "--split", "validation"]);
    let data = images.display().to_string();
    let of_file = metrics(
        &[
            &["eval", &saved, "--data", &data, "--split", "validation", "--set", "data.val_fraction=0.1"][..],
            &SHAPED,
        ]
        .concat(),
    );
    assert_eq!(of_run["accuracy"], of_file["accuracy"]);
    let loss = |metrics: &Json| metrics["loss"].as_f64().unwrap();
    assert!((loss(&of_run) - loss(&of_file)).abs() < 1e-6);

    // What cannot learn says so; a head on it can.
    let frozen = fixture("torchscript/frozen.pt");
    let refused = train(&frozen, &images, &place.join("frozen"), &SHAPED);
    assert_refused(&refused, 2, &["cannot be trained: it is frozen", "--head linear"]);
    assert!(!place.join("frozen").exists());
}

#[test]
fn a_module_is_a_backbone_under_a_new_head() {
    let place = Scratch::new();
    let images = place.join("data");
    small_data::write(&images, 200, 0);
    let (data, out) = (images.display().to_string(), place.join("run").display().to_string());
    let module = fixture("torchscript/classifier.pt");
    let flags = [
        "--init-from",
        &module,
        "--head",
        "linear",
        "--freeze-backbone",
        "--set",
        "model.script.method=features",
    ];
    let fixed = [
        "train",
        "--quiet",
        "--threads",
        "1",
        "--data",
        &data,
        "--out",
        &out,
        "--epochs",
        "3",
        "--lr",
        "0.05",
    ];
    let finished = run(&mut crate::support::process::cnn([&fixed[..], &flags, &SHAPED].concat()));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    // What the recipe averages is what is used afterwards.
    let tensors = read_safetensors(&Path::new(&out).join("checkpoints/last/ema.safetensors")).unwrap();
    assert_eq!(tensors["head.weight"].size()[1], 8);
    // Frozen: as in the file.
    let scripted = ScriptModule::load(Path::new(&module), Device::Cpu).unwrap();
    let before =
        scripted.parameters().unwrap().into_iter().find(|(name, _)| name == "body.0.weight").unwrap().1;
    assert!(tensors["backbone.body.0.weight"].equal(&before));
    // Exported, module and head are one module.
    let saved = place.join("saved.pt").display().to_string();
    crate::support::process::done([
        "export",
        &out,
        "--checkpoint",
        "last",
        "--format",
        "torchscript",
        "--out",
        &saved,
    ]);
    let made = ScriptModule::load(Path::new(&saved), Device::Cpu).unwrap();
    let x = Tensor::randn([2, 1, 16, 16], (Kind::Float, Device::Cpu));
    let found = made.forward("forward", &[&x], "").unwrap();
    scripted.set_training(false).unwrap();
    let features = scripted.forward("features", &[&x], "").unwrap();
    let expected = features.linear(&tensors["head.weight"], Some(&tensors["head.bias"]));
    let apart = (&found - &expected).abs().max().double_value(&[]);
    assert!(apart < 1e-5, "{apart}: {found} and {expected}");
}

/// Texts of one to nine words, `yes` where one of them is `good`.
fn write_texts(path: &Path) {
    let words = ["a", "film", "with", "some", "people", "in", "it"];
    let mut text = "text,label\n".to_owned();
    for number in 0..160usize {
        let mut told: Vec<&str> =
            (0..1 + number % 9).map(|place| words[(number * 5 + place * 3) % 7]).collect();
        let label = ["no", "yes"][number / 2 % 2];
        let place = number % told.len();
        told[place] = if label == "yes" { "good" } else { "bad" };
        text += &format!("{},{label}\n", told.join(" "));
    }
    std::fs::write(path, text).unwrap();
}

fn metrics(stdout: &str) -> Json {
    serde_json::from_str::<Json>(stdout).unwrap()["metrics"].clone()
}

#[test]
fn a_module_of_tokens_learns_from_texts_and_carries_a_head() {
    let place = Scratch::new();
    let path = |name: &str| place.join(name).display().to_string();
    let (texts, module) = (path("texts.csv"), fixture("torchscript/tokens.pt"));
    write_texts(Path::new(&texts));
    let common = ["--quiet", "--threads", "1", "--data", &texts, "--lr", "0.01", "--batch-size", "16"];
    let words = ["--set", "data.tokenizer={\"kind\": \"words\"}", "--set", "data.text=text"];
    let whole = path("whole");
    let flags = [&common[..], &words, &["--epochs", "20", "--out", &whole]].concat();
    stdout(&[&["train", &module, "--family", "rnn"][..], &flags].concat());
    let summary = read_json(&place.join("whole/summary.json"));
    assert!(summary["best"]["accuracy"].as_f64().unwrap() > 0.9, "{summary}");

    // A run of `rnn`; the saved module, which keeps its loop over the steps, is judged alike.
    let rnn = |arguments: &[&str]| {
        let finished = run(&mut crate::support::process::rnn(arguments));
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        finished.stdout
    };
    let (saved, tokenizer) = (path("saved.pt"), path("whole/tokenizer.json"));
    rnn(&["export", &whole, "--format", "torchscript", "--out", &saved]);
    let of_run = metrics(&rnn(&["eval", &whole, "--split", "train", "--format", "json"]));
    let judged = ["eval", &saved, "--family", "rnn", "--data", &texts, "--tokenizer", &tokenizer];
    let fitting =
        ["--set", "data.text=text", "--set", "data.val_fraction=0.1", "--split", "train", "--format", "json"];
    let of_file = metrics(&stdout(&[&judged[..], &fitting].concat()));
    assert_eq!(of_run["accuracy"], of_file["accuracy"]);
    let loss = |metrics: &Json| metrics["loss"].as_f64().unwrap();
    assert!((loss(&of_run) - loss(&of_file)).abs() < 1e-6, "{of_run} and {of_file}");
    // Without a part of its own, all of the table is looked at.
    let all: Json = serde_json::from_str(&stdout(
        &[&judged[..], &["--set", "data.text=text", "--format", "json"]].concat(),
    ))
    .unwrap();
    assert_eq!(all["samples"], 160);

    // Under a head on its states, which are pooled without what is behind the ends.
    let headed = path("headed");
    for (pooling, method) in [("mean", "states"), ("max", "states"), ("last", "states")] {
        let method = format!("model.script.method={method}");
        let pooling = format!("model.pooling={pooling}");
        let head = [
            "--init-from",
            &module,
            "--head",
            "linear",
            "--freeze-backbone",
            "--set",
            &method,
            "--set",
            &pooling,
        ];
        let flags = [&common[..], &words, &head, &["--epochs", "1", "--out", &headed]].concat();
        rnn(&[&["train", "--task", "classify"][..], &flags].concat());
        let saved = path("headed.pt");
        rnn(&["export", &headed, "--format", "torchscript", "--checkpoint", "last", "--out", &saved]);
        let tensors = read_safetensors(&place.join("headed/checkpoints/last/model.safetensors")).unwrap();
        let scripted = ScriptModule::load(Path::new(&module), Device::Cpu).unwrap();
        let before =
            scripted.parameters().unwrap().into_iter().find(|(name, _)| name == "words.weight").unwrap().1;
        assert!(tensors["backbone.words.weight"].equal(&before), "a frozen backbone has learned");
        let made = ScriptModule::load(Path::new(&saved), Device::Cpu).unwrap();
        let tokens =
            Tensor::from_slice(&[3i64, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                .view([2, 11]);
        let found = made.forward("forward", &[&tokens, &Tensor::from_slice(&[11i64, 1])], "").unwrap();
        let states = scripted.forward("states", &[&tokens], "").unwrap();
        for (row, length) in [(0, 11), (1, 1)] {
            let states = states.get(row).narrow(0, 0, length);
            let pooled = match pooling.rsplit_once('=').unwrap().1 {
                "mean" => states.mean_dim(0i64, false, None::<Kind>),
                "max" => states.amax(0i64, false),
                _ => states.get(length - 1),
            };
            let expected =
                pooled.unsqueeze(0).linear(&tensors["output.weight"], Some(&tensors["output.bias"]));
            let apart = (found.get(row) - expected.squeeze()).abs().max().double_value(&[]);
            assert!(apart < 1e-6, "{pooling}, row {row}: {apart}");
        }
        std::fs::remove_dir_all(&headed).unwrap();
        std::fs::remove_file(&saved).unwrap();
    }

    let refused = |flags: &[&str], words: &[&str]| {
        let arguments =
            [&["train", "--out", &headed, "--init-from", &module, "--head", "linear"], flags].concat();
        assert_refused(&run(&mut crate::support::process::rnn(&arguments)), 2, words);
    };
    refused(&["--task", "forecast"], &["model.script", "--task classify"]);
    refused(
        &[&["--task", "classify", "--data", &texts, "--set", "model.pooling=attention"][..], &words].concat(),
        &["model.pooling attention"],
    );
}

#[test]
fn a_module_stands_in_an_encoders_place() {
    let place = Scratch::new();
    let path = |name: &str| place.join(name).display().to_string();
    let (texts, module, out) = (path("texts.csv"), fixture("torchscript/tokens.pt"), path("run"));
    write_texts(Path::new(&texts));
    let words =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "a", "film", "with", "some", "people"];
    std::fs::write(place.join("vocab.txt"), words.join("\n") + "\n").unwrap();
    let tokenizer = format!("data.tokenizer={{\"kind\": \"file\", \"path\": \"{}\"}}", path("vocab.txt"));
    let base = [
        "--quiet",
        "--threads",
        "1",
        "--data",
        &texts,
        "--init-from",
        &module,
        "--set",
        "model.script.method=encode",
        "--set",
        "data.max_length=24",
    ];
    let transformer = |arguments: &[&str]| run(&mut crate::support::process::transformer(arguments));
    let learning = [
        "--head",
        "linear",
        "--set",
        &tokenizer,
        "--set",
        "model.script.output=hidden",
        "--lr",
        "0.02",
        "--epochs",
        "20",
        "--batch-size",
        "16",
        "--out",
        &out,
    ];
    let finished = transformer(&[&["train", "--task", "classify"][..], &base, &learning].concat());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let tensors = read_safetensors(&place.join("run/checkpoints/best/model.safetensors")).unwrap();
    assert!(tensors.contains_key("backbone.cell.weight") && tensors.contains_key("classifier.weight"));
    let summary = read_json(&place.join("run/summary.json"));
    assert!(summary["best"]["accuracy"].as_f64().unwrap() > 0.9, "{summary}");

    // The run stands on its own copy, and its module computes what the run does, at any length.
    let saved = path("saved.pt");
    assert_eq!(transformer(&["export", &out, "--format", "torchscript", "--out", &saved]).code, Some(0));
    let made = ScriptModule::load(Path::new(&saved), Device::Cpu).unwrap();
    let ids = Tensor::from_slice(&[2i64, 7, 8, 5, 3]).unsqueeze(0);
    let found = made.forward("forward", &[&ids, &ids.ones_like(), &ids.zeros_like()], "").unwrap();
    let finished = transformer(&["predict", &out, "--text", "a film good", "--format", "jsonl"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let sure = numbers(&found.softmax(-1, Kind::Float)).into_iter().fold(0.0, f64::max);
    let told = finished.stdout;
    let close =
        told.split(|c: char| !(c.is_ascii_digit() || c == '.')).filter_map(|part| part.parse::<f64>().ok());
    assert!(close.into_iter().any(|p| (p - sure).abs() < 1e-4), "{sure} in {told}");

    let refused = |flags: &[&str], words: &[&str]| {
        let out = path("no");
        let arguments = [&["train"], &base[..], flags, &["--out", &out]].concat();
        assert_refused(&transformer(&arguments), 2, words);
    };
    let hidden = ["--set", "model.script.output=hidden", "--set", &tokenizer];
    refused(
        &[&["--task", "classify", "--head", "none"][..], &hidden].concat(),
        &["--head none", "--head linear"],
    );
    refused(
        &["--task", "classify", "--head", "linear", "--set", "model.script.output=hidden"],
        &["its own tokenizer"],
    );
    refused(&[&["--task", "mlm", "--head", "linear"][..], &hidden].concat(), &["hidden words"]);
    refused(
        &[
            "--task",
            "classify",
            "--head",
            "linear",
            "--set",
            &tokenizer,
            "--set",
            "model.script.output=other",
        ],
        &["no output `other`"],
    );
    let refused = transformer(&["export", &out, "--format", "hf", "--out", &path("hf")]);
    assert_refused(&refused, 2, &["--format torchscript"]);
}

#[test]
fn a_module_of_rows_learns_from_a_table() {
    let place = Scratch::new();
    let path = |name: &str| place.join(name).display().to_string();
    let (table, module, fitted) = (path("table.csv"), fixture("torchscript/rows.pt"), path("fitted"));
    let mut text = "a,b,c,d,y\n".to_owned();
    for number in 0..200 {
        let value = |factor: i32| f64::from(number * factor % 41) / 20.0 - 1.0;
        let [a, b, c, d] = [7, 11, 13, 17].map(value);
        text += &format!("{a},{b},{c},{d},{}\n", 2.0 * a - b + 0.5 * c * d + 3.0);
    }
    std::fs::write(&table, text).unwrap();
    let common = [
        "--quiet",
        "--threads",
        "1",
        "--data",
        &table,
        "--set",
        "data.target=y",
        "--lr",
        "0.02",
        "--set",
        "training.early_stop=null",
    ];
    let flags = [&common[..], &["--epochs", "60", "--out", &fitted]].concat();
    // As it is: its inputs and outputs are the columns in their own units.
    stdout(&[&["train", &module, "--family", "regression"][..], &flags].concat());
    let summary = read_json(&place.join("fitted/summary.json"));
    assert!(summary["best"]["r2"].as_f64().unwrap() > 0.95, "{summary}");
    let regression = |arguments: &[&str]| {
        let finished = run(&mut crate::support::process::regression(arguments));
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.stderr);
        finished.stdout
    };
    // The module as it was predicts otherwise; the run's export takes the rows of the table.
    let judged = [
        "eval",
        &module,
        "--family",
        "regression",
        "--data",
        &table,
        "--set",
        "data.target=y",
        "--format",
        "json",
    ];
    assert!(metrics(&stdout(&judged))["r2"].as_f64().unwrap() < 0.5);
    let saved = path("fitted.pt");
    regression(&["export", &fitted, "--format", "torchscript", "--out", &saved]);
    let first = Tensor::from_slice(&[-1.0f64, -1.0, -1.0, -1.0]).view([1, 4]);
    let made = ScriptModule::load(Path::new(&saved), Device::Cpu).unwrap();
    let found = made.forward("forward", &[&first], "").unwrap().double_value(&[0, 0]);
    let said = regression(&["predict", &fitted, &table, "--format", "csv"]);
    let column =
        said.lines().next().unwrap().split(',').position(|name| name.starts_with("predict")).unwrap();
    let said: f64 = said.lines().nth(1).unwrap().split(',').nth(column).unwrap().parse().unwrap();
    assert!((found - said).abs() < 1e-4, "{found} and {said}");

    // A head of ours on its features takes standardised columns, as our own networks.
    let headed = path("headed");
    let head = [
        "--init-from",
        &module,
        "--head",
        "linear",
        "--set",
        "model.script.method=features",
        "--freeze-backbone",
    ];
    regression(
        &[&["train", "--recipe", "mlp", "--out", &headed, "--epochs", "60"][..], &common, &head].concat(),
    );
    let summary = read_json(&place.join("headed/summary.json"));
    assert!(summary["best"]["r2"].as_f64().unwrap() > 0.8, "{summary}");
}

#[test]
fn files_are_converted_and_timed() {
    let place = Scratch::new();
    let module = fixture("torchscript/classifier.pt");
    let path = |name: &str| place.join(name).display().to_string();
    stdout(&["convert", &module, "--to", "safetensors", "--dtype", "bf16", "--out", &path("w.safetensors")]);
    let tensors = read_safetensors(&place.join("w.safetensors")).unwrap();
    assert_eq!(tensors["fc.weight"].kind(), Kind::BFloat16);
    assert_eq!(tensors["body.1.num_batches_tracked"].kind(), Kind::Int64);
    stdout(&["convert", &module, "--to", "torchscript", "--freeze", "--out", &path("frozen.pt")]);
    let expected = fixture("torchscript/classifier.safetensors");
    let input = format!("x={expected}#x");
    stdout(&["run", &path("frozen.pt"), "--input", &input, "--check", &expected]);
    let told = stdout(&["info", &path("frozen.pt")]);
    assert!(told.contains("no: it is frozen"), "{told}");
    stdout(&["convert", &module, "--to", "torchscript", "--int8", "--out", &path("int8.pt")]);
    stdout(&[
        "run",
        &path("int8.pt"),
        "--input",
        &input,
        "--check",
        &expected,
        "--rtol",
        "0.02",
        "--atol",
        "0.02",
    ]);
    let stored = stdout(&["info", &path("int8.pt"), "--code", "forward"]);
    assert!(stored.contains("linear_dynamic"), "{stored}");
    refuses(
        &["convert", &path("int8.pt"), "--to", "safetensors", "--out", &path("int8.safetensors")],
        &["holds quantised tensors"],
    );
    let convolutions = path("convolutions.pt");
    refuses(
        &["convert", &path("frozen.pt"), "--to", "safetensors", "--int8", "--out", &convolutions],
        &["--int8 go with --to torchscript"],
    );
    refuses(
        &[
            "convert",
            &fixture("torchscript/stateful.pt"),
            "--to",
            "torchscript",
            "--int8",
            "--out",
            &convolutions,
        ],
        &["no linear layer"],
    );
    stdout(&["convert", &module, "--to", "torchscript", "--dtype", "fp64", "--out", &path("double.pt")]);
    let result = stdout(&["run", &path("double.pt"), "--input", "x=zeros:float64:1x1x16x16"]);
    assert!(result.contains("double"), "{result}");
    refuses(
        &["convert", &path("w.safetensors"), "--to", "torchscript", "--out", &path("no.pt")],
        &["is a safetensors file", "a module is made of a module"],
    );
    let weights = path("lenet.safetensors");
    let run_folder = path("lenet");
    let parameters = tch_suite::models::Parameters::new(Device::Cpu);
    let config = tch_suite::models::image::ImageModelConfig {
        num_classes: Some(10),
        in_channels: Some(1),
        image_size: Some([28, 28]),
        ..tch_suite::models::image::ImageModelConfig::named("lenet5")
    };
    {
        let _lock = exclusive_generator();
        tch_suite::models::image::build(&parameters.root(), &config).unwrap();
    }
    write_safetensors(Path::new(&weights), &tch_suite::weights::tensors_of(&parameters)).unwrap();
    stdout(&["convert", &weights, "--to", "run", "--model", "lenet5", "--out", &run_folder]);
    let evaluated = ["eval", &run_folder, "--data", "mnist-mini", "--split", "test", "--format", "json"];
    let found: Json = serde_json::from_str(&stdout(&evaluated)).unwrap();
    assert_eq!(found["samples"], 2000);

    let timed: Json = serde_json::from_str(&stdout(&[
        "bench",
        &module,
        "--input",
        "x=random:1x1x16x16",
        "--batch",
        "1,4",
        "--precision",
        "fp32,bf16",
        "--freeze",
        "--calls",
        "3",
        "--warm-up",
        "1",
        "--threads",
        "1",
        "--format",
        "json",
    ]))
    .unwrap();
    assert_eq!(timed.as_array().unwrap().len(), 8);
    assert!(
        timed[0]["p50_ms"].as_f64().unwrap() > 0.0
            && timed[0]["p99_ms"].as_f64() >= timed[0]["p50_ms"].as_f64()
    );
}
