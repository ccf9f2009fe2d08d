//! Weight files of every form: what is read, what is refused, and what happens when they do not fit.

use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tch_suite::error::one_sentence;
use tch_suite::models::Parameters;
use tch_suite::weights::{self, Class, NamedTensors, TensorSource, Weights, write_safetensors};

use crate::support::process::{Finished, assert_refused, cnn, done, run};
use crate::support::runs::{train, train_arguments};
use crate::support::small_data::{self, Noise};
use crate::support::{Scratch, data, fixture, numbers};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights")
}

fn expected() -> serde_json::Map<String, Value> {
    fixture("weights/expected.json").as_object().unwrap().clone()
}

/// The sentence with which a file is refused.
fn refusal(path: &Path) -> String {
    let error = weights::open(path).and_then(|weights| weights.tensors().map(|_| ())).unwrap_err();
    let sentence = one_sentence(&error);
    assert!(!sentence.contains('\n') && !sentence.contains("panicked"), "{sentence}");
    assert!(error.chain().any(|cause| cause.is::<tch_suite::error::BadInput>()), "no bad input: {sentence}");
    sentence
}

#[test]
fn every_form_is_read_with_the_values_that_python_wrote() {
    let expected = expected();
    assert!(expected.len() > 25);
    for (name, file) in &expected {
        let weights =
            weights::open(&fixtures().join(name)).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(weights.format.name(), file["format"], "{name}");
        assert_eq!(weights.container.join("."), file["container"].as_str().unwrap(), "{name}");
        assert_eq!(weights.prefix, file["prefix"].as_str().unwrap(), "{name}");
        let tensors = file["tensors"].as_object().unwrap();
        let mut names: Vec<&str> = tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(weights.names(), names, "{name}");
        let all = weights.tensors().unwrap();
        for (key, tensor) in tensors {
            let what = format!("{name}: {key}");
            let form = weights.form(key).unwrap();
            assert_eq!(form.dtype.name(), tensor["dtype"], "{what}");
            assert_eq!(serde_json::json!(form.shape), tensor["shape"], "{what}");
            let values: Vec<f64> = serde_json::from_value(tensor["values"].clone()).unwrap();
            for found in [weights.tensor(key).unwrap(), all[key].shallow_clone()] {
                assert_eq!(found.size(), form.shape, "{what}");
                assert_eq!(found.kind(), form.dtype.kind(), "{what}");
                let found = match form.dtype.class() {
                    Class::Complex => found.to_kind(Kind::ComplexDouble).view_as_real(),
                    _ => found,
                };
                assert_eq!(numbers(&found), values, "{what}");
            }
        }
    }
}

#[test]
fn tensors_that_share_numbers_share_them_here_too() {
    let tensors = weights::open(&fixtures().join("views.pth")).unwrap().tensors().unwrap();
    let _ = tensors["base"].shallow_clone().fill_(9.0);
    assert_eq!(numbers(&tensors["part"]), [9.0; 6]);
    assert_eq!(numbers(&tensors["tied"])[0], 9.0);
    assert_eq!(numbers(&tensors["alone_part"]), [105.0, 106.0, 107.0, 108.0]);
}

#[test]
fn a_pickle_that_would_run_something_is_refused_by_name_and_runs_nothing() {
    let folder = Scratch::new();
    for (name, words) in [
        ("hostile.pth", "posix.system"),
        ("hostile_legacy.pth", "posix.system"),
        ("hostile.pkl", "not one of torch.save"),
        ("whole_module.pth", "__main__.Net"),
    ] {
        let path = fixtures().join(name).display().to_string();
        let refused = run(cnn(["info", &path]).current_dir(&*folder));
        assert_refused(&refused, 2, &[&path, words]);
        assert_eq!(std::fs::read_dir(&*folder).unwrap().count(), 0, "{name} has created a file");
    }
    assert!(refusal(&fixtures().join("whole_module.pth")).contains("state_dict()"));
    // The same through each opcode that imports or calls.
    let path = folder.join("made.pth");
    let target = folder.join("created");
    let command = format!("touch {}", target.display());
    let short = |text: &str| [&[0x8c, text.len() as u8][..], text.as_bytes()].concat();
    let programs: [Vec<u8>; 7] = [
        [b"cposix\nsystem\n(", &short(&command)[..], b"tR."].concat(),
        [&short("posix")[..], &short("system"), b"\x93", &short(&command), b"\x85R."].concat(),
        [b"(", &short(&command)[..], b"iposix\nsystem\n."].concat(),
        [b"(cposix\nsystem\n", &short(&command)[..], b"o."].concat(),
        [b"cbuiltins\neval\n(", &short("print(1)")[..], b"t\x81."].concat(),
        [b"cbuiltins\ngetattr\n(", &short("x")[..], b"t}\x92."].concat(),
        [b"ctorch.storage\n_load_from_bytes\n(", &short("x")[..], b"tR."].concat(),
    ];
    for program in programs {
        std::fs::write(&path, legacy(&program, &[])).unwrap();
        let sentence = refusal(&path);
        assert!(sentence.contains("would import"), "{sentence}");
        std::fs::write(&path, archive(&[("x/data.pkl", &program)])).unwrap();
        assert!(refusal(&path).contains("would import"));
    }
    for program in [&b"\x82\x01."[..], b"\x83\x01\0.", b"\x84\x01\0\0\0."] {
        std::fs::write(&path, legacy(program, &[])).unwrap();
        assert!(refusal(&path).contains("extension registry"));
    }
    assert!(!target.exists());
}

