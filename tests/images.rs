//! Image data: every form that `--data` takes leads to the same training, decoded pixels are Pillow's, and what is wrong is named.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch_suite::data::decode::{ImageForm, RawImage, decode};
use tch_suite::data::resize::Resize;

use crate::support::process::{Finished, assert_refused, cnn, done, run};
use crate::support::runs::{read_json, resume, try_train};
use crate::support::small_data::{CLASSES, Noise};
use crate::support::{Scratch, data, fixture};

/// A file's name and content.
type NamedFile = (String, Vec<u8>);
/// An image's class and planes.
type Image = (usize, Vec<u8>);

/// Names of the classes, in order.
const NAMES: [&str; CLASSES] = ["ant", "bee", "cat", "dog"];
/// Height and width of the made images: CIFAR's, so that they can be written in its form too.
const SIDE: usize = 32;
/// Images of each class in the one tree.
const EACH: usize = 8;

/// `[3, SIDE, SIDE]` bytes.
fn planes(class: usize, noise: &mut Noise) -> Vec<u8> {
    let value = |channel: usize| if channel == class % 3 { 90 } else { 20 * class as u64 };
    (0..3 * SIDE * SIDE).map(|pixel| (value(pixel / (SIDE * SIDE)) + noise.below(60)) as u8).collect()
}

