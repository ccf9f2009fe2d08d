//! Feeds every reader of the suite with damaged files: none may panic, end the process, or take much more memory than the file has bytes.
//!
//! ```text
//! cargo run --release --example fuzz_readers                  # all readers, 100,000 inputs in all
//! cargo run --release --example fuzz_readers -- --only npy,csv --inputs 5000 --first 0
//! ```
//!
//! Input number N of a reader is the same everywhere and at all times: one of the reader's seeds (files of `tests/fixtures` and some that are made
//! here) with a few mutations drawn by N. Readers run in child processes of this program, which are started again behind an input that ended
//! one; so does libtorch's own `jit::load`, whose ends are counted apart, since its code is not ours.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use tch::Device;
use tch_suite::data::image_dataset::ImageDataset;
use tch_suite::data::images::ImageDataConfig;
use tch_suite::data::table::{ColumnRequest, TableForm, TableReader, TableSource, Wanted, read_all};
use tch_suite::data::text::{TextForm, TextTokenizer, read_rows};
use tch_suite::data::{Dataset, Draw};
use tch_suite::native::script::ScriptModule;
use tch_suite::script::{inspect, npy, wav};
use tch_suite::weights;

/// Beyond the size of the input, a reader may take so many times its size …
const TIMES: u64 = 64;
/// … and so much at any size: buffers, the bounds on values that a small pickle may make.
const BESIDES: u64 = 192 << 20;

/// A reader, with files that it reads.
struct Target {
    name: &'static str,
    /// Files that are mutated, by the name under which they are read.
    seeds: Vec<(String, Vec<u8>)>,
    /// Share of all inputs.
    share: u64,
    read: fn(&Path) -> Result<()>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The files of a folder with one of these endings.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = std::fs::read_dir(fixtures().join(folder))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)))
        .filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), std::fs::read(&path).ok()?)))
        .collect();
    found.sort();
    found
}

fn idx(magic: u32, sizes: &[u32], values: &[u8]) -> Vec<u8> {
    let header = std::iter::once(magic).chain(sizes.iter().copied());
    header.flat_map(u32::to_be_bytes).chain(values.iter().copied()).collect()
}

fn named(list: Vec<(&str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    list.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let _ = packer.write_all(bytes);
    packer.finish().unwrap_or_default()
}

fn tarred(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        let _ = archive.append_data(&mut header, name, *bytes);
    }
    archive.into_inner().unwrap_or_default()
}

const TOKENIZER: &str = r###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,"content":"[UNK]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":null,"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1,"b":2,"ab":3}}}"###;

fn read_weights(path: &Path) -> Result<()> {
    weights::open(path)?.tensors()?;
    Ok(())
}

fn read_table(path: &Path) -> Result<()> {
    let mut reader = TableReader::open(&TableSource::Path(path.to_owned()), &TableForm::default())?;
    // A list is no column of a table, and is refused where it is asked for.
    let names: Vec<String> =
        reader.head().names.iter().filter(|name| !name.starts_with("tags")).cloned().collect();
    let wanted = Wanted::Anything { limit: 100 };
    let requests: Vec<ColumnRequest> =
        names.iter().map(|name| ColumnRequest { name: name.clone(), wanted: wanted.clone() }).collect();
    read_all(&mut reader, &requests, 2)?;
    Ok(())
}

/// Opens image data at a path and decodes all of it.
fn read_images(path: &Path) -> Result<()> {
    let mut config: ImageDataConfig = serde_json::from_value(json!({ "path": path, "val_fraction": 0.0 }))?;
    config.resolve()?;
    let opened = config.open(0)?;
    let data: &ImageDataset = &opened.splits.train;
    for sample in 0..data.len() {
        data.batch(&[sample], Draw { seed: 0, epoch: 0, train: false, copies: &[] })?;
    }
    Ok(())
}