#[test]
fn files_cut_short_anywhere_are_refused() {
    let folder = Scratch::new();
    let path = folder.join("cut");
    for name in [
        "plain.pth",
        "plain_legacy.pth",
        "checkpoint_legacy.pth",
        "frozen.pt",
        "views_legacy.pth",
        "dtypes.safetensors",
    ] {
        let whole = std::fs::read(fixtures().join(name)).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            refusal(&path);
        }
    }
    // One of the shards, and the index.
    for (kind, shard, index) in [
        ("bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"),
        ("safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    ] {
        let copy = folder.join(kind);
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(fixtures().join(format!("sharded_{kind}"))).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        assert_eq!(weights::open(&copy).unwrap().file_count(), 2);
        for file in [shard, index] {
            let whole = std::fs::read(copy.join(file)).unwrap();
            for length in (0..whole.len()).step_by(11) {
                std::fs::write(copy.join(file), &whole[..length]).unwrap();
                refusal(&copy);
            }
            std::fs::write(copy.join(file), whole).unwrap();
        }
        std::fs::remove_file(copy.join(shard)).unwrap();
        assert!(refusal(&copy).contains("which does not exist"));
        for evil in ["../x.bin", "/etc/passwd", "a/b.bin", ""] {
            let text = serde_json::json!({"weight_map": {"weight": evil}}).to_string();
            std::fs::write(copy.join(index), text).unwrap();
            assert!(refusal(&copy).contains("is not beside it"));
        }
    }
}

