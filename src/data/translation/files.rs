//! Where pairs are: two aligned files, or two columns of one.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::TranslationDataConfig;
use crate::data::order::hold_out;
use crate::data::text::{TextForm, TextFormat, TextTable, UnknownText, read_rows};
use crate::{bad_input, bail_input, files};

/// Pairs as they are written.
#[derive(Clone, Debug, Default)]
pub struct PairPart {
    /// Where they are from, for messages.
    pub name: String,
    /// Source texts.
    pub sources: Vec<String>,
    /// Target texts, as many.
    pub targets: Vec<String>,
    /// File and line of each source and target.
    places: Vec<[String; 2]>,
}

impl PairPart {
    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts file and line before what the tokenizer says about a source.
    pub fn blame_source(&self, error: anyhow::Error) -> anyhow::Error {
        self.blame(error, 0)
    }

    /// Puts file and line before what the tokenizer says about a target.
    pub fn blame_target(&self, error: anyhow::Error) -> anyhow::Error {
        self.blame(error, 1)
    }

    fn blame(&self, error: anyhow::Error, side: usize) -> anyhow::Error {
        match error.downcast::<UnknownText>() {
            Ok(unknown) => match self.places.get(unknown.text) {
                Some(places) => bad_input!("{}: {unknown}", places[side]),
                None => bad_input!("{}: {unknown}", self.name),
            },
            Err(error) => error,
        }
    }

    fn of(sources: &TextTable, targets: &TextTable, target_column: usize) -> Result<Self> {
        let mut part = Self { name: sources.name.clone(), ..Self::default() };
        for (row, (source, target)) in sources.rows.iter().zip(&targets.rows).enumerate() {
            let texts = [source.text(0), target.text(target_column)].map(str::trim);
            let places = [sources.place(row), targets.place(row)];
            if let Some(side) = texts.iter().position(|text| text.is_empty()) {
                bail_input!(
                    "{}: the {} is empty: fill it in, or take the pair out",
                    places[side],
                    ["source", "target"][side]
                );
            }
            part.sources.push(texts[0].to_owned());
            part.targets.push(texts[1].to_owned());
            part.places.push(places);
        }
        Ok(part)
    }

    fn select(&self, pairs: &[usize]) -> Self {
        let texts = |all: &[String]| pairs.iter().map(|&pair| all[pair].clone()).collect();
        Self {
            name: self.name.clone(),
            sources: texts(&self.sources),
            targets: texts(&self.targets),
            places: pairs.iter().map(|&pair| self.places[pair].clone()).collect(),
        }
    }
}

/// The files of one part.
#[derive(Clone, Debug, PartialEq)]
pub enum PairFiles {
    /// Line by line.
    Aligned {
        /// Of sources.
        source: PathBuf,
        /// Of targets.
        target: PathBuf,
    },
    /// Two columns.
    Table(PathBuf),
}

/// The usual beginnings of names of validation files.
const VALIDATION: [&str; 4] = ["val", "valid", "validation", "dev"];
/// The usual endings of files with columns.
const TABLES: [&str; 4] = ["tsv", "csv", "jsonl", "ndjson"];

impl PairFiles {
    /// The files of the part whose names begin with `name`.
    ///
    /// # Errors
    /// One of two aligned files is missing.
    fn find(folder: &Path, name: &str, config: &TranslationDataConfig) -> Result<Option<Self>> {
        let file = |ending: &str| {
            let plain = folder.join(format!("{name}.{ending}"));
            let packed = folder.join(format!("{name}.{ending}.gz"));
            [plain, packed].into_iter().find(|path| path.is_file())
        };
        if let Some(table) = TABLES.iter().find_map(|ending| file(ending)) {
            return Ok(Some(Self::Table(table)));
        }
        match (file(&config.source), file(&config.target)) {
            (Some(source), Some(target)) => Ok(Some(Self::Aligned { source, target })),
            (None, None) => Ok(None),
            (Some(there), None) => Err(lonely(&there, folder, name, &config.target)),
            (None, Some(there)) => Err(lonely(&there, folder, name, &config.source)),
        }
    }

    fn read(&self, config: &TranslationDataConfig) -> Result<PairPart> {
        match self {
            Self::Aligned { source, target } => {
                let form = TextForm { format: Some(TextFormat::Plain), ..TextForm::default() };
                let [sources, targets] = [source, target].map(|path| read_rows(path, &form, &["text"]));
                let (sources, targets) = (sources?, targets?);
                let (ours, theirs) = (sources.rows.len(), targets.rows.len());
                if ours != theirs {
                    let shorter = if ours < theirs { &sources } else { &targets };
                    bail_input!(
                        "{} has {ours} lines and {} has {theirs}: line {} of {} is the first that is missing",
                        sources.name,
                        targets.name,
                        ours.min(theirs) + 1,
                        shorter.name
                    );
                }
                PairPart::of(&sources, &targets, 0)
            }
            Self::Table(path) => {
                let form = TextForm { format: config.format, ..TextForm::default() };
                let table = read_rows(path, &form, &[&config.source, &config.target])?;
                PairPart::of(&table, &table, 1)
            }
        }
    }
}

fn lonely(there: &Path, folder: &Path, name: &str, ending: &str) -> anyhow::Error {
    bad_input!(
        "{} has no counterpart: {} is missing",
        there.display(),
        folder.join(format!("{name}.{ending}")).display()
    )
}

/// Reads all parts: training, validation, test. Without a validation part a share of the training part is held out.
///
/// # Errors
/// There is no such path, no training part, files of different length (the first missing line), an empty text, or bytes that are no UTF-8.
pub fn read_pairs(config: &TranslationDataConfig, seed: u64) -> Result<[Option<PairPart>; 3]> {
    let Some(path) = &config.path else {
        bail_input!("there is no data: give --data, a folder with aligned files or a file with two columns");
    };
    let Some((folder, train)) = (match path.is_dir() {
        true => Some((path.as_path(), PairFiles::find(path, &config.train, config)?)),
        false => path.parent().map(|folder| (folder, path.is_file().then(|| PairFiles::Table(path.clone())))),
    }) else {
        return Err(files::cannot_read(path, &std::io::ErrorKind::NotFound.into()));
    };
    let Some(train) = train else {
        bail_input!(
            "{} has no training pairs: neither {}.{} with {}.{} nor {}.tsv, .csv or .jsonl",
            path.display(),
            config.train,
            config.source,
            config.train,
            config.target,
            config.train
        );
    };
    let part = |given: &Option<String>, usual: &[&str]| -> Result<Option<PairPart>> {
        let names: Vec<&str> = given.as_deref().map_or_else(|| usual.to_vec(), |name| vec![name]);
        for name in &names {
            if let Some(files) = PairFiles::find(folder, name, config)? {
                return Ok(Some(files.read(config)?));
            }
        }
        match given {
            Some(name) => bail_input!("{} has no pairs in files that begin with `{name}.`", folder.display()),
            None => Ok(None),
        }
    };
    // Beside a single file lie other things.
    let beside = |usual: &'static [&'static str]| if path.is_dir() { usual } else { &[] };
    let validation = part(&config.validation, beside(&VALIDATION))?;
    let test = part(&config.test, beside(&["test"]))?;
    let train = train.read(config)?;
    if validation.is_some() || config.val_fraction == 0.0 {
        return Ok([Some(train), validation, test]);
    }
    let (learned, held_out) = hold_out(train.len(), config.val_fraction, seed)?;
    Ok([Some(train.select(&learned)), Some(train.select(&held_out)), test])
}