fn targets() -> Vec<Target> {
    let small_csv = b"id,name,value\n1,\"a, b\",2.5\n2,c,\n3,\"d\"\"e\nf\",-1e-3\n4,g,nan\n".to_vec();
    let wide_csv =
        (0..60).map(|row| format!("{row};{};{}\r\n", row * 7 % 5, f64::from(row) / 3.0)).collect::<String>();
    let wide_csv = format!("a;b;c\r\n{wide_csv}").into_bytes();
    let pixels: Vec<u8> = (0..4 * 12 * 12).map(|place: u32| (place * 37 % 251) as u8).collect();
    let cifar: Vec<u8> =
        (0..3 * 3073u32).map(|place| if place % 3073 == 0 { 3 } else { (place % 250) as u8 }).collect();
    let images = files("images", &["png", "jpg", "gif", "bmp", "webp"]);
    let picture = |name: &str| {
        images.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    };
    let (png, jpg) = (picture("color.png"), picture("color.jpg"));
    let array = |tensor: &tch::Tensor| npy::to_npy(tensor).unwrap_or_default();
    let numbers = tch::Tensor::arange(24, (tch::Kind::Float, Device::Cpu)).view([2, 3, 4]);
    let npz = {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::STORE);
        for name in ["a.npy", "b.npy"] {
            let _ = archive
                .start_file(name, options)
                .map_err(|_| ())
                .and_then(|()| archive.write_all(&array(&numbers)).map_err(|_| ()));
        }
        archive.finish().map(std::io::Cursor::into_inner).unwrap_or_default()
    };
    let mut wave =
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0\x80\x3e\0\0\0\0\0\0\x04\0\x10\0data\x40\0\0\0".to_vec();
    wave.extend(0..64u8);
    vec![
        Target {
            name: "weights",
            share: 12,
            read: read_weights,
            seeds: files("weights", &["pth", "pkl", "bin"]),
        },
        Target {
            name: "safetensors",
            share: 6,
            read: read_weights,
            seeds: [files("weights", &["safetensors"]), files("torchscript", &["safetensors"])].concat(),
        },
        Target {
            name: "torchscript",
            share: 12,
            read: |path| {
                inspect(path)?;
                read_weights(path)
            },
            seeds: [files("torchscript", &["pt"]), files("weights", &["pt"])].concat(),
        },
        Target {
            name: "npy",
            share: 6,
            read: |path| npy::read_npy(path).map(|_| ()),
            seeds: named(vec![
                ("a.npy", array(&numbers)),
                ("b.npy", array(&numbers.to_kind(tch::Kind::Bool))),
                ("c.npy", array(&tch::Tensor::from(3i64))),
            ]),
        },
        Target {
            name: "npz",
            share: 5,
            read: |path| npy::read_npz(path).map(|_| ()),
            seeds: named(vec![("a.npz", npz)]),
        },
        Target {
            name: "wav",
            share: 4,
            read: |path| wav::parse("w", &std::fs::read(path)?).map(|_| ()),
            seeds: named(vec![("a.wav", wave)]),
        },
        Target {
            name: "csv",
            share: 10,
            read: read_table,
            seeds: named(vec![("a.csv.gz", gzipped(&wide_csv)), ("b.csv", small_csv), ("c.csv", wide_csv)]),
        },
        Target { name: "parquet", share: 10, read: read_table, seeds: files("tables", &["parquet"]) },
        Target {
            name: "images",
            share: 12,
            read: |path| {
                let bytes = std::fs::read(path)?;
                tch_suite::data::decode::decode("image", &bytes).map(|_| ())
            },
            seeds: images.clone(),
        },
        Target {
            name: "idx",
            share: 5,
            read: |path| read_images(path.parent().context("no folder")?),
            seeds: named(vec![
                ("train-images-idx3-ubyte", idx(2051, &[4, 12, 12], &pixels)),
                ("train-labels-idx1-ubyte", idx(2049, &[4], &[0, 1, 2, 3])),
            ]),
        },
        Target {
            name: "cifar",
            share: 3,
            read: read_images,
            seeds: named(vec![("data_batch_1.bin", cifar)]),
        },
        Target {
            name: "tar",
            share: 4,
            read: read_images,
            seeds: {
                let archive = tarred(&[("train/a/1.png", &png), ("train/b/2.jpg", &jpg)]);
                named(vec![("a.tar", archive.clone()), ("b.tar.gz", gzipped(&archive))])
            },
        },
        Target {
            name: "list",
            share: 3,
            read: read_images,
            seeds: named(vec![
                ("list.csv", b"path,label\none.png,a\ntwo.png,b\n".to_vec()),
                (
                    "list.jsonl",
                    b"{\"path\": \"one.png\", \"label\": \"a\"}\n{\"path\": \"two.png\", \"label\": \"b\"}\n"
                        .to_vec(),
                ),
            ]),
        },
        Target {
            name: "text",
            share: 3,
            read: |path| read_rows(path, &TextForm::default(), &["text", "label"]).map(|_| ()),
            seeds: named(vec![
                ("a.tsv", b"text\tlabel\none two\ta\n\"three\"\tb\n".to_vec()),
                ("b.csv", b"label,text\na,\"one, two\"\nb,three\n".to_vec()),
                (
                    "c.jsonl",
                    b"{\"text\": \"one\", \"label\": \"a\"}\n{\"text\": \"two\", \"label\": \"b\"}\n"
                        .to_vec(),
                ),
            ]),
        },
        Target {
            name: "tokenizer",
            share: 3,
            read: |path| {
                let tokenizer = TextTokenizer::open(path)?;
                std::hint::black_box(tokenizer.to_json()?.len());
                Ok(())
            },
            seeds: named(vec![
                ("tokenizer.json", TOKENIZER.as_bytes().to_vec()),
                ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n##c\n".to_vec()),
            ]),
        },
        Target {
            name: "recipe",
            share: 2,
            read: |path| {
                let value = tch_suite::recipe::find(path.to_str().context("a path")?, &[])?;
                let _: tch_suite::cli::FamilyRecipe<tch_suite::cli::cnn::Cnn> =
                    tch_suite::recipe::typed(value, "recipe")?;
                Ok(())
            },
            seeds: named(vec![(
                "recipe.json",
                include_bytes!("../models/cnn/resnet20-cifar10.json").to_vec(),
            )]),
        },
        // Not ours: counted, not judged.
        Target {
            name: "jit-load",
            share: 1,
            read: |path| ScriptModule::load(path, Device::Cpu).map(|_| ()),
            seeds: [files("torchscript", &["pt"]), files("weights", &["pt"])].concat(),
        },
    ]
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// The input of that number.
fn input(target: &Target, number: u64) -> (String, Vec<u8>) {
    let name = target.name.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(131).wrapping_add(byte.into()));
    let mut random = Random(name ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
    // The first inputs are the seeds themselves: one that nobody can read would test little.
    if let Some((file, bytes)) = target.seeds.get(number as usize) {
        return (file.clone(), bytes.clone());
    }
    let (file, bytes) = &target.seeds[random.below(target.seeds.len())];
    let mut bytes = bytes.clone();
    for _ in 0..[1, 1, 1, 2, 3, 4][random.below(6)] {
        mutate(&mut bytes, target, &mut random);
    }
    (file.clone(), bytes)
}