#[test]
fn archives_that_torch_never_writes_are_refused() {
    for (name, words) in [
        ("compressed.pth", "is compressed"),
        ("dots.pth", "leads out of the archive"),
        ("absolute.pth", "`/tmp/outside` leads out"),
    ] {
        let path = fixtures().join(name).display().to_string();
        assert_refused(&run(&mut cnn(["info", &path])), 2, &[&path, words]);
    }
    let folder = Scratch::new();
    let path = folder.join("x.pth");
    std::fs::write(&path, archive(&[("x/other", b"")])).unwrap();
    assert!(refusal(&path).contains("without `data.pkl`"));
    let honest = tensor_pickle("0", 2, 0, &[2], &[1]);
    let big = archive(&[("x/data.pkl", &honest), ("x/byteorder", b"big"), ("x/data/0", &[0; 8])]);
    std::fs::write(&path, big).unwrap();
    assert!(refusal(&path).contains("big-endian"));
    // Sizes that the central directory claims: more than the file has, or one range for all entries.
    let whole = archive(&[("x/data.pkl", &honest), ("x/data/0", &[0; 8])]);
    let records: Vec<usize> =
        whole.windows(4).enumerate().filter(|(_, bytes)| bytes == b"PK\x01\x02").map(|(at, _)| at).collect();
    assert_eq!(records.len(), 2);
    let mut bomb = whole.clone();
    bomb[records[1] + 20..records[1] + 28].copy_from_slice(&[0, 0, 0, 0x40, 0, 0, 0, 0x40]);
    std::fs::write(&path, &bomb).unwrap();
    assert!(refusal(&path).contains("claims"), "{}", refusal(&path));
    let mut overlapping = whole.clone();
    let long = (whole.len() as u32 - 100).to_le_bytes();
    for record in records {
        overlapping[record + 20..record + 24].copy_from_slice(&long);
        overlapping[record + 24..record + 28].copy_from_slice(&long);
    }
    std::fs::write(&path, &overlapping).unwrap();
    refusal(&path);
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    const LARGE: i64 = i64::MAX;
    let folder = Scratch::new();
    let path = folder.join("x.pth");
    let attempt = |count: i64, offset: i64, shape: &[i64], strides: &[i64]| {
        let pickle = tensor_pickle("0", count, offset, shape, strides);
        std::fs::write(&path, archive(&[("x/data.pkl", &pickle), ("x/data/0", &[0; 24])])).unwrap();
        let zipped = weights::open(&path).and_then(|weights| weights.tensors());
        std::fs::write(&path, legacy(&pickle, &[("0", count, &[0; 24])])).unwrap();
        let old = weights::open(&path).and_then(|weights| weights.tensors());
        [zipped, old]
    };
    for result in attempt(6, 0, &[2, 3], &[3, 1]) {
        assert_eq!(result.unwrap()["weight"].size(), [2, 3]);
    }
    for result in attempt(6, 1, &[5], &[1]) {
        assert!(result.is_ok());
    }
    for result in attempt(6, 6, &[0, 4], &[4, 1]) {
        assert_eq!(result.unwrap()["weight"].size(), [0, 4]);
    }
    let wrong: &[(i64, i64, &[i64], &[i64])] = &[
        (6, 1, &[2, 3], &[3, 1]),
        (6, 0, &[2, 3], &[4, 1]),
        (6, 0, &[7], &[1]),
        (6, 6, &[1], &[1]),
        (6, LARGE, &[1], &[1]),
        (6, 0, &[LARGE], &[1]),
        (6, 0, &[2], &[LARGE]),
        (6, 0, &[LARGE, LARGE], &[0, 0]),
        (6, 0, &[1 << 32, 1 << 32], &[0, 0]),
        (6, 0, &[LARGE], &[0]),
        (6, 0, &[1 << 40], &[0]),
        (6, 0, &[0, LARGE, LARGE], &[1, 1, 1]),
        (6, -1, &[1], &[1]),
        (6, 0, &[-1], &[1]),
        (6, 0, &[2], &[-1]),
        (6, 0, &[2], &[1, 1]),
        (6, 0, &[1; 65], &[1; 65]),
        (7, 0, &[6], &[1]),
        (-6, 0, &[6], &[1]),
        (LARGE, 0, &[6], &[1]),
    ];
    for (count, offset, shape, strides) in wrong {
        for result in attempt(*count, *offset, shape, strides) {
            let error =
                result.err().unwrap_or_else(|| panic!("{shape:?} {strides:?} {offset} of {count} is read"));
            assert!(error.chain().any(|cause| cause.is::<tch_suite::error::BadInput>()), "{error:#}");
        }
    }
}

#[test]
fn pickles_that_grow_or_nest_without_end_are_refused() {
    let folder = Scratch::new();
    let path = folder.join("x.pth");
    let refuse = |pickle: &[u8]| {
        std::fs::write(&path, archive(&[("x/data.pkl", pickle)])).unwrap();
        refusal(&path)
    };
    // Tuples in tuples, lists in lists, dictionaries in dictionaries, a million deep.
    for (open, close) in [(&b")"[..], &b"\x85"[..]), (b"](", b"e"), (b"}(K\x01", b"u")] {
        let pickle = [open.repeat(1_000_000), b"N".to_vec(), close.repeat(999_999), b".".to_vec()].concat();
        refuse(&pickle);
    }
    // Each level holds the one before twice: 2^60 leaves.
    let mut doubling = b"\x80\x02}q\0".to_vec();
    for level in 1..=60u8 {
        doubling.extend([b'}', b'(', b'K', 1, b'h', level - 1, b'K', 2, b'h', level - 1, b'u', b'q', level]);
    }
    doubling.push(b'.');
    assert!(refuse(&doubling).contains("too many ways"));
    // The same by copying, which a set does.
    let mut copies = b"ccollections\nOrderedDict\nq\0](".to_vec();
    copies.extend(b"K\x01".repeat(200));
    copies.extend(b"eq\x010");
    for _ in 0..100_000 {
        copies.extend(b"cbuiltins\nset\nh\x01\x85R");
    }
    copies.push(b'.');
    assert!(refuse(&copies).contains("values"));
    // More values than any weights have.
    assert!(refuse(&[&b"N".repeat(5_000_000)[..], b"."].concat()).contains("values"));
    // A list that contains itself.
    refuse(b"]q\0h\0a.");
    refuse(b"}q\0(K\x01h\0u.");
    // Texts longer than the file, unknown opcodes, empty stacks.
    for pickle in [
        &b"X\xff\xff\xff\x7f."[..],
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\xfe.",
        b"R.",
        b"0.",
        b"h\x05.",
        b".",
    ] {
        refuse(pickle);
    }
}

