//! Criterion benches of the suite's own parts: what runs beside libtorch's kernels in each step, batch or file. `cargo bench --bench parts [FILTER]`.

use std::hint::black_box;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, RgbImage};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_suite::cli::cnn::Cnn;
use tch_suite::cli::{Family, FamilyRecipe};
use tch_suite::data::Dataset;
use tch_suite::data::Draw;
use tch_suite::data::augment::{AugmentConfig, Context};
use tch_suite::data::decode::{ImageForm, RawImage, decode};
use tch_suite::data::images::ImageDataConfig;
use tch_suite::data::loader::{Loader, LoaderConfig, Position};
use tch_suite::data::order::Shuffled;
use tch_suite::data::random::Random;
use tch_suite::data::resize::Resize;
use tch_suite::data::table::{ColumnRequest, TableForm, TableReader, TableSource, Wanted, read_all};
use tch_suite::data::text::{EncodeOptions, TextInput, TextTokenizer, TokenizerConfig};
use tch_suite::models::Parameters;
use tch_suite::native::dropout::dropout;
use tch_suite::native::system;
use tch_suite::recipe;
use tch_suite::scoring::bleu::{Bleu, Settings};
use tch_suite::tasks::classification::ClassificationEvaluator;
use tch_suite::tasks::{Evaluator, Outcome, Task};
use tch_suite::training::config::TrainingConfig;
use tch_suite::training::optimizer::Optimizer;
use tch_suite::weights::{NamedTensors, write_safetensors};

/// A picture with edges, surfaces and noise, so that it is as hard to decode as a photograph.
fn picture(width: u32, height: u32) -> RgbImage {
    let mut noise = 1u32;
    RgbImage::from_fn(width, height, |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let wave = ((f64::from(x) / 17.0).sin() + (f64::from(y) / 23.0).cos()) * 50.0 + 120.0;
        let edge = if (x / 60 + y / 45) % 2 == 0 { 20.0 } else { -20.0 };
        let value = |channel: f64| (wave + edge * channel + f64::from(noise >> 28)).clamp(0.0, 255.0) as u8;
        image::Rgb([value(1.0), value(0.5), value(-1.0)])
    })
}

fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut content = Vec::new();
    JpegEncoder::new_with_quality(Cursor::new(&mut content), 90)
        .encode(picture(width, height).as_raw(), width, height, ExtendedColorType::Rgb8)
        .expect("an image can be encoded");
    content
}

/// A folder for the files of these benches, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tch-suite-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the folder of temporary files can be written");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decoding");
    for (name, width, height) in [("32 x 32", 32, 32), ("500 x 375", 500, 375)] {
        let content = jpeg(width, height);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("JPEG of {name}"), |bencher| {
            bencher.iter(|| decode("bench", black_box(&content)).expect("it was just encoded"));
        });
    }
    let image = RawImage::Decoded(decode("bench", &jpeg(500, 375)).expect("it was just encoded"));
    let form = ImageForm { channels: 3, size: [224, 224] };
    group.bench_function("500 x 375 scaled to 224 x 224", |bencher| {
        let mut pixels = Vec::new();
        bencher.iter(|| {
            pixels.clear();
            image.append_fitted(form, Resize::default(), &mut pixels).expect("it has three channels");
            black_box(pixels.len())
        });
    });
}

