//! Parquet tables are the same tables as text. The files are made by scripts/references/parquet_tables.py.

use std::path::Path;

use serde_json::Value;

use super::{Place, coefficients, stdout};
use crate::support::assert_close;
use crate::support::process::{assert_refused, regression, run};

const FORMS: [&str; 5] = ["snappy", "zstd", "gzip", "lz4", "plain"];

fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name).display().to_string()
}

const FEATURES: &str = "double,single,small,large,price,wide,truth,day,colour,place.north,place.east";

#[test]
fn a_fit_is_that_of_the_same_table_as_text() {
    let place = Place::new();
    let flags = ["--target", "y", "--features", FEATURES, "--missing", "indicator", "--test-fraction", "0"];
    let text = place.train("text", &[&["--data", &file("same.csv")][..], &flags].concat());
    let columns = |run: &Path| crate::support::runs::read_json(&run.join("model.json"))["columns"].clone();
    for form in FORMS {
        for stream in [&[][..], &["--stream"]] {
            let table = file(&format!("{form}.parquet"));
            let name = format!("{form}{}", stream.len());
            let found = place.train(&name, &[&["--data", &table][..], &flags, stream].concat());
            assert_eq!(columns(&found), columns(&text), "{form}");
            assert_close(&coefficients(&found), &coefficients(&text), 1e-9, form);
        }
    }

    // Predictions, with columns kept as they are: integers that no float64 holds, gaps, texts.
    let run = place.text("text");
    let keep = ["--keep", "id,double,colour,class"];
    let expected = stdout(&[&["predict", &run, &file("same.csv")][..], &keep].concat());
    assert!(expected.contains("\n9007199254740993,"), "{expected}");
    for form in FORMS {
        let found = stdout(&[&["predict", &run, &file(&format!("{form}.parquet"))][..], &keep].concat());
        assert_eq!(found.lines().count(), 61);
        for (found, expected) in found.lines().zip(expected.lines()).skip(1) {
            let [(found, value), (expected, other)] =
                [found, expected].map(|line| line.rsplit_once(',').unwrap());
            assert_eq!(found, expected, "{form}");
            let [value, other] = [value, other].map(|number| number.parse::<f64>().unwrap());
            assert!((value - other).abs() < 1e-9, "{form}: {value} against {other}");
        }
    }
}

#[test]
fn classes_are_the_texts_of_their_numbers() {
    let place = Place::new();
    let flags = [
        "--recipe",
        "multinomial",
        "--target",
        "class",
        "--features",
        "single,small",
        "--test-fraction",
        "0",
    ];
    let run = place.train("run", &[&["--data", &file("snappy.parquet")][..], &flags].concat());
    let model = crate::support::runs::read_json(&run.join("model.json"));
    assert_eq!(model["encoding"]["classes"], serde_json::json!(["2", "3", "10"]));
}

#[test]
fn a_description_is_that_of_the_same_table_as_text() {
    // Lists have no description.
    let refused = run(&mut regression(["describe", &file("snappy.parquet")]));
    assert_refused(&refused, 2, &["column `tags.list.element` holds lists"]);
    let described: Value =
        serde_json::from_str(&stdout(&["describe", &file("same.csv"), "--format", "json"])).unwrap();
    assert_eq!(described["rows"], 60);
}

#[test]
fn damaged_files_and_flags_for_text_are_refused() {
    let place = Place::new();
    let whole = std::fs::read(file("snappy.parquet")).unwrap();
    let train = |table: &str, flags: &[&str]| {
        place.try_train(
            "run",
            &[&["--data", table, "--target", "y", "--drop", "tags.list.element"][..], flags].concat(),
        )
    };
    let cut = place.write("cut.parquet", &whole[..whole.len() / 2]);
    assert_refused(&train(&cut, &[]), 2, &["cut.parquet is a damaged Parquet file"]);
    // A page's bytes.
    let mut bent = whole.clone();
    bent[40..400].fill(0xa5);
    let bent = place.write("bent.parquet", bent);
    assert_refused(&train(&bent, &[]), 2, &["bent.parquet is a damaged Parquet file"]);
    // A column that begins before the file, at which the reading crate panics.
    let mut negative = std::fs::read(file("zstd.parquet")).unwrap();
    negative[3386] = 235;
    let negative = place.write("negative.parquet", negative);
    assert_refused(&train(&negative, &[]), 2, &["negative.parquet is a damaged Parquet file"]);
    let table = file("snappy.parquet");
    assert_refused(&train(&table, &["--delimiter", ";"]), 2, &["data.delimiter is for tables of text"]);
    assert_refused(&train(&table, &[]), 2, &["has missing values", "colour 2", "double 5"]);
    let packed = place.write("t.parquet.gz", {
        use std::io::Write;
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(&whole).unwrap();
        packer.finish().unwrap()
    });
    assert_refused(&train(&packed, &[]), 2, &["is a Parquet file, which is read from its end"]);
    assert!(!place.path("run").exists());
}