#[test]
fn damage_anywhere_never_ends_in_a_panic() {
    let folder = Scratch::new();
    let path = folder.join("x");
    let mut noise = Noise::new(11);
    let names = [
        "checkpoint.pth",
        "checkpoint_legacy.pth",
        "views.pth",
        "frozen.pt",
        "dtypes.safetensors",
        "protocol_4.pth",
    ];
    let mut survived = 0;
    for name in names {
        let whole = std::fs::read(fixtures().join(name)).unwrap();
        for _ in 0..600 {
            let mut damaged = whole.clone();
            for _ in 0..1 + noise.below(4) {
                let place = noise.below(damaged.len() as u64) as usize;
                damaged[place] = noise.below(256) as u8;
            }
            std::fs::write(&path, damaged).unwrap();
            match weights::open(&path).and_then(|weights| weights.tensors()) {
                Ok(_) => survived += 1,
                Err(error) => assert!(!one_sentence(&error).contains('\n')),
            }
        }
    }
    // Most bytes are numbers or padding.
    assert!((600..3500).contains(&survived), "{survived}");
}

#[test]
fn what_is_no_weight_file_is_named() {
    let folder = Scratch::new();
    let path = folder.join("model.safetensors");
    for (content, words) in [
        (&b""[..], "empty file"),
        (b"no weights at all", "no weight file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"{\"a\": 1}", "weight_map"),
        (b"{", "not valid JSON"),
        (b"\x80\x02}q\0.", "not one of torch.save"),
    ] {
        std::fs::write(&path, content).unwrap();
        assert!(refusal(&path).contains(words), "{words}: {}", refusal(&path));
    }
    assert!(refusal(&folder.join("nothing.pth")).contains("does not exist"));
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(&folder).contains("no recipe.json and no model.safetensors"));
    for name in ["a.pth", "b.pt"] {
        std::fs::copy(fixtures().join("plain.pth"), folder.join(name)).unwrap();
    }
    assert!(refusal(&folder).contains("several weight files"));
    std::fs::remove_file(folder.join("b.pt")).unwrap();
    assert_eq!(weights::open(&folder).unwrap().names(), ["bias", "weight"]);
    let wrong = fixtures().join("checkpoint.pth#no_such");
    assert!(refusal(&wrong).contains("model_ema"), "{}", refusal(&wrong));
}