fn augmentation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("augmentation");
    let all = [
        ("crop and flip", json!({ "crop_padding": 4, "flip": true })),
        ("RandAugment", json!({ "policy": { "name": "rand-augment" } })),
        ("TrivialAugment", json!({ "policy": { "name": "trivial-augment" } })),
        (
            "colours",
            json!({ "color_jitter": { "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1 } }),
        ),
    ];
    for side in [32usize, 224] {
        let form = ImageForm { channels: 3, size: [side, side] };
        let image = RawImage::Decoded(image::DynamicImage::from(picture(side as u32, side as u32)));
        let mut pixels = Vec::new();
        image.append_part(image.whole(), 3, &mut pixels).expect("it has three channels");
        let context = Context { form, mean: &[0.5; 3], std: &[0.25; 3] };
        for (name, config) in &all {
            let config: AugmentConfig =
                recipe::typed(config.clone(), "augment").expect("a valid configuration");
            group.throughput(Throughput::Elements(1));
            group.bench_function(format!("{name}, {side} x {side}"), |bencher| {
                let mut spare = Vec::new();
                let mut sample = 0;
                let draw = Draw { seed: 0, epoch: 0, train: true, copies: &[] };
                bencher.iter_batched_ref(
                    || pixels.clone(),
                    |image| {
                        sample += 1;
                        let mut random = Random::of_sample(draw, sample, 0);
                        for operation in config.draw(form, &mut random) {
                            operation.apply(image, &mut spare, context, &mut random);
                        }
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

fn loader(criterion: &mut Criterion) {
    const BATCH: usize = 128;
    let scratch = Scratch::new("loader");
    for class in ["first", "second"] {
        let folder = scratch.path().join("train").join(class);
        std::fs::create_dir_all(&folder).expect("the folder of temporary files can be written");
        let content = jpeg(32, 32);
        for number in 0..512 {
            std::fs::write(folder.join(format!("{number}.jpg")), &content).expect("the disk has room");
        }
    }
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, cache) in [("from JPEG files", 0), ("from kept pixels", 64)] {
        let config = json!({
            "format": "folder", "path": scratch.path(), "val_fraction": 0, "mean": [0.5], "std": [0.25],
            "augment": { "crop_padding": 4, "flip": true }, "cache_mb": cache,
        });
        let data: ImageDataConfig = recipe::typed(config, "data").expect("a valid configuration");
        let images = Arc::new(data.open(0).expect("the folder was just made").splits.train);
        let sampler = Shuffled { len: images.len(), batch_size: BATCH, seed: 0 };
        let config = LoaderConfig { workers: 0, ahead: 4, seed: 0, train: true };
        let mut loader = Loader::new(images, Arc::new(sampler), config, Position { epoch: 0, batch: 0 })
            .expect("threads can be started");
        group.bench_function(format!("batch of {BATCH}, 32 x 32, {name}, 1 thread"), |bencher| {
            bencher.iter(|| loader.next_batch().expect("the files are readable"));
        });
    }
}

fn tables(criterion: &mut Criterion) {
    const ROWS: usize = 50_000;
    const COLUMNS: usize = 20;
    let scratch = Scratch::new("tables");
    let path = scratch.path().join("numbers.csv");
    let mut text = (0..COLUMNS).map(|column| format!("x{column}")).collect::<Vec<_>>().join(",") + "\n";
    for row in 0..ROWS {
        let value = |column: usize| format!("{:.6}", ((row * 31 + column * 17) as f64 * 0.37).sin() * 100.0);
        text += &(0..COLUMNS).map(value).collect::<Vec<_>>().join(",");
        text.push('\n');
    }
    std::fs::write(&path, &text).expect("the disk has room");
    let requests: Vec<ColumnRequest> = (0..COLUMNS)
        .map(|column| ColumnRequest { name: format!("x{column}"), wanted: Wanted::Number })
        .collect();
    let source = TableSource::Path(path);
    let mut group = criterion.benchmark_group("tables");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for threads in [1, 2] {
        group.bench_function(format!("CSV of {ROWS} x {COLUMNS}, {threads} threads"), |bencher| {
            bencher.iter(|| {
                let mut reader =
                    TableReader::open(&source, &TableForm::default()).expect("the file is there");
                read_all(&mut reader, &requests, threads).expect("it holds numbers")
            });
        });
    }
}

fn tokenisation(criterion: &mut Criterion) {
    let words = [
        "the",
        "film",
        "is",
        "a",
        "wonderfully",
        "acted",
        "drama",
        "of",
        "unlikely",
        "friends",
        "and",
        "quiet",
    ];
    let texts: Vec<String> = (0..1000usize)
        .map(|number| {
            (0..19).map(|word| words[(number * 7 + word * word) % words.len()]).collect::<Vec<_>>().join(" ")
        })
        .collect();
    let bytes: usize = texts.iter().map(String::len).sum();
    let mut group = criterion.benchmark_group("tokenisation");
    group.throughput(Throughput::Bytes(bytes as u64));
    for kind in ["bpe", "word-piece", "unigram", "characters"] {
        let config: TokenizerConfig = recipe::typed(json!({ "kind": kind, "vocab_size": 500 }), "tokenizer")
            .expect("a valid configuration");
        let tokenizer = TextTokenizer::train(&config, texts.iter().map(String::as_str))
            .expect("there is text to learn from");
        let inputs: Vec<TextInput> = texts.iter().map(|text| TextInput::single(text)).collect();
        group.bench_function(format!("{kind}, 1,000 sentences"), |bencher| {
            bencher.iter(|| tokenizer.encode_all(&inputs, EncodeOptions::default()).expect("known letters"));
        });
    }
}

fn metrics(criterion: &mut Criterion) {
    const SAMPLES: i64 = 10_000;
    let mut group = criterion.benchmark_group("metrics");
    group.throughput(Throughput::Elements(SAMPLES as u64));
    let prediction = Tensor::randn([SAMPLES, 10], (Kind::Float, Device::Cpu));
    let target = Tensor::randint(10, [SAMPLES], (Kind::Int64, Device::Cpu));
    let samples: Vec<usize> = (0..SAMPLES as usize).collect();
    let classes: Vec<String> = (0..10).map(|class| class.to_string()).collect();
    group.bench_function("classification, 10,000 samples of 10 classes", |bencher| {
        bencher.iter(|| {
            let mut evaluator = Box::new(ClassificationEvaluator::new(classes.clone()));
            let outcome = Outcome { prediction: prediction.shallow_clone(), target: target.shallow_clone() };
            evaluator.add(&samples, &outcome).expect("the shapes fit");
            evaluator.finish().expect("there are samples")
        });
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("BLEU, 1,000 sentences", |bencher| {
        bencher.iter(|| {
            let mut bleu = Bleu::new(Settings::default());
            for _ in 0..1000 {
                bleu.add(
                    black_box("Two young men in black shirts stand in front of a kitchen ."),
                    &["Two young , white males are outside near many bushes ."],
                );
            }
            bleu.score()
        });
    });
}

/// The tensors of ResNet-20, and those that are trained, with gradients.
fn network() -> (NamedTensors, Vec<(String, Tensor)>) {
    let recipe = json!({
        "name": "bench",
        "model": { "name": "resnet20", "num_classes": 10, "in_channels": 3, "image_size": [32, 32] },
        "data": { "format": "mnist-mini", "mean": [0.5], "std": [0.25] },
    });
    let recipe: FamilyRecipe<Cnn> = recipe::typed(recipe, "bench").expect("a valid recipe");
    let parameters = Parameters::new(Device::Cpu);
    let task = Cnn::build(&recipe, parameters).expect("the model can be made");
    let all = task.parameters().entries().into_iter().map(|entry| (entry.name, entry.tensor)).collect();
    let trained = task.parameters().trainable();
    for (_, tensor) in &trained {
        (tensor * tensor).sum(Kind::Float).backward();
    }
    (all, trained)
}

fn updates(criterion: &mut Criterion) {
    let (all, trained) = network();
    let mut group = criterion.benchmark_group("updates");
    let elements: usize = trained.iter().map(|(_, tensor)| tensor.numel()).sum();
    group.throughput(Throughput::Elements(elements as u64));
    for optimizer in ["sgd", "adam", "adamw", "rmsprop", "adagrad"] {
        let config: TrainingConfig =
            recipe::typed(json!({ "optimizer": { "name": optimizer, "lr": 1e-9 } }), "training")
                .expect("a valid configuration");
        let optimizer_of_network = Optimizer::new(&config, &trained, None).expect("there are parameters");
        group.bench_function(format!("{optimizer}, ResNet-20"), |bencher| {
            bencher.iter(|| optimizer_of_network.step(1e-9, None).expect("there are gradients"));
        });
    }
    let scratch = Scratch::new("checkpoint");
    let path = scratch.path().join("model.safetensors");
    group.throughput(Throughput::Bytes(4 * elements as u64));
    group.bench_function("weights of ResNet-20 written and synced", |bencher| {
        bencher.iter(|| write_safetensors(&path, &all).expect("the disk has room"));
    });
}

fn masks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dropout");
    for kind in [Kind::Float, Kind::BFloat16] {
        let input = Tensor::randn([2048, 1536], (Kind::Float, Device::Cpu)).to_kind(kind);
        group.throughput(Throughput::Elements(input.numel() as u64));
        group.bench_function(format!("here, {kind:?}"), |bencher| {
            bencher.iter(|| dropout(&input, 0.1).expect("a probability"));
        });
        group.bench_function(format!("libtorch, {kind:?}"), |bencher| {
            bencher.iter(|| input.dropout(0.1, true));
        });
    }
}

fn configured() -> Criterion {
    system::tune_heap();
    Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1))
}

criterion_group! {
    name = parts;
    config = configured();
    targets = decoding, augmentation, loader, tables, tokenisation, metrics, updates, masks
}
criterion_main!(parts);