/// Planes as a PNG file.
fn png(planes: &[u8]) -> Vec<u8> {
    let pixel = |x: u32, y: u32| {
        let position = y as usize * SIDE + x as usize;
        image::Rgb([0, 1, 2].map(|channel| planes[channel * SIDE * SIDE + position]))
    };
    let mut file = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(SIDE as u32, SIDE as u32, pixel);
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// Writes a file with its folders.
fn write(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// A tar archive of files by name.
fn tar_of<N: AsRef<str>>(files: &[(N, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name.as_ref(), content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Made images, and a folder for what is made of them.
struct Pictures {
    folder: Scratch,
    /// Class and planes, class by class.
    images: Vec<Image>,
}

impl Pictures {
    fn new() -> Pictures {
        let mut noise = Noise::new(3);
        let classes = (0..CLASSES).flat_map(|class| std::iter::repeat_n(class, EACH));
        Pictures {
            folder: Scratch::new(),
            images: classes.map(|class| (class, planes(class, &mut noise))).collect(),
        }
    }

    /// `CLASS/FILE` with the content of each image, in order.
    fn files(&self) -> Vec<NamedFile> {
        let named = |(number, (class, planes)): (usize, &Image)| {
            (format!("{}/{number:03}.png", NAMES[*class]), png(planes))
        };
        self.images.iter().enumerate().map(named).collect()
    }

    /// The images as `train`, `val` and `test`: of each class five, two and one.
    fn in_parts(&self) -> Vec<NamedFile> {
        let files = self.files().into_iter().enumerate();
        let mut files: Vec<_> = files
            .map(|(number, (name, content))| {
                let part = match number % EACH {
                    0..5 => "train",
                    5..7 => "val",
                    _ => "test",
                };
                (format!("{part}/{name}"), content)
            })
            .collect();
        files.sort();
        files
    }

    /// CIFAR's records of some images.
    fn records(&self, images: &[Image]) -> Vec<u8> {
        images.iter().flat_map(|(class, planes)| [&[*class as u8], planes.as_slice()].concat()).collect()
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.join(name);
        write(&path, content);
        path
    }

    fn write_all(&self, name: &str, files: &[NamedFile]) -> PathBuf {
        for (file, content) in files {
            self.write(&format!("{name}/{file}"), content);
        }
        self.folder.join(name)
    }

    /// The one tree in a folder.
    fn tree(&self, name: &str) -> PathBuf {
        self.write_all(name, &self.files())
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.join(format!("run-{name}"))
    }

    fn try_train(&self, data: &Path, run: &str, settings: &[&str]) -> Finished {
        let common = ["data.format=auto", "data.val_fraction=0.25", "training.steps=3"];
        try_train("mlp", data, &self.run(run), &[&common, settings].concat())
    }

    /// A short training on the data at a path: the weights it ends with and its scores.
    fn train(&self, data: &Path, run: &str) -> (Vec<u8>, Value) {
        let finished = self.try_train(data, run, &[]);
        assert_eq!(finished.code, Some(0), "{run}: {}", finished.stderr);
        let run = self.run(run);
        let weights = std::fs::read(run.join("checkpoints/last/model.safetensors")).unwrap();
        let mut summary = read_json(&run.join("summary.json"));
        (weights, json!([summary["last"].take(), summary["test"].take()]))
    }

    /// Training is refused with one sentence; nothing else is printed.
    fn refuses(&self, data: &Path, settings: &[&str], words: &[&str]) {
        assert_refused(&self.try_train(data, "refused", settings), 2, words);
        assert!(!self.run("refused").exists(), "{words:?} leaves a run folder");
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn every_form_of_one_set_trains_the_same() {
    let pictures = Pictures::new();
    let (tree, files) = (pictures.tree("tree"), pictures.files());
    let expected = pictures.train(&tree, "tree");
    let train = |data: &Path, run: &str| {
        let found = pictures.train(data, run);
        assert!(found.0 == expected.0, "{run}: other weights");
        assert_eq!(found.1, expected.1, "{run}");
    };
    let archive = tar_of(&files);
    train(&pictures.write("archive.tar", &archive), "tar");
    train(&pictures.write("archive.tar.gz", &gzipped(&archive)), "tar-gz");
    let inside: Vec<_> =
        files.iter().map(|(name, content)| (format!("set/{name}"), content.clone())).collect();
    train(&pictures.write("inside.tgz", &gzipped(&tar_of(&inside))), "tgz with a folder around");

    // WebDataset: a picture and its class under one key, in shards.
    for (form, label) in [("names", NAMES), ("numbers", ["0", "1", "2", "3"])] {
        for (shard, images) in pictures.images.chunks(12).enumerate() {
            let members: Vec<_> = images
                .iter()
                .enumerate()
                .flat_map(|(number, (class, planes))| {
                    let key = format!("{shard}{number:04}");
                    let class = label[*class].as_bytes().to_vec();
                    [(format!("{key}.png"), png(planes)), (format!("{key}.cls"), class)]
                })
                .collect();
            pictures.write(&format!("shards-{form}/train-{shard:03}.tar"), &tar_of(&members));
        }
        train(&pictures.folder.join(format!("shards-{form}")), &format!("shards-{form}"));
    }

    // Lists, with paths relative to the list, labels as names and as numbers.
    let rows = |separator: char, label: &dyn Fn(usize) -> String| -> String {
        let row = |((name, _), (class, _)): (&NamedFile, &Image)| {
            format!("tree/{name}{separator}{}\n", label(*class))
        };
        let rows: String = files.iter().zip(&pictures.images).map(row).collect();
        format!("path{separator}label\n{rows}")
    };
    let (name, number) = (|class: usize| NAMES[class].to_owned(), |class: usize| class.to_string());
    train(&pictures.write("list.csv", rows(',', &name).as_bytes()), "csv");
    train(&pictures.write("list.tsv", rows('\t', &number).as_bytes()), "tsv");
    let lines: String = files
        .iter()
        .zip(&pictures.images)
        .map(|((name, _), (class, _))| {
            json!({"path": format!("tree/{name}"), "label": class}).to_string() + "\n"
        })
        .collect();
    train(&pictures.write("list.jsonl", lines.as_bytes()), "jsonl");

    // CIFAR's binary files.
    let (first, second) = pictures.images.split_at(20);
    let (first, second) = (pictures.records(first), pictures.records(second));
    let meta = NAMES.join("\n").into_bytes();
    let members = [
        ("data_batch_1.bin", first.clone()),
        ("data_batch_2.bin", second.clone()),
        ("batches.meta.txt", meta),
    ];
    for (name, content) in &members {
        pictures.write(&format!("cifar/{name}"), content);
        pictures.write(&format!("unpacked/cifar-10-batches-bin/{name}"), content);
    }
    train(&pictures.folder.join("cifar"), "cifar folder");
    train(&pictures.folder.join("unpacked"), "unpacked cifar archive");
    let members = members.map(|(name, content)| (format!("cifar-10-batches-bin/{name}"), content));
    train(&pictures.write("cifar.tar.gz", &gzipped(&tar_of(&members))), "cifar archive");
    train(&pictures.write("one.bin", &[first, second].concat()), "cifar file");
}

#[test]
fn parts_are_found_in_every_form() {
    let pictures = Pictures::new();
    let files = pictures.in_parts();
    let folder = pictures.write_all("parts", &files);
    let expected = pictures.train(&folder, "parts");
    assert_ne!(expected.1[1], Value::Null, "there is a test part");
    for (split, samples) in [("train", 20), ("validation", 8), ("test", 4)] {
        let run = path(&pictures.run("parts"));
        let found = done(["eval", &run, "--split", split, "--format", "json"]).stdout;
        assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["samples"], samples, "{split}");
    }
    let archive = pictures.write("parts.tar", &tar_of(&files));
    assert!(pictures.train(&archive, "archive") == expected);
    let row = |(name, _): &NamedFile| {
        let words: Vec<&str> = name.split('/').collect();
        format!("{},parts/{name},{}\n", words[0], words[1])
    };
    let rows: String = files.iter().map(row).collect();
    // A byte order mark, and columns in another order.
    let list = pictures.write("parts.csv", format!("\u{feff}split,path,label\n{rows}").as_bytes());
    assert!(pictures.train(&list, "list") == expected);
}

#[test]
fn a_run_goes_on_with_its_data_in_another_form() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    pictures.train(&tree, "run");
    let archive = pictures.write("archive.tar", &tar_of(&pictures.files()));
    std::fs::remove_dir_all(&tree).unwrap();
    resume(&pictures.run("run"), &["--data", &path(&archive), "--steps", "5"]);
    let (planned, whole) = (pictures.tree("tree"), pictures.run("planned"));
    let settings = ["training.steps=5"];
    assert_eq!(pictures.try_train(&planned, "planned", &settings).code, Some(0));
    let weights = |run: &Path| std::fs::read(run.join("checkpoints/last/model.safetensors")).unwrap();
    assert!(weights(&pictures.run("run")) == weights(&whole));
}

#[test]
fn the_batches_of_a_cifar_file_hold_its_records() {
    let pictures = Pictures::new();
    let made = pictures.write("made.bin", &pictures.records(&pictures.images));
    let real = data("cifar10/cifar10-sample-1000.bin");
    for file in [Some(made), real].into_iter().flatten() {
        let content = std::fs::read(&file).unwrap();
        let out = pictures.folder.join("batches.safetensors");
        let arguments = ["batches", "--quiet", "--recipe", "keras-cnn-cifar10", "--count", "2"];
        let whole =
            ["--batch-size", "16", "--val-fraction", "0", "--data", &path(&file), "--file", &path(&out)];
        done(arguments.into_iter().chain(whole));
        let batches = tch_suite::weights::read_safetensors(&out).unwrap();
        for number in 0..2 {
            let labels: Vec<i64> = Vec::try_from(&batches[&format!("labels.{number}")]).unwrap();
            let images = (&batches[&format!("images.{number}")] * 255.0).round().to_kind(tch::Kind::Uint8);
            assert_eq!(images.size(), [16, 3, 32, 32]);
            for (position, label) in labels.into_iter().enumerate() {
                let image = Vec::<u8>::try_from(images.get(position as i64).flatten(0, -1)).unwrap();
                let record = [&[label as u8], image.as_slice()].concat();
                assert!(
                    content.chunks(3073).any(|known| known == record),
                    "image {position} of {}",
                    path(&file)
                );
            }
        }
    }
}

#[test]
fn pixels_are_those_of_pillow() {
    // Made by scripts/references/image_files.py.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    let expected = fixture("images/pixels.json");
    let expected = expected.as_object().unwrap();
    assert_eq!(expected.len(), 30);
    for (name, about) in expected {
        let image = decode(name, &std::fs::read(folder.join(name)).unwrap()).unwrap();
        let size: [usize; 2] = serde_json::from_value(about["size"].clone()).unwrap();
        assert_eq!([image.height() as usize, image.width() as usize], size, "{name}");
        let mut planes = Vec::new();
        RawImage::Decoded(image)
            .append_fitted(ImageForm { channels: 3, size }, Resize::default(), &mut planes)
            .unwrap();
        let rgb = about["rgb"].as_str().unwrap();
        let known = |position: usize| u8::from_str_radix(&rgb[2 * position..2 * position + 2], 16).unwrap();
        let pixels = size[0] * size[1];
        let difference = (0..3 * pixels)
            .map(|position| planes[position % 3 * pixels + position / 3].abs_diff(known(position)))
            .max()
            .unwrap();
        let allowed = about["difference"].as_u64().unwrap();
        assert!(
            u64::from(difference) <= allowed,
            "{name}: a value differs by {difference}, not at most {allowed}"
        );
    }
}

#[test]
fn every_kind_of_file_is_trained_on_together() {
    let pictures = Pictures::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    for (number, name) in fixture("images/pixels.json").as_object().unwrap().keys().enumerate() {
        let content = std::fs::read(source.join(name)).unwrap();
        // Endings in capitals count too, and a wrong ending does not matter: the content says what it is.
        let name = if number % 2 == 0 { name.to_uppercase() } else { name.replace(".bmp", ".png") };
        pictures.write(&format!("kinds/{}/{number}-{name}", NAMES[number % CLASSES]), &content);
    }
    let settings = ["data.image_size=[12, 12]", "data.channels=3"];
    let finished = pictures.try_train(&pictures.folder.join("kinds"), "kinds", &settings);
    assert_eq!(
        (finished.code, finished.stderr.contains("left out")),
        (Some(0), false),
        "{}",
        finished.stderr
    );
    let state = read_json(&pictures.run("kinds").join("checkpoints/last/state.json"));
    let count = |part: &str| state["data"][part]["samples"].as_u64().unwrap();
    assert_eq!(count("train") + count("validation"), 30);
}

#[test]
fn unreadable_files_are_named_or_left_out_and_counted() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    let empty = tree.join("bee/empty.jpg");
    write(&empty, b"");
    let text = tree.join("cat/text.png");
    write(&text, b"no picture");
    let half = tree.join("dog/half.jpg");
    let whole =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images/color.jpg")).unwrap();
    write(&half, &whole[..whole.len() / 3]);
    // It may be met in the middle of the training: there is then a run folder.
    let stopped = pictures.try_train(&tree, "stopped", &["data.val_fraction=0", "training.epochs=1"]);
    assert_refused(&stopped, 2, &[&path(&tree)]);
    let named = [&empty, &text, &half].iter().any(|file| stopped.stderr.contains(&path(file)));
    assert!(named, "{}", stopped.stderr);

    let left_out = pictures.try_train(&tree, "left-out", &["data.skip_bad=true"]);
    assert_eq!(left_out.code, Some(0), "{}", left_out.stderr);
    let words = ["warning: 3 unreadable images are left out", &path(&empty)];
    assert!(words.iter().all(|word| left_out.stderr.contains(word)), "{}", left_out.stderr);
    // Without them it is the training on the others.
    for file in [&empty, &text, &half] {
        std::fs::remove_file(file).unwrap();
    }
    let (weights, scores) = pictures.train(&tree, "clean");
    let run = pictures.run("left-out");
    assert!(std::fs::read(run.join("checkpoints/last/model.safetensors")).unwrap() == weights);
    assert_eq!(read_json(&run.join("summary.json"))["last"], scores[0]);

    let only = pictures.folder.join("only");
    write(&only.join("ant/empty.jpg"), b"");
    pictures.refuses(&only, &[], &[&path(&only.join("ant/empty.jpg")), "empty file"]);
    pictures.refuses(&only, &["data.skip_bad=true"], &["no training image is left"]);
}

/// A PNG that claims to have so many pixels on each side.
fn bomb(side: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(side.to_be_bytes().repeat(2));
    header.extend([8, 2, 0, 0, 0]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&header);
    let parts: [&[u8]; 4] = [
        b"\x89PNG\r\n\x1a\n\0\0\0\r",
        &header,
        &checksum.sum().to_be_bytes(),
        b"\0\0\0\0IDAT\x35\xaf\x06\x1e",
    ];
    parts.concat()
}

#[test]
fn a_decompression_bomb_is_refused() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    pictures.train(&tree, "run");
    let file = pictures.write("bomb.png", &bomb(60_000));
    let words = [path(&file), "60000 × 60000".to_owned(), "decompression bomb".to_owned()];
    let words = words.each_ref().map(String::as_str);
    assert_refused(&run(&mut cnn(["predict", &path(&pictures.run("run")), words[0]])), 2, &words);
    std::fs::rename(&file, tree.join("ant/000.png")).unwrap();
    pictures.refuses(&tree, &["data.val_fraction=0"], &["ant/000.png", words[1], words[2]]);
}

#[test]
fn images_of_different_sizes_need_a_size() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    let larger = tree.join("dog/999.png");
    image::RgbImage::new(40, 36).save(&larger).unwrap();
    let words =
        [path(&larger), "36 × 40".to_owned(), "32 × 32".to_owned(), "data.image_size=[32,32]".to_owned()];
    pictures.refuses(&tree, &["data.val_fraction=0"], &words.each_ref().map(String::as_str));
    let sized = pictures.try_train(&tree, "sized", &["data.image_size=[32,32]"]);
    assert_eq!(sized.code, Some(0), "{}", sized.stderr);
}

#[test]
fn folders_that_make_no_sense_are_refused() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    let loop_back = tree.join("cat/again");
    std::os::unix::fs::symlink(&tree, &loop_back).unwrap();
    pictures.refuses(&tree, &[], &[&path(&loop_back), "symbolic link", "leads back", "remove it"]);
    std::fs::remove_file(&loop_back).unwrap();
    std::os::unix::fs::symlink("nowhere", tree.join("cat/dangling.png")).unwrap();
    pictures.refuses(&tree, &[], &["cat/dangling.png"]);
    std::fs::remove_file(tree.join("cat/dangling.png")).unwrap();
    std::fs::create_dir(tree.join("eel")).unwrap();
    pictures.refuses(&tree, &[], &[&path(&tree.join("eel")), "empty"]);
    std::fs::remove_dir(tree.join("eel")).unwrap();
    write(&tree.join("stray.png"), &pictures.files()[0].1);
    pictures.refuses(&tree, &[], &["stray.png", "no class folder"]);

    let parts = pictures.write_all("parts", &pictures.in_parts());
    write(&parts.join("test/eel/1.png"), &pictures.files()[0].1);
    pictures.refuses(&parts, &[], &["test/eel/1.png", "`eel`", "no training image"]);
    std::fs::remove_dir_all(parts.join("train")).unwrap();
    pictures.refuses(&parts, &[], &[&path(&parts), "no training part"]);
}

#[test]
fn another_list_of_classes_is_refused() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    pictures.train(&tree, "run");
    let run_folder = path(&pictures.run("run"));
    std::fs::rename(tree.join("bee"), tree.join("bug")).unwrap();
    let words = ["the classes of the data are not those of the run", "`bug` where `bee` is expected"];
    assert_refused(&run(&mut cnn(["eval", &run_folder, "--split", "train"])), 2, &words);
    assert_refused(&run(&mut cnn(["train", "--quiet", "--resume", &run_folder, "--steps", "5"])), 2, &words);
    std::fs::remove_dir_all(tree.join("bug")).unwrap();
    assert_refused(&run(&mut cnn(["eval", &run_folder])), 2, &[words[0]]);
    pictures.refuses(&tree, &[r#"data.classes=["ant", "bee", "cat", "dog"]"#], &[words[0]]);
}

#[test]
fn other_samples_are_not_resumed_on() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    pictures.train(&tree, "run");
    let run_folder = pictures.run("run");
    let before = crate::support::runs::files(&run_folder);
    let refused = |words: &[&str]| {
        let resumed = run(&mut cnn(["train", "--quiet", "--resume", &path(&run_folder), "--steps", "5"]));
        assert_refused(&resumed, 2, &[&["trained on other data", "--data", "--init-from"], words].concat());
        crate::support::runs::assert_same_files(
            &crate::support::runs::files(&run_folder),
            &before,
            "refused",
        );
    };
    // One more, another name, another class, another picture in the first place.
    let files = pictures.files();
    write(&tree.join("dog/999.png"), &files[0].1);
    refused(&["the training part had 24 samples and has 25"]);
    std::fs::remove_file(tree.join("dog/999.png")).unwrap();
    for (from, to) in [("cat/017.png", "cat/017b.png"), ("cat/017.png", "bee/015b.png")] {
        std::fs::rename(tree.join(from), tree.join(to)).unwrap();
        refused(&["not those of before"]);
        std::fs::rename(tree.join(to), tree.join(from)).unwrap();
    }
    resume(&run_folder, &["--steps", "5"]);
}

#[test]
fn damaged_lists_are_refused() {
    let pictures = Pictures::new();
    pictures.tree("tree");
    let refuses = |name: &str, content: &str, words: &[&str]| {
        let list = pictures.write(name, content.as_bytes());
        pictures.refuses(&list, &[], &[&[path(&list).as_str()], words].concat());
    };
    refuses("a.csv", "path,class\ntree/ant/000.png,ant\n", &["no column `label`", "path, class"]);
    refuses(
        "b.csv",
        "path,label\ntree/ant/000.png,ant\ntree/ant/900.png,ant\n",
        &["line 3", "tree/ant/900.png"],
    );
    refuses("c.csv", "path,label\ntree/ant/000.png,\n", &["line 2", "label is empty"]);
    refuses("d.csv", "path,label\ntree/ant/000.png,ant,more\n", &["line: 2"]);
    refuses(
        "e.tsv",
        "path\tlabel\tsplit\ntree/ant/000.png\tant\tspare\n",
        &["line 2", "`spare`", "train, val, test"],
    );
    refuses("f.csv", "path,label,split\ntree/ant/000.png,ant,test\n", &["no training image"]);
    refuses("g.jsonl", "{\"path\": \"tree/ant/000.png\"}\n", &["line 1", "`label`"]);
    refuses("h.jsonl", "{\"path\": \"tree/ant/000.png\", \"label\": 0}\nnot json\n", &["line 2"]);
    refuses("i.csv", "path,label\n", &["no training image"]);
}

#[test]
fn damaged_archives_are_refused() {
    let pictures = Pictures::new();
    let whole = tar_of(&pictures.files());
    let refuses = |name: &str, content: &[u8], words: &[&str]| {
        let archive = pictures.write(name, content);
        pictures.refuses(&archive, &[], &[&[path(&archive).as_str()], words].concat());
    };
    refuses("cut.tar", &whole[..whole.len() / 2 + 100], &["damaged archive"]);
    let zipped = gzipped(&whole);
    refuses("cut.tar.gz", &zipped[..zipped.len() / 2], &["damaged gzip"]);
    refuses("none.tar", &tar_of(&[("a.txt", b"text".to_vec())]), &["no images"]);
    refuses("empty.tar", b"", &["no images"]);
    refuses("set.zip", b"PK\x03\x04", &["no data set that is known"]);
    let stray = [("0001.png", pictures.files()[0].1.clone())];
    refuses("stray.tar", &tar_of(&stray), &["0001.png", "no class folder"]);
}

#[test]
fn damaged_cifar_files_are_refused() {
    let pictures = Pictures::new();
    let whole = pictures.records(&pictures.images);
    let refuses = |name: &str, content: &[u8], words: &[&str]| {
        let file = pictures.write(name, content);
        pictures.refuses(&file, &[], &[&[path(&file).as_str()], words].concat());
    };
    refuses("cut.bin", &whole[..whole.len() - 1], &["truncated", "3073"]);
    refuses("empty.bin", b"", &["truncated"]);
    let mut other = whole.clone();
    other[3073] = 10;
    refuses("label.bin", &other, &["record 1", "label 10", "0..9"]);
    let only_test = pictures.write("only-test.tar", &tar_of(&[("test_batch.bin", whole)]));
    pictures.refuses(&only_test, &[], &[&path(&only_test), "no CIFAR training file"]);
}

/// A folder's pictures in shards `train-0.tar` …, with their classes beside them, and two images of each class in `val-0.tar`.
fn write_shards(pictures: &Pictures, name: &str) -> PathBuf {
    let member = |(number, (class, planes)): (usize, &Image)| {
        let label = if number % 2 == 0 {
            (format!("{number:04}.cls"), NAMES[*class].as_bytes().to_vec())
        } else {
            (format!("{number:04}.json"), json!({"label": NAMES[*class], "more": 1}).to_string().into_bytes())
        };
        [(format!("{number:04}.png"), png(planes)), label]
    };
    let (held_out, learned): (Vec<_>, Vec<_>) =
        pictures.images.iter().enumerate().partition(|(number, _)| number % EACH >= 6);
    for (shard, images) in learned.chunks(7).enumerate() {
        let members: Vec<_> = images.iter().copied().flat_map(member).collect();
        pictures.write(&format!("{name}/train-{shard}.tar"), &tar_of(&members));
    }
    let members: Vec<_> = held_out.into_iter().flat_map(member).collect();
    pictures.write(&format!("{name}/val-0.tar"), &tar_of(&members));
    pictures.folder.join(name)
}

#[test]
fn archives_in_sequence_give_every_image_once_and_resume() {
    let pictures = Pictures::new();
    let shards = write_shards(&pictures, "shards");
    let out = pictures.folder.join("batches.safetensors");
    let arguments =
        ["batches", "--quiet", "--recipe", "keras-cnn-cifar10", "--count", "3", "--batch-size", "8"];
    let files = ["--set", "data.shuffle_buffer=5", "--data", &path(&shards), "--file", &path(&out)];
    done(arguments.into_iter().chain(files));
    let batches = tch_suite::weights::read_safetensors(&out).unwrap();
    let mut found: Vec<Image> = Vec::new();
    for number in 0..3 {
        let labels: Vec<i64> = Vec::try_from(&batches[&format!("labels.{number}")]).unwrap();
        let images = (&batches[&format!("images.{number}")] * 255.0).round().to_kind(tch::Kind::Uint8);
        for (position, label) in labels.into_iter().enumerate() {
            let planes = Vec::<u8>::try_from(images.get(position as i64).flatten(0, -1)).unwrap();
            found.push((label as usize, planes));
        }
    }
    let mut expected: Vec<Image> = pictures
        .images
        .iter()
        .enumerate()
        .filter(|(number, _)| number % EACH < 6)
        .map(|(_, image)| image.clone())
        .collect();
    assert_ne!(found, expected, "the order is not that of the archives");
    found.sort();
    expected.sort();
    assert!(found == expected, "not every image once with its class");

    let settings = [
        "data.shuffle_buffer=5",
        "data.augment={\"crop_padding\": 2, \"flip\": true}",
        "training.batch_size=4",
    ];
    let train = |name: &str, steps: &str| {
        let finished = pictures.try_train(&shards, name, &[&settings[..], &[steps]].concat());
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        pictures.run(name)
    };
    let weights = |run: &Path| std::fs::read(run.join("checkpoints/last/model.safetensors")).unwrap();
    let whole = train("whole", "training.steps=10");
    let halves = train("halves", "training.steps=4");
    resume(&halves, &["--steps", "10"]);
    assert!(weights(&whole) == weights(&halves), "a resumed run goes another way");

    let gzipped = pictures.write("gzipped.tar.gz", &gzipped(&tar_of(&pictures.files())));
    pictures.refuses(&gzipped, &["data.shuffle_buffer=5"], &["gzipped.tar.gz", "compressed"]);
    let unlabelled = pictures.write("unlabelled.tar", &tar_of(&[("a.png", png(&pictures.images[0].1))]));
    pictures.refuses(&unlabelled, &["data.shuffle_buffer=5"], &["unlabelled.tar:a has no label"]);
    pictures.refuses(
        &pictures.tree("tree"),
        &["data.shuffle_buffer=5"],
        &["data.shuffle_buffer is for tar archives"],
    );
}

#[test]
fn the_shards_of_a_set_hold_the_set() {
    let pictures = Pictures::new();
    let tree = pictures.write_all("parts", &pictures.in_parts());
    let cifar = pictures.write("one.bin", &pictures.records(&pictures.images));
    pictures.train(&tree, "run");
    for (data, name) in [(tree, "of-tree"), (cifar, "of-cifar")] {
        let shards = pictures.folder.join(name);
        done(["shards", &path(&data), "--out", &path(&shards), "--seed", "3"]);
        // The classes of a binary file without names are numbers, which the run on the tree does not know.
        let losses = [&data, &shards].map(|source| {
            let run = match name {
                "of-tree" => "run".to_owned(),
                _ => {
                    let run = format!("run-{}", source.extension().is_some());
                    pictures.try_train(source, &run, &["data.val_fraction=0", "data.channels=3"]);
                    run
                }
            };
            let run = path(&pictures.run(&run));
            let found =
                done(["eval", &run, "--data", &path(source), "--split", "train", "--format", "json"]).stdout;
            let found: Value = serde_json::from_str(&found).unwrap();
            (found["samples"].as_u64(), found["metrics"]["loss"].as_f64().unwrap())
        });
        assert_eq!(losses[0].0, losses[1].0);
        if name == "of-tree" {
            assert!((losses[0].1 - losses[1].1).abs() < 1e-6, "{losses:?}");
        }
        let again = pictures.folder.join("again");
        done(["shards", &path(&data), "--out", &path(&again), "--seed", "3"]);
        let archive = "train-000000.tar";
        assert!(std::fs::read(again.join(archive)).unwrap() == std::fs::read(shards.join(archive)).unwrap());
        std::fs::remove_dir_all(&again).unwrap();
    }
}

#[test]
fn keeping_decoded_images_changes_nothing() {
    let pictures = Pictures::new();
    let tree = pictures.tree("tree");
    for (name, augment) in [
        ("plain", "{}"),
        ("crops", r#"{"resized_crop": {"scale": [0.2, 0.8]}, "flip": true}"#),
        ("shifts", r#"{"crop_padding": 3, "color_jitter": {"hue": 0.2}}"#),
    ] {
        let augment = format!("data.augment={augment}");
        let weights = |run: String, more: &[&str]| {
            let settings = [&["training.steps=12", &augment], more].concat();
            let finished = pictures.try_train(&tree, &run, &settings);
            assert_eq!(finished.code, Some(0), "{}", finished.stderr);
            std::fs::read(pictures.run(&run).join("checkpoints/last/model.safetensors")).unwrap()
        };
        let kept = weights(format!("{name}-kept"), &["data.cache_mb=1", "training.workers=2"]);
        assert!(kept == weights(format!("{name}-decoded"), &[]), "{name}");
    }
}

/// A JPEG file of a smooth picture.
fn photograph(height: u32, width: u32) -> Vec<u8> {
    let value = |x: u32, y: u32| {
        [
            128.0 + 100.0 * (x as f64 / 23.0).sin(),
            128.0 + 100.0 * (y as f64 / 31.0).cos(),
            (x + y) as f64 / 2.5,
        ]
    };
    let picture =
        image::RgbImage::from_fn(width, height, |x, y| image::Rgb(value(x, y).map(|value| value as u8)));
    let mut file = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Jpeg).unwrap();
    file.into_inner()
}

#[test]
fn large_photographs_are_decoded_smaller_in_training_only() {
    use tch_suite::data::decode::decode_scaled;
    use tch_suite::data::images::ImageDataConfig;
    use tch_suite::data::{Dataset, Draw};

    let content = photograph(240, 320);
    let decoded = |least: [usize; 2]| {
        let (image, full) = decode_scaled("photograph", &content, &mut |_| least).unwrap();
        assert_eq!(full, [240, 320]);
        [image.height(), image.width()]
    };
    assert_eq!(decoded([240, 320]), [240, 320]);
    assert_eq!(decoded([121, 100]), [240, 320]);
    assert_eq!(decoded([100, 150]), [120, 160]);
    assert_eq!(decoded([10, 61]), [60, 80]);
    assert_eq!(decoded([10, 10]), [30, 40]);

    let pictures = Pictures::new();
    for (number, name) in NAMES.iter().enumerate() {
        pictures.write(&format!("photos/{name}/{number}.jpg"), &content);
    }
    let open = |scaled: bool, augment: Value| {
        let config: ImageDataConfig = serde_json::from_value(json!({
            "format": "folder", "path": pictures.folder.join("photos"), "val_fraction": 0, "image_size": [32, 32],
            "scaled_decoding": scaled, "augment": augment,
        }))
        .unwrap();
        config.validate().unwrap();
        config.open(0).unwrap().splits.train
    };
    let pixels = |scaled: bool, augment: Value, train: bool| {
        let draw = Draw { seed: 1, epoch: 0, train, copies: &[] };
        let batch = open(scaled, augment).batch(&[0, 1, 2, 3], draw).unwrap();
        Vec::<u8>::try_from(batch.images.flatten(0, -1)).unwrap()
    };
    for augment in [json!({}), json!({"resized_crop": {}, "flip": true})] {
        assert!(pixels(true, augment.clone(), false) == pixels(false, augment.clone(), false));
        let (scaled, whole) = (pixels(true, augment.clone(), true), pixels(false, augment.clone(), true));
        assert!(scaled != whole, "{augment}: it is not scaled");
        let difference: f64 = scaled.iter().zip(&whole).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        let mean = difference / whole.len() as f64;
        assert!(mean < 3.0, "{augment}: {mean} levels on average");
    }
}

#[test]
fn looks_at_an_image_are_averaged() {
    let pictures = Pictures::new();
    let files = pictures.in_parts();
    let folder = pictures.write_all("parts", &files);
    pictures.train(&folder, "run");
    let run = path(&pictures.run("run"));
    let tested: Vec<_> = files.iter().filter(|(name, _)| name.starts_with("test/")).collect();
    let mut loss = 0.0;
    for (name, content) in &tested {
        let label = name.split('/').nth(1).unwrap();
        let mirrored = pictures.folder.join("mirrored.png");
        image::load_from_memory(content).unwrap().fliph().save(&mirrored).unwrap();
        let inputs = [path(&folder.join(name)), path(&mirrored)];
        let found =
            done(["predict", &run, &inputs[0], &inputs[1], "--top-k", "4", "--format", "jsonl"]).stdout;
        let probability = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            let of_label = line["top"].as_array().unwrap().iter().find(|one| one["label"] == label).unwrap();
            of_label["probability"].as_f64().unwrap()
        };
        loss -= (found.lines().map(probability).sum::<f64>() / 2.0).ln() / tested.len() as f64;
    }
    let evaluated = |views: &str| {
        let found = done(["eval", &run, "--tta", views, "--format", "json"]).stdout;
        serde_json::from_str::<Value>(&found).unwrap()["metrics"]["loss"].as_f64().unwrap()
    };
    assert!((evaluated("flip") - loss).abs() < 1e-5, "{}, not {loss}", evaluated("flip"));
    assert!((evaluated("none") - loss).abs() > 1e-5);
    assert_refused(
        &self::run(&mut cnn(["eval", &run, "--tta", "ten-crop"])),
        2,
        &["data.resize.shorter_side"],
    );

    let larger = ["data.image_size=[24,24]", "data.resize.shorter_side=32"];
    assert_eq!(pictures.try_train(&folder, "larger", &larger).code, Some(0));
    let run = path(&pictures.run("larger"));
    for views in ["five-crop", "ten-crop"] {
        done(["eval", &run, "--tta", views]);
    }
}

#[test]
fn crops_of_an_evaluation_are_torchvisions() {
    use tch_suite::data::image_dataset::Views;
    use tch_suite::data::images::ImageDataConfig;
    use tch_suite::data::{Dataset, Draw};

    let pictures = Pictures::new();
    let config: ImageDataConfig = serde_json::from_value(json!({
        "format": "folder", "path": pictures.tree("tree"), "val_fraction": 0, "image_size": [20, 24], "resize": {"shorter_side": 32},
    }))
    .unwrap();
    let data = config.open(0).unwrap().splits.train;
    let draw = Draw { seed: 0, epoch: 0, train: false, copies: &[] };
    let batch = data.with_views(Views::TenCrop).unwrap().batch(&[5], draw).unwrap();
    assert_eq!((batch.images.size(), batch.views), (vec![10, 3, 20, 24], 10));
    let whole = tch::Tensor::from_slice(&pictures.images[5].1).view([3, 32, 32]);
    // `TenCrop`: the corners, the middle, and these of the mirrored image, whose corners come from the other side.
    let cut = |image: &tch::Tensor, top: i64, left: i64| image.narrow(1, top, 20).narrow(2, left, 24);
    let places = [(0, 0), (0, 8), (12, 0), (12, 8), (6, 4)];
    for (number, (top, left)) in places.into_iter().enumerate() {
        let expected = cut(&whole, top, left);
        assert_eq!(batch.images.get(number as i64), expected, "crop {number}");
        assert_eq!(batch.images.get(5 + number as i64), expected.flip([2]), "mirrored crop {number}");
    }
}

#[test]
fn a_sheet_shows_variations_beside_their_images() {
    let pictures = Pictures::new();
    let (tree, out) = (path(&pictures.tree("tree")), path(&pictures.folder.join("sheet.png")));
    let set = r#"data.augment={"crop_padding": 4, "policy": {"name": "trivial-augment"}, "mixup": 0.5}"#;
    done([
        "augment",
        &tree,
        "--recipe",
        "resnet20-cifar10",
        "--out",
        &out,
        "--images",
        "3",
        "--variations",
        "4",
        "--set",
        set,
    ]);
    let sheet = image::open(&out).unwrap().to_rgb8();
    assert_eq!(sheet.dimensions(), (5 * 100 + 4, 3 * 100 + 4));
    let tile = |row: u32, column: u32| {
        (0..32 * 32)
            .map(|place| sheet.get_pixel(4 + 100 * column + place % 32 * 3, 4 + 100 * row + place / 32 * 3).0)
            .collect::<Vec<_>>()
    };
    for row in 0..3 {
        let plain = tile(row, 0);
        let is_plain = |(_, planes): &Image| {
            (0..32 * 32).all(|place| [0, 1, 2].map(|channel| planes[channel * 1024 + place]) == plain[place])
        };
        assert!(pictures.images.iter().any(is_plain), "row {row} begins with no image of the set");
        assert!((1..5).all(|column| tile(row, column) != plain) && tile(row, 1) != tile(row, 2));
    }
    let misspelt = r#"data.augment={"mixupp": 0.5}"#;
    let refused = run(&mut cnn(["augment", &tree, "--out", &out, "--set", misspelt]));
    assert_refused(&refused, 2, &["data.augment", "mixupp", "did you mean `mixup`?"]);
    for (setting, word) in [
        (r#"{"grayscale": 1.5}"#, "data.augment.grayscale is 1.5"),
        (r#"{"blur": {"kernel_size": 4}}"#, "kernel_size is 4"),
        (r#"{"policy": {"name": "rand-augment", "magnitude": 31}}"#, "magnitude 31"),
        (r#"{"crop_padding": 4, "resized_crop": {}}"#, "leave one out"),
        (r#"{"resized_crop": {"scale": [0.5, 0.2]}}"#, "resized_crop.scale is [0.5, 0.2]"),
    ] {
        let set = format!("data.augment={setting}");
        assert_refused(&run(&mut cnn(["augment", &tree, "--out", &out, "--set", &set])), 2, &[word]);
    }
}