/// A zip archive, uncompressed.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in members {
        writer.start_file(*name, options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A file of torch.save before 1.6 with the pickle of an object and its storages: key, count of elements, bytes.
fn legacy(object: &[u8], storages: &[(&str, i64, &[u8])]) -> Vec<u8> {
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend(object);
    file.extend(b"\x80\x02](");
    for (key, ..) in storages {
        file.extend([0x8c, key.len() as u8]);
        file.extend(key.as_bytes());
    }
    file.extend(b"e.");
    for (_, count, bytes) in storages {
        file.extend(count.to_le_bytes());
        file.extend(*bytes);
    }
    file
}

/// The pickle of `{"weight": tensor}`, a float tensor as torch writes it.
fn tensor_pickle(key: &str, count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let long = |number: i64| [&[0x8a, 8][..], &number.to_le_bytes()].concat();
    let tuple = |numbers: &[i64]| {
        let inner: Vec<u8> = numbers.iter().flat_map(|&number| long(number)).collect();
        [b"(", &inner[..], b"t"].concat()
    };
    let short = |text: &str| [&[0x8c, text.len() as u8][..], text.as_bytes()].concat();
    [
        &b"\x80\x02}"[..],
        &short("weight"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &short("storage"),
        b"ctorch\nFloatStorage\n",
        &short(key),
        &short("cpu"),
        &long(count),
        b"tQ",
        &long(offset),
        &tuple(shape),
        &tuple(strides),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

/// A model of two layers, the last for so many classes.
fn small_model(classes: i64) -> Parameters {
    let parameters = Parameters::new(Device::Cpu);
    let root = parameters.root();
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let _ = root.child("body").given_parameter("weight", zeros(&[3, 2])).unwrap();
    let _ = root.child("norm").given_parameter("weight", zeros(&[3])).unwrap();
    let steps = Tensor::zeros([0i64; 0], (Kind::Int64, Device::Cpu));
    let _ = root.child("norm").buffer("num_batches_tracked", steps).unwrap();
    let _ = root.child("head").given_parameter("weight", zeros(&[classes, 3])).unwrap();
    let _ = root.child("head").given_parameter("bias", zeros(&[classes])).unwrap();
    parameters
}

fn ones(size: &[i64]) -> Tensor {
    Tensor::ones(size, (Kind::Half, Device::Cpu))
}

fn matching(classes: i64) -> NamedTensors {
    NamedTensors::from([
        ("body.weight".to_owned(), ones(&[3, 2])),
        ("norm.weight".to_owned(), ones(&[3])),
        ("norm.num_batches_tracked".to_owned(), Tensor::from(7i64)),
        ("head.weight".to_owned(), ones(&[classes, 3])),
        ("head.bias".to_owned(), ones(&[classes])),
    ])
}

/// Loads tensors by way of a file: the notes, or the refusal.
fn fit(model: &Parameters, tensors: &NamedTensors, strict: bool) -> Result<Vec<String>, String> {
    let folder = Scratch::new();
    let path = folder.join("x.safetensors");
    write_safetensors(&path, tensors).unwrap();
    weights::load(model, &path, strict).map(|loaded| loaded.notes).map_err(|error| one_sentence(&error))
}

#[test]
fn weights_that_fit_are_converted_to_the_models_type() {
    let model = small_model(4);
    assert_eq!(fit(&model, &matching(4), true), Ok(vec![]));
    let weight = model.get("body.weight").unwrap();
    assert_eq!((weight.kind(), numbers(&weight)), (Kind::Float, vec![1.0; 6]));
    assert_eq!(model.get("norm.num_batches_tracked").unwrap().int64_value(&[]), 7);
}

#[test]
fn another_number_of_classes_leaves_the_head_as_it_was() {
    let model = small_model(10);
    let notes = fit(&model, &matching(4), false).unwrap();
    assert_eq!(notes.len(), 1);
    for word in ["4 classes", "10", "`head.weight`", "`head.bias`", "initial values"] {
        assert!(notes[0].contains(word), "{}", notes[0]);
    }
    assert_eq!(numbers(&model.get("body.weight").unwrap()), [1.0; 6]);
    assert_eq!(numbers(&model.get("head.bias").unwrap()), [0.0; 10]);
    let refused = fit(&small_model(10), &matching(4), true).unwrap_err();
    assert!(refused.contains("--strict") && refused.contains("head."), "{refused}");
}

#[test]
fn what_does_not_fit_is_refused_or_noted() {
    let without = |name: &str| {
        let mut tensors = matching(4);
        let _ = tensors.remove(name).unwrap();
        tensors
    };
    let with = |name: &str, tensor: Tensor| {
        let mut tensors = matching(4);
        tensors.insert(name.to_owned(), tensor);
        tensors
    };
    // PyTorch before 0.4.1 had no counters.
    assert_eq!(fit(&small_model(4), &without("norm.num_batches_tracked"), false), Ok(vec![]));
    let strict = fit(&small_model(4), &without("norm.num_batches_tracked"), true).unwrap_err();
    assert!(strict.contains("1 missing (`norm.num_batches_tracked`)"), "{strict}");
    // Others must be there.
    let missing = fit(&small_model(4), &without("body.weight"), false).unwrap_err();
    assert!(missing.contains("1 missing (`body.weight`)") && !missing.contains("architecture"), "{missing}");
    // What is too much is noted.
    let extra = with("extra.weight", ones(&[1]));
    let notes = fit(&small_model(4), &extra, false).unwrap();
    assert!(notes[0].contains("1 tensors that this model has no place for (`extra.weight`)"), "{notes:?}");
    assert!(fit(&small_model(4), &extra, true).unwrap_err().contains("1 unexpected"));
    // Shapes and classes of types.
    let shape = fit(&small_model(4), &with("body.weight", ones(&[3, 5])), false).unwrap_err();
    assert!(shape.contains("[3, 2] of float32 here and [3, 5] of float16 there"), "{shape}");
    // A body that differs in its first size is no head, not even beside one.
    assert!(fit(&small_model(4), &with("body.weight", ones(&[4, 2])), false).is_err());
    let dtype = with("body.weight", Tensor::ones([3, 2], (Kind::Int8, Device::Cpu)));
    let dtype = fit(&small_model(4), &dtype, false).unwrap_err();
    assert!(dtype.contains("[3, 2] of int8 there"), "{dtype}");
    // Another architecture.
    let other =
        NamedTensors::from([("conv.weight".to_owned(), ones(&[1])), ("head.bias".to_owned(), ones(&[4]))]);
    let other = fit(&small_model(4), &other, false).unwrap_err();
    assert!(other.contains("another architecture: 1 of 5 names"), "{other}");
}

fn info(arguments: &[&str]) -> Finished {
    done(["info"].iter().chain(arguments))
}

#[test]
fn info_shows_what_a_file_holds() {
    let path = fixtures().join("checkpoint_legacy.pth").display().to_string();
    let table = info(&[&path]).stdout;
    for line in [
        "format    PyTorch pickle (torch.save before 1.6)",
        "taken     model.state_dict",
        "left out  model_ema",
        "weight  float32  [2, 3]           6     24",
        "total            2 tensors        8     32",
    ] {
        assert!(table.contains(line), "no `{line}` in\n{table}");
    }
    let facts: Value = serde_json::from_str(&info(&[&path, "--format", "json"]).stdout).unwrap();
    assert_eq!((&facts["format"], &facts["numbers"]), (&"pytorch-legacy".into(), &8.into()));
    assert_eq!(facts["tensors"][1]["shape"], serde_json::json!([2, 3]));
    let average = info(&[&format!("{path}#model_ema")]).stdout;
    assert!(average.contains("taken     model_ema"), "{average}");
    let shards = info(&[&fixtures().join("sharded_bin").display().to_string()]).stdout;
    assert!(shards.contains("files     2"), "{shards}");
    let stored = info(&[&fixtures().join("dtypes.safetensors").display().to_string()]).stdout;
    assert!(stored.contains("metadata  made: here") && stored.contains("float8_e4m3fn"), "{stored}");
}

/// A trained run of LeNet-5, its weights in a file, and pictures.
fn trained() -> (Scratch, PathBuf, String) {
    let folder = Scratch::new();
    let (data, path) = (folder.join("data"), folder.join("run"));
    small_data::write(&data, 80, 20);
    train("lenet5", &data, &path, &["training.epochs=2"]);
    let weights = path.join("checkpoints/best/model.safetensors").display().to_string();
    (folder, path, weights)
}

#[test]
fn a_model_with_weights_stands_in_for_a_run() {
    let (folder, path, weights) = trained();
    let path = path.display().to_string();
    let classes = folder.join("classes.txt");
    std::fs::write(&classes, "north-west\nnorth-east\nsouth-west\nsouth-east\n").unwrap();
    let classes = classes.display().to_string();
    let picture = folder.join("picture.png").display().to_string();
    let mut noise = Noise::new(3);
    let side = small_data::SIDE;
    let pixels = small_data::image(1, side, &mut noise);
    image::GrayImage::from_raw(side as u32, side as u32, pixels).unwrap().save(&picture).unwrap();
    let size = format!("data.image_size=[{side},{side}]");
    let model = [
        "--model",
        "lenet5",
        "--init-from",
        &weights,
        "--set",
        &size,
        "--set",
        "data.mean=[0.3]",
        "--set",
        "data.std=[0.25]",
    ];
    let with = |verb: &str, more: &[&str]| done([&[verb][..], &model, more].concat());

    let of_run = done(["predict", &path, &picture, "--format", "jsonl", "--top-k", "4"]).stdout;
    let of_weights = with("predict", &[&picture, "--format", "jsonl", "--top-k", "4"]).stdout;
    assert_eq!(of_weights, of_run);
    let named = with("predict", &[&picture, &picture, "--classes", &classes]).stdout;
    assert_eq!(named.lines().count(), 2);
    let best: Value = serde_json::from_str(&of_run).unwrap();
    let number: usize = best["label"].as_str().unwrap().parse().unwrap();
    let name = ["north-west", "north-east", "south-west", "south-east"][number];
    assert!(named.lines().all(|line| line.contains(name)), "{named} is not {number}");

    let data = folder.join("data").display().to_string();
    let of_run: Value = serde_json::from_str(&done(["eval", &path, "--format", "json"]).stdout).unwrap();
    let evaluated = with("eval", &["--data", &data, "--format", "json"]).stdout;
    let evaluated: Value = serde_json::from_str(&evaluated).unwrap();
    assert_eq!(evaluated["metrics"], of_run["metrics"]);
    assert_eq!(evaluated["step"], Value::Null);
    let refused = run(&mut cnn([&["eval"][..], &model].concat()));
    assert_refused(&refused, 2, &["give --data"]);

    for format in ["torchscript", "safetensors"] {
        let out = folder.join(format).display().to_string();
        with("export", &["--format", format, "--out", &out]);
        let exported = weights::open(Path::new(&out)).unwrap();
        let original = weights::open(Path::new(&weights)).unwrap();
        assert_eq!(exported.names(), original.names(), "{format}");
        for name in original.names() {
            assert!(
                exported.tensor(name).unwrap().equal(&original.tensor(name).unwrap()),
                "{format}: {name}"
            );
        }
    }
    let fitted = info(&["--model", "lenet5", "--init-from", &weights, "--set", "model.num_classes=4"]).stdout;
    assert!(fitted.contains("loaded"), "{fitted}");
    // The wrong number of names, and weights of another architecture.
    std::fs::write(&classes, "one\ntwo\n").unwrap();
    let refused = run(&mut cnn([&["predict"][..], &model, &[&picture, "--classes", &classes]].concat()));
    assert_refused(&refused, 2, &["4 classes", "--classes names 2"]);
    let plain = fixtures().join("plain.pth").display().to_string();
    let refused = run(&mut cnn(["predict", "--model", "lenet5", "--init-from", &plain, &picture]));
    assert_refused(&refused, 2, &[&plain, "another architecture"]);
    let both = run(&mut cnn([&["eval", &path][..], &model].concat()));
    assert_refused(&both, 2, &["give a run, or an architecture"]);
}

#[test]
fn training_starts_from_weights_of_any_form() {
    let (folder, path, weights) = trained();
    let data = folder.join("data");
    let out = folder.join("next");
    // A run folder, and a TorchScript export of it.
    let exported = folder.join("exported.pt").display().to_string();
    done(["export", &path.display().to_string(), "--format", "torchscript", "--out", &exported]);
    for (number, source) in [path.display().to_string(), exported, weights.clone()].iter().enumerate() {
        let out = folder.join(format!("from-{number}"));
        let init = format!("training.init_from={source}");
        train("lenet5", &data, &out, &[&init, "training.steps=1", "training.optimizer.lr=0"]);
        let original = weights::open(Path::new(&weights)).unwrap();
        let started = weights::open(&out).unwrap();
        for name in original.names() {
            assert!(started.tensor(name).unwrap().equal(&original.tensor(name).unwrap()), "{source}: {name}");
        }
    }
    // Another number of classes: the log says what was replaced.
    let init = format!("training.init_from={weights}");
    let settings = [&init, "model.num_classes=6", "training.steps=1"];
    let told = done(train_arguments("lenet5", &data, &out, &settings)).stderr;
    assert!(told.contains("tells 4 classes apart and this model 6"), "{told}");
    let strict = [&settings[..], &["training.init_strict=true"]].concat();
    let refused = run(&mut cnn(train_arguments("lenet5", &data, &folder.join("strict"), &strict)));
    assert_refused(&refused, 2, &[&weights, "--strict"]);
}

#[test]
fn the_hubs_cache_serves_without_a_network() {
    let folder = Scratch::new();
    let repository = folder.join("hub/models--org--net");
    let snapshot = repository.join("snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), "0123abc").unwrap();
    for entry in std::fs::read_dir(fixtures().join("sharded_safetensors")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    std::fs::copy(fixtures().join("plain.pth"), snapshot.join("plain.pth")).unwrap();
    let offline = |arguments: &[&str]| -> Command {
        let mut command = cnn(["info"].iter().chain(arguments));
        command.env("HF_HOME", &*folder).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        command
    };
    let shown = run(&mut offline(&["hf:org/net"]));
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains("hf:org/net") && shown.stdout.contains("files     2"), "{}", shown.stdout);
    let shown =
        run(offline(&["hf:org/net/plain.pth"]).env("HF_HUB_CACHE", folder.join("hub")).env("HF_HOME", "/x"));
    assert!(shown.stdout.contains("[2, 3]"), "{}", shown.stderr);
    let absent = run(&mut offline(&["hf:org/other"]));
    assert_refused(&absent, 2, &["hf:org/other", "not in the cache", "HF_HUB_OFFLINE"]);
    for wrong in ["hf:org", "hf:org/../x", "hf:/x", "hf:org/a b"] {
        assert_refused(&run(&mut offline(&[wrong])), 2, &[wrong, "hf:ORG/NAME"]);
    }
}

/// A server of the hub with one repository `org/net`: path of the file in it, content. Keeps the requests' first lines and tokens.
fn serve(files: Vec<(&'static str, Vec<u8>)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = Vec::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                match line {
                    Ok(line) if !line.is_empty() => lines.push(line),
                    _ => break,
                }
            }
            let header = |name: &str| {
                let found = lines.iter().find(|line| line.to_ascii_lowercase().starts_with(name));
                found.map(|line| line[name.len()..].trim().to_owned()).unwrap_or_default()
            };
            let first = lines.first().cloned().unwrap_or_default();
            log.lock().unwrap().push(format!("{first} {}", header("authorization:")));
            let file =
                files.iter().find(|(name, _)| first.contains(&format!("/org/net/resolve/main/{name} ")));
            let answer = match file {
                Some((name, content)) => {
                    let range = header("range:");
                    let bounds = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
                    let start: usize = bounds.0.parse().unwrap();
                    let end = bounds.1.parse().map_or(content.len(), |end: usize| end + 1);
                    let head = format!(
                        "HTTP/1.1 206 Partial Content\r\nETag: \"tag-{name}\"\r\nX-Repo-Commit: 0123abc\r\nContent-Range: bytes \
                         {start}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        end - 1,
                        content.len(),
                        end - start
                    );
                    [head.as_bytes(), &content[start..end]].concat()
                }
                None if first.contains("/secret/") => {
                    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
                }
                None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            };
            let _ = stream.write_all(&answer);
        }
    });
    (address, seen)
}

#[test]
fn the_hub_is_asked_once_and_with_the_token() {
    let folder = Scratch::new();
    let plain = std::fs::read(fixtures().join("plain.pth")).unwrap();
    let (address, seen) = serve(vec![("pytorch_model.bin", plain)]);
    let ask = |name: &str| {
        let mut command = cnn(["info", name]);
        command.env("HF_HOME", &*folder).env("HF_ENDPOINT", &address).env("HF_TOKEN", "hf_test");
        command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
        for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(proxy);
        }
        run(&mut command)
    };
    let first = ask("hf:org/net");
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    assert!(first.stdout.contains("weight  float32  [2, 3]"), "{}", first.stdout);
    let requests = seen.lock().unwrap().clone();
    assert!(requests.iter().all(|line| line.contains("Bearer hf_test")), "{requests:?}");
    assert!(requests[0].contains("model.safetensors") && requests.len() >= 3, "{requests:?}");
    // From the cache.
    assert_eq!(ask("hf:org/net").stdout, first.stdout);
    assert_eq!(seen.lock().unwrap().len(), requests.len());
    assert_refused(&ask("hf:org/net/other.pth"), 2, &["hf:org/net has no file other.pth"]);
    assert_refused(&ask("hf:secret/net"), 2, &["hf:secret/net may not be read", "401", "HF_TOKEN"]);
}

