//! Tables that are in the program: three real ones of `assets/tables`, and small made-up ones for the recipes that show gradient descent.

use std::fmt::Write;
use std::io::Read;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// A table that needs no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltinTable {
    /// Progression of diabetes in 442 patients, ten measurements in their own units (Efron et al. 2004).
    Diabetes,
    /// Benign and malignant tumours, 569 with 30 measurements (breast cancer Wisconsin).
    BreastCancer,
    /// 150 irises of three species with four measurements (Fisher 1936).
    Iris,
    /// 200 points of y = 3x + 2 with noise of mean 0 and deviation 0.5, x in 0..2.
    Line,
    /// 1,000 rows of 100 standard normal features and a label that follows them.
    Binary,
    /// 400 points of the exclusive or: two features in 0..1 and whether just one of them is above a half.
    Xor,
}

impl BuiltinTable {
    /// All of them.
    pub const ALL: [BuiltinTable; 6] =
        [Self::Diabetes, Self::BreastCancer, Self::Iris, Self::Line, Self::Binary, Self::Xor];

    /// Its name on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diabetes => "diabetes",
            Self::BreastCancer => "breast-cancer",
            Self::Iris => "iris",
            Self::Line => "line",
            Self::Binary => "binary",
            Self::Xor => "xor",
        }
    }

    /// The column that its recipes predict.
    pub fn target(self) -> &'static str {
        match self {
            Self::Diabetes | Self::BreastCancer => "target",
            Self::Iris => "species",
            Self::Line => "y",
            Self::Binary | Self::Xor => "label",
        }
    }
}

/// The text of a table, as CSV with a header.
pub fn builtin(table: BuiltinTable) -> Result<Vec<u8>> {
    match table {
        BuiltinTable::Diabetes => Ok(include_bytes!("../../../assets/tables/diabetes.csv").to_vec()),
        BuiltinTable::BreastCancer => {
            let packed = include_bytes!("../../../assets/tables/breast-cancer.csv.gz");
            let mut text = Vec::new();
            GzDecoder::new(&packed[..]).read_to_end(&mut text).context("unpacking a compiled-in table")?;
            Ok(text)
        }
        BuiltinTable::Iris => Ok(include_bytes!("../../../assets/tables/iris.csv").to_vec()),
        BuiltinTable::Line => line(),
        BuiltinTable::Binary => binary(),
        BuiltinTable::Xor => xor(),
    }
}

/// Random numbers that are the same everywhere.
struct Random(ChaCha8Rng);

impl Random {
    fn new() -> Self {
        Self(ChaCha8Rng::seed_from_u64(3))
    }

    /// Evenly distributed in 0..1.
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn line() -> Result<Vec<u8>> {
    let mut random = Random::new();
    let mut text = "x,y\n".to_owned();
    for _ in 0..200 {
        let x = 2.0 * random.uniform();
        writeln!(text, "{x:.6},{:.6}", 3.0 * x + 2.0 + 0.5 * random.normal())?;
    }
    Ok(text.into_bytes())
}

fn binary() -> Result<Vec<u8>> {
    const FEATURES: usize = 100;
    let mut random = Random::new();
    let weights: Vec<f64> = (0..FEATURES).map(|_| random.normal()).collect();
    let mut text = (0..FEATURES).map(|feature| format!("x{feature},")).collect::<String>() + "label\n";
    for _ in 0..1000 {
        let row: Vec<f64> = (0..FEATURES).map(|_| random.normal()).collect();
        let score: f64 = row.iter().zip(&weights).map(|(value, weight)| value * weight).sum();
        let positive = random.uniform() < 1.0 / (1.0 + (-score).exp());
        for value in row {
            write!(text, "{value:.4},")?;
        }
        writeln!(text, "{}", u8::from(positive))?;
    }
    Ok(text.into_bytes())
}

fn xor() -> Result<Vec<u8>> {
    let mut random = Random::new();
    let mut text = "a,b,label\n".to_owned();
    for _ in 0..400 {
        let (a, b) = (random.uniform(), random.uniform());
        writeln!(text, "{a:.6},{b:.6},{}", u8::from((a > 0.5) != (b > 0.5)))?;
    }
    Ok(text.into_bytes())
}