fn mutate(bytes: &mut Vec<u8>, target: &Target, random: &mut Random) {
    const WORDS: [u64; 12] =
        [0, 1, 2, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];
    if bytes.is_empty() {
        bytes.push(random.next() as u8);
        return;
    }
    let place = random.below(bytes.len());
    match random.below(9) {
        0 => bytes[place] ^= 1 << random.below(8),
        1 => bytes[place] = random.next() as u8,
        2 => bytes.truncate(place),
        3 => {
            let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - place);
            let word = WORDS[random.below(WORDS.len())];
            let word = if random.below(2) == 0 { word.to_le_bytes() } else { word.to_be_bytes() };
            let start = if random.below(2) == 0 { 0 } else { 8 - width };
            bytes[place..place + width].copy_from_slice(&word[start..start + width]);
        }
        4 => {
            let end = (place + 1 + random.below(64)).min(bytes.len());
            let copy = bytes[place..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
        }
        5 => {
            let end = (place + 1 + random.below(64)).min(bytes.len());
            bytes.drain(place..end);
        }
        6 => {
            // A digit becomes another, or many.
            if let Some(found) = bytes[place..].iter().position(u8::is_ascii_digit) {
                let digits = [&b"9"[..], b"0", b"99999999999999999999", b"-1", b"1e999", b"4294967296"];
                bytes.splice(
                    place + found..=place + found,
                    digits[random.below(digits.len())].iter().copied(),
                );
            }
        }
        7 => {
            // A part of another seed.
            let (_, other) = &target.seeds[random.below(target.seeds.len())];
            let start = random.below(other.len());
            let end = (start + random.below(256)).min(other.len());
            bytes.splice(place..place, other[start..end].iter().copied());
        }
        _ => {
            let end = (place + 1 + random.below(16)).min(bytes.len());
            let value = [0, 0xff, b' ', b'"', b'\n', b'['][random.below(6)];
            bytes[place..end].fill(value);
        }
    }
}

/// What a child process says of an input: `begin N`, then `end N OUTCOME GROWTH LENGTH`.
fn child(name: &str, first: u64, last: u64, folder: &Path) -> Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    tch::set_num_threads(1);
    let all = targets();
    let target = all.iter().find(|target| target.name == name).context("no such reader")?;
    let out = std::io::stdout();
    for number in first..last {
        let (file, bytes) = input(target, number);
        // What belongs together lies together.
        for (name, seed) in target.seeds.iter().filter(|_| name == "idx") {
            std::fs::write(folder.join(name), seed)?;
        }
        let path = folder.join(&file);
        std::fs::write(&path, &bytes)?;
        let before = reset_peak();
        writeln!(out.lock(), "begin {number}")?;
        let outcome = std::panic::catch_unwind(|| (target.read)(&path));
        let growth = peak().saturating_sub(before);
        let told = match outcome {
            Ok(Ok(())) => "read",
            Ok(Err(error)) if error.to_string().contains("panicked") => "panic",
            Ok(Err(_)) => "refused",
            Err(_) => "panic",
        };
        writeln!(out.lock(), "end {number} {told} {growth} {}", bytes.len())?;
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

/// A number of `/proc/self/status` in bytes.
fn status(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
    line.trim_start_matches(':')
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0u64)
        << 10
}