#[test]
fn a_hub_out_of_reach_is_told() {
    let folder = Scratch::new();
    let mut command = cnn(["info", "hf:org/net"]);
    command.env("HF_HOME", &*folder).env("HF_ENDPOINT", "http://127.0.0.1:9").env_remove("HF_HUB_OFFLINE");
    assert_refused(&run(&mut command), 2, &["hf:org/net could not be fetched from http://127.0.0.1:9"]);
}

fn open_data(name: &str) -> Option<Weights> {
    data(name).map(|path| weights::open(&path).unwrap_or_else(|error| panic!("{name}: {error:#}")))
}

#[test]
fn published_weights_are_read() {
    let Some(old) = open_data("pretrained/efficientnet_lite0/efficientnet-lite0-57934424.pth") else {
        return;
    };
    let Some(traced) = open_data("pretrained/efficientnet_lite0/efficientnet_lite0.ts.pt") else { return };
    assert_eq!((old.format.name(), traced.format.name()), ("pytorch-legacy", "torchscript"));
    assert_eq!(old.form("_conv_stem.weight").unwrap().shape, [32, 3, 3, 3]);
    // The same network by two ways.
    for name in traced.names() {
        let (old, traced) = (old.tensor(name).unwrap(), traced.tensor(name).unwrap());
        assert!(old.equal(&traced), "{name}");
    }
    assert!(traced.len() > 200, "{}", traced.len());
    let Some(folder) = data("pretrained/torchscript") else { return };
    let index: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("index.json")).unwrap()).unwrap();
    for name in ["convnet_two_outputs", "lstm_classifier", "mobilenet_v3_small_10"] {
        let weights = weights::open(&folder.join(format!("{name}.ts.pt"))).unwrap();
        let parameters = index["modules"][name]["parameter_names"].as_array().unwrap();
        assert!(!parameters.is_empty());
        for parameter in parameters {
            let parameter = parameter.as_str().unwrap();
            assert!(weights.form(parameter).is_some(), "{name} lacks {parameter}: {:?}", weights.names());
        }
    }
    let Some(encoder) = open_data("pretrained/minilm-l6-h384") else { return };
    assert_eq!(encoder.len(), 104);
}