/// Forgets the highest memory so far, and tells what there is now.
fn reset_peak() -> u64 {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    status("VmRSS")
}

fn peak() -> u64 {
    status("VmHWM")
}

/// What happened to the inputs of a reader.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<String, u64>,
    /// Inputs that ended a process, panicked, or took too much memory.
    bad: Vec<String>,
    largest: u64,
}

fn judge(target: &Target, inputs: u64, first: u64, folder: &Path) -> Result<Tally> {
    let mut tally = Tally::default();
    let (mut next, last) = (first, first + inputs);
    let mut seeds_read = 0;
    while next < last {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--child", target.name, &next.to_string(), &last.to_string()])
            .arg(folder)
            .env("OMP_WAIT_POLICY", "passive")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let mut begun = None;
        for line in lines {
            let line = line?;
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["begin", number] => begun = number.parse::<u64>().ok(),
                ["end", number, outcome, growth, length] => {
                    begun = None;
                    next = number.parse::<u64>()? + 1;
                    *tally.outcomes.entry((*outcome).to_owned()).or_default() += 1;
                    let (growth, length) = (growth.parse::<u64>()?, length.parse::<u64>()?);
                    tally.largest = tally.largest.max(growth);
                    seeds_read += u64::from(*outcome == "read" && next <= target.seeds.len() as u64);
                    if *outcome == "panic" {
                        tally.bad.push(format!("{number} panics"));
                    }
                    if growth > TIMES * length + BESIDES {
                        tally.bad.push(format!("{number} takes {} MiB for {length} bytes", growth >> 20));
                    }
                }
                _ => {}
            }
        }
        let ended = process.wait()?;
        match begun {
            Some(number) => {
                *tally.outcomes.entry("ended the process".to_owned()).or_default() += 1;
                tally.bad.push(format!("{number} ends the process ({ended})"));
                next = number + 1;
            }
            None if !ended.success() => return Err(anyhow!("{}: a child failed: {ended}", target.name)),
            None => {}
        }
    }
    if first == 0 && seeds_read == 0 {
        tally.bad.push("none of the undamaged files can be read".to_owned());
    }
    Ok(tally)
}

fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, first, last, folder] = arguments.as_slice()
        && flag == "--child"
    {
        child(name, first.parse()?, last.parse()?, Path::new(folder))?;
        return Ok(true);
    }
    let value = |flag: &str| {
        arguments.iter().position(|known| known == flag).and_then(|place| arguments.get(place + 1)).cloned()
    };
    let inputs: u64 = value("--inputs").map_or(Ok(100_000), |text| text.parse())?;
    let first: u64 = value("--first").map_or(Ok(0), |text| text.parse())?;
    let only = value("--only");
    let chosen: Vec<Target> = targets()
        .into_iter()
        .filter(|target| only.as_deref().is_none_or(|only| only.split(',').any(|name| name == target.name)))
        .collect();
    let shares: u64 = chosen.iter().map(|target| target.share).sum();
    let folder = std::env::temp_dir().join(format!("tch-suite-fuzz-{}", std::process::id()));
    let mut clean = true;
    for target in &chosen {
        std::fs::create_dir_all(&folder)?;
        for (name, seed) in [("one.png", 0usize), ("two.png", 1)] {
            // What a list of images names.
            let pictures = files("images", &["png"]);
            std::fs::write(folder.join(name), &pictures[seed.min(pictures.len() - 1)].1)?;
        }
        let began = Instant::now();
        let count = inputs * target.share / shares;
        let tally = judge(target, count, first, &folder)?;
        println!(
            "{}: {count} inputs in {:.0} s, {:?}, at most {} MiB",
            target.name,
            began.elapsed().as_secs_f64(),
            tally.outcomes,
            tally.largest >> 20
        );
        for bad in tally.bad.iter().take(20) {
            println!("  {bad}");
        }
        clean &= tally.bad.is_empty() || target.name == "jit-load";
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(clean)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz_readers: {error:#}");
            ExitCode::FAILURE
        }
    }
}
