//! From a table to training and test rows with their encoding, or the refusal of what cannot be fitted.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, anyhow};
use tch::{Kind, Tensor};

use super::config::{Goal, MissingPolicy, TableDataConfig, UnseenPolicy};
use super::design::RowSource;
use super::encoding::{Encoding, Feature, FeatureKind, MISSING_LEVEL, UNSEEN};
use super::parallel::{on_threads, shares};
use crate::data::order::{hold_out, permutation};
use crate::data::table::{
    ColumnRequest, ColumnType, Head, Levels, TableReader, TableSource, Wanted, find_column, read_all, recode,
};
use crate::reporting::format::count;
use crate::{bad_input, bail_input};

/// Classes of a target that can be told apart.
const MOST_CLASSES: usize = 1000;

/// Some rows of a table.
#[derive(Debug)]
pub struct RawBlock {
    /// Features `[rows, features]`: numbers, codes of categories, NaN for missing values.
    pub x: Tensor,
    /// The target `[rows]`: numbers, or numbers of classes.
    pub y: Tensor,
    /// Weights of the rows `[rows]`.
    pub weight: Option<Tensor>,
    /// Numbers of their groups `[rows]`.
    pub group: Option<Tensor>,
}

impl RawBlock {
    /// How many rows there are.
    pub fn rows(&self) -> i64 {
        self.y.size()[0]
    }

    /// The same rows for another thread; a handle, not a copy.
    pub fn handle(&self) -> RawBlock {
        let of = |tensor: &Tensor| tensor.shallow_clone();
        RawBlock {
            x: of(&self.x),
            y: of(&self.y),
            weight: self.weight.as_ref().map(of),
            group: self.group.as_ref().map(of),
        }
    }

    /// The rows with these positions.
    pub fn select(&self, positions: &Tensor) -> Result<RawBlock> {
        let of = |tensor: &Tensor| tensor.f_index_select(0, positions);
        Ok(RawBlock {
            x: of(&self.x)?,
            y: of(&self.y)?,
            weight: self.weight.as_ref().map(of).transpose()?,
            group: self.group.as_ref().map(of).transpose()?,
        })
    }
}

/// How many rows some blocks have.
pub fn count_rows(blocks: &[RawBlock]) -> usize {
    blocks.iter().map(|block| block.rows() as usize).sum()
}

/// A table ready to fit.
pub struct Prepared {
    /// How its rows become a design.
    pub encoding: Encoding,
    /// What is learned from.
    pub train: Vec<RawBlock>,
    /// What is looked at once, at the end; empty where nothing is held out.
    pub test: Vec<RawBlock>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The columns that a recipe asks for.
#[derive(Clone, Debug)]
pub struct Roles {
    /// Features in the order of the file, or as the recipe lists them.
    pub features: Vec<String>,
    /// What is predicted.
    pub target: String,
    /// What is read, in this order: features, target, weights, groups.
    pub requests: Vec<ColumnRequest>,
    weights: bool,
    groups: bool,
}

impl Roles {
    /// Finds the columns of a recipe in a table.
    ///
    /// # Errors
    /// A column is missing, none is left, or the target is not given.
    pub fn find(data: &TableDataConfig, goal: Goal, head: &Head, name: &str) -> Result<Self> {
        let Some(target) = &data.target else {
            bail_input!(
                "data.target is missing: say which column is predicted with --target NAME ({name} has {})",
                listed(&head.names)
            );
        };
        find_column(&head.names, target, "data.target", name)?;
        for column in &data.drop {
            find_column(&head.names, column, "data.drop", name)?;
        }
        for (key, column) in [("data.weights", &data.weights), ("data.groups", &data.groups)] {
            if let Some(column) = column {
                find_column(&head.names, column, key, name)?;
                if column == target {
                    bail_input!("{key} is the target `{target}`: choose another column");
                }
            }
        }
        for column in data.reference.keys() {
            find_column(&head.names, column, "data.reference", name)?;
        }
        let taken = |column: &String| {
            column == target
                || data.drop.contains(column)
                || data.weights.as_ref() == Some(column)
                || data.groups.as_ref() == Some(column)
        };
        let features: Vec<String> = match &data.features {
            Some(features) => {
                for (position, column) in features.iter().enumerate() {
                    find_column(&head.names, column, "data.features", name)?;
                    if column == target {
                        bail_input!("data.features names the target `{target}`");
                    }
                    if features[..position].contains(column) {
                        bail_input!("data.features names `{column}` twice");
                    }
                }
                features.iter().filter(|column| !data.drop.contains(column)).cloned().collect()
            }
            None => head.names.iter().filter(|column| !taken(column)).cloned().collect(),
        };
        if features.is_empty() {
            bail_input!("{name} has no column left to predict `{target}` from");
        }
        let request = |name: &String, wanted: Wanted| ColumnRequest { name: name.clone(), wanted };
        let limit = data.max_categories;
        let mut requests: Vec<ColumnRequest> =
            features.iter().map(|name| request(name, Wanted::Feature { limit })).collect();
        requests.push(request(
            target,
            match goal {
                Goal::Number => Wanted::Number,
                Goal::TwoClasses | Goal::Classes => Wanted::Category,
            },
        ));
        requests.extend(data.weights.iter().map(|name| request(name, Wanted::Number)));
        requests.extend(data.groups.iter().map(|name| request(name, Wanted::Category)));
        Ok(Self {
            features,
            target: target.clone(),
            requests,
            weights: data.weights.is_some(),
            groups: data.groups.is_some(),
        })
    }

    /// The columns for a known encoding, with target and weights.
    pub fn known(encoding: &Encoding, data: &TableDataConfig) -> Self {
        let mut requests = encoding.requests(data.unseen);
        let wanted = match &encoding.classes {
            Some(classes) => Wanted::OneOf { levels: classes.clone(), otherwise: None },
            None => Wanted::Number,
        };
        requests.push(ColumnRequest { name: encoding.target.clone(), wanted });
        let weights = data.weights.iter();
        requests.extend(weights.map(|name| ColumnRequest { name: name.clone(), wanted: Wanted::Number }));
        Self {
            features: encoding.features.iter().map(|feature| feature.name.clone()).collect(),
            target: encoding.target.clone(),
            requests,
            weights: data.weights.is_some(),
            groups: false,
        }
    }

    /// Parts a block as it is read into its roles. Views, not copies.
    pub fn part(&self, block: &Tensor) -> Result<RawBlock> {
        let features = self.features.len() as i64;
        let mut next = features;
        let mut take = |wanted: bool| -> Result<Option<Tensor>> {
            let column = wanted.then(|| block.f_select(1, next)).transpose()?;
            next += i64::from(wanted);
            Ok(column)
        };
        let y = take(true)?;
        let (weight, group) = (take(self.weights)?, take(self.groups)?);
        let y = y.ok_or_else(|| anyhow!("a block without a target"))?;
        Ok(RawBlock { x: block.f_narrow(1, 0, features)?, y, weight, group })
    }
}

fn listed(names: &[String]) -> String {
    const MOST: usize = 24;
    let some = names.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{some}, …") } else { some }
}

/// What a network predicts where the recipe leaves it open: by the type of the target and how many values it has.
pub fn guess_goal(data: &TableDataConfig, head: &Head, name: &str) -> Result<Goal> {
    let Some(target) = &data.target else { return Ok(Goal::Number) };
    let position = find_column(&head.names, target, "data.target", name)?;
    Ok(match data.types.get(target).copied().unwrap_or(head.types[position]) {
        ColumnType::Number => Goal::Number,
        ColumnType::Category => Goal::Classes,
    })
}

/// Reads the table of a recipe into memory and prepares it.
///
/// # Errors
/// See the messages: whatever in the table cannot be fitted.
pub fn prepare(data: &TableDataConfig, goal: Goal, seed: u64, threads: usize) -> Result<Prepared> {
    let source = data.source()?;
    let mut reader = TableReader::open(&source, &data.form())?;
    if data.skip_bad {
        reader.skip_bad_rows();
    }
    let name = reader.name().to_owned();
    let roles = Roles::find(data, goal, reader.head(), &name)?;
    let (blocks, levels) = read_all(&mut reader, &roles.requests, threads)?;
    let mut warnings = skip_warning(&reader);
    let classes = classes_of(goal, &levels[roles.features.len()], &roles.target, &name)?;
    let blocks = without_missing(blocks, reader.missing(), &roles, data, &name, &mut warnings)?;
    let rows: usize = blocks.iter().map(|block| block.size()[0] as usize).sum();

    let test_fraction = if data.test_path.is_some() { 0.0 } else { data.test_fraction };
    let in_test = choose_test_rows(&blocks, &roles, rows, test_fraction, seed)?;
    let (mut train, mut test) = (Vec::new(), Vec::new());
    let mut first = 0;
    // Block by block, so that the table is not in memory twice.
    for block in blocks {
        let count = block.size()[0] as usize;
        match &in_test {
            None => train.push(roles.part(&block)?),
            Some(in_test) => {
                let positions = |wanted: bool| {
                    let chosen =
                        (0..count).filter(|row| in_test[first + row] == wanted).map(|row| row as i64);
                    Tensor::f_from_slice(&chosen.collect::<Vec<i64>>())
                };
                for (part, wanted) in [(&mut train, false), (&mut test, true)] {
                    let selected = block.f_index_select(0, &positions(wanted)?)?;
                    if selected.size()[0] > 0 {
                        part.push(roles.part(&selected)?);
                    }
                }
            }
        }
        first += count;
    }
    check_weights(&train, data, &name)?;
    let features = find_features(&train, &roles, data, &levels, reader.missing(), &name)?;
    let mut encoding = Encoding {
        target: roles.target.clone(),
        classes,
        features: features.iter().map(|found| found.feature.clone()).collect(),
        mean: Vec::new(),
        scale: Vec::new(),
        target_mean: 0.0,
        target_scale: 1.0,
    };
    for (column, found) in features.iter().enumerate() {
        if let Some(codes) = &found.codes {
            for block in train.iter().chain(&test) {
                recode(&block.x, column as i64, codes)?;
            }
        }
    }
    if data.unseen == UnseenPolicy::Error {
        refuse_unseen(&test, &features)?;
    }
    if let Some(path) = &data.test_path {
        test = read_with(&encoding, &TableSource::Path(path.clone()), data, threads)?.0;
    }
    measure(&mut encoding, &train, goal)?;
    refuse_useless_columns(&encoding, &train)?;
    refuse_missing_classes(&encoding, &train)?;
    Ok(Prepared { encoding, train, test, warnings })
}

fn skip_warning(reader: &TableReader) -> Vec<String> {
    match reader.skipped() {
        0 => Vec::new(),
        rows => vec![format!("{}: {} rows that cannot be read were left out", reader.name(), count(rows))],
    }
}

/// Reads rows for a known encoding, as `eval` and test files need them, and says what was left out.
///
/// # Errors
/// A column is missing, a category is unknown, a value is missing that training rows never missed.
pub fn read_with(
    encoding: &Encoding,
    source: &TableSource,
    data: &TableDataConfig,
    threads: usize,
) -> Result<(Vec<RawBlock>, Vec<String>)> {
    let mut reader = TableReader::open(source, &data.form())?;
    if data.skip_bad {
        reader.skip_bad_rows();
    }
    let name = reader.name().to_owned();
    let roles = Roles::known(encoding, data);
    let (blocks, _) = read_all(&mut reader, &roles.requests, threads)?;
    let mut warnings = skip_warning(&reader);
    let blocks = without_missing(blocks, reader.missing(), &roles, data, &name, &mut warnings)?;
    let parted = blocks.iter().map(|block| roles.part(block)).collect::<Result<Vec<_>>>()?;
    refuse_gaps(encoding, &parted, &name)?;
    Ok((parted, warnings))
}

/// Refuses missing values in features that had none in training, so that nothing stands in their place.
pub fn refuse_gaps(encoding: &Encoding, blocks: &[RawBlock], name: &str) -> Result<()> {
    for (column, feature) in encoding.features.iter().enumerate() {
        let filled = match &feature.kind {
            FeatureKind::Number { fill, .. } => fill.is_some(),
            FeatureKind::Category { fill, .. } => fill.is_some(),
        };
        if !filled {
            let mut missing = 0;
            for block in blocks {
                missing +=
                    block.x.f_select(1, column as i64)?.f_isnan()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            }
            if missing > 0 {
                bail_input!(
                    "{name}: column `{}` has {missing} missing values, and the model has nothing to put in their place: fill them, or train with --missing mean",
                    feature.name
                );
            }
        }
    }
    Ok(())
}

/// The classes of a target.
pub fn classes_of(
    goal: Goal,
    levels: &Option<Levels>,
    target: &str,
    name: &str,
) -> Result<Option<Vec<String>>> {
    if goal == Goal::Number {
        return Ok(None);
    }
    let classes = levels.as_ref().map(|levels| levels.texts.clone()).unwrap_or_default();
    match classes.len() {
        0 | 1 => {
            bail_input!("{name}: the target `{target}` has one value only: there is nothing to tell apart")
        }
        2 => Ok(Some(classes)),
        count if goal == Goal::TwoClasses => bail_input!(
            "{name}: the target `{target}` has {count} values where logistic regression takes two: use --model multinomial, or a target with two"
        ),
        count if count > MOST_CLASSES => {
            bail_input!("{name}: the target `{target}` has {count} different values: is it a class?")
        }
        _ => Ok(Some(classes)),
    }
}

/// Drops rows with missing values, of which there are `missing` by column, or refuses them, as the policy says.
fn without_missing(
    blocks: Vec<Tensor>,
    missing: &[u64],
    roles: &Roles,
    data: &TableDataConfig,
    name: &str,
    warnings: &mut Vec<String>,
) -> Result<Vec<Tensor>> {
    let features = roles.features.len();
    let told = |range: std::ops::Range<usize>| -> Vec<String> {
        range
            .filter(|&column| missing[column] > 0)
            .map(|column| format!("{} {}", roles.requests[column].name, count(missing[column])))
            .collect()
    };
    let (in_features, elsewhere) = (told(0..features), told(features..missing.len()));
    let dropped = match data.missing {
        MissingPolicy::Drop => 0..missing.len(),
        _ if !elsewhere.is_empty() => bail_input!(
            "{name} has rows without a target or weight ({}): leave them out with --missing drop",
            elsewhere.join(", ")
        ),
        MissingPolicy::Error if !in_features.is_empty() => bail_input!(
            "{name} has missing values ({}): choose --missing drop, mean, median or indicator",
            in_features.join(", ")
        ),
        _ => return Ok(blocks),
    };
    if in_features.is_empty() && elsewhere.is_empty() {
        return Ok(blocks);
    }
    let (mut kept, mut before, mut after) = (Vec::new(), 0, 0);
    for block in blocks {
        let used = block.f_narrow(1, 0, dropped.end as i64)?;
        let whole = used.f_isnan()?.f_any_dim(1, false)?.f_logical_not()?;
        let positions = whole.f_nonzero()?.f_view([-1])?;
        before += block.size()[0];
        after += positions.size()[0];
        if positions.size()[0] > 0 {
            kept.push(block.f_index_select(0, &positions)?);
        }
    }
    if kept.is_empty() {
        bail_input!(
            "{name}: every row has a missing value: choose --missing mean, median or indicator, or leave a column out with --drop"
        );
    }
    warnings.push(format!(
        "{} of {} rows have missing values and were left out ({})",
        count((before - after) as u64),
        count(before as u64),
        told(0..missing.len()).join(", ")
    ));
    Ok(kept)
}

/// Which rows are held out; whole groups where there are groups.
fn choose_test_rows(
    blocks: &[Tensor],
    roles: &Roles,
    rows: usize,
    fraction: f64,
    seed: u64,
) -> Result<Option<Vec<bool>>> {
    if fraction == 0.0 {
        return Ok(None);
    }
    if rows < 2 {
        bail_input!("there is one row only: nothing can be held out; use --test-fraction 0");
    }
    let mut in_test = vec![false; rows];
    if !roles.groups {
        for row in hold_out(rows, fraction, seed)?.1 {
            in_test[row] = true;
        }
        return Ok(Some(in_test));
    }
    let mut groups = Vec::with_capacity(rows);
    for block in blocks {
        let parted = roles.part(block)?;
        let group = parted.group.ok_or_else(|| anyhow!("a block without groups"))?;
        groups.extend(Vec::<f64>::try_from(group.f_contiguous()?)?);
    }
    let distinct = groups.iter().map(|group| *group as usize).max().map_or(0, |largest| largest + 1);
    if distinct < 2 {
        bail_input!("data.groups: all rows are of one group, so none can be held out; use --test-fraction 0");
    }
    let mut sizes = vec![0usize; distinct];
    for &group in &groups {
        sizes[group as usize] += 1;
    }
    let (mut chosen, mut held_out) = (BTreeSet::new(), 0);
    for group in permutation(distinct, seed)? {
        if held_out as f64 >= rows as f64 * fraction || chosen.len() + 1 == distinct {
            break;
        }
        chosen.insert(group);
        held_out += sizes[group];
    }
    for (row, group) in groups.iter().enumerate() {
        in_test[row] = chosen.contains(&(*group as usize));
    }
    Ok(Some(in_test))
}

fn check_weights(train: &[RawBlock], data: &TableDataConfig, name: &str) -> Result<()> {
    let Some(column) = &data.weights else { return Ok(()) };
    let mut sum = 0.0;
    for weight in train.iter().filter_map(|block| block.weight.as_ref()) {
        if weight.f_min()?.f_double_value(&[])? < 0.0 {
            bail_input!("{name}: the weights in column `{column}` must not be negative");
        }
        sum += weight.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    match sum > 0.0 {
        true => Ok(()),
        false => bail_input!("{name}: all weights in column `{column}` are 0"),
    }
}

/// A feature with what its codes become.
struct Found {
    feature: Feature,
    /// New code of each old one; `UNSEEN` for categories that no training row has.
    codes: Option<Vec<f64>>,
    /// Texts of the old codes.
    texts: Vec<String>,
}

/// Finds out in the training rows which categories there are and what stands for missing values.
fn find_features(
    train: &[RawBlock],
    roles: &Roles,
    data: &TableDataConfig,
    levels: &[Option<Levels>],
    missing: &[u64],
    name: &str,
) -> Result<Vec<Found>> {
    let mut found = Vec::with_capacity(roles.features.len());
    for (column, feature) in roles.features.iter().enumerate() {
        let values = || -> Result<Vec<Tensor>> {
            Ok(train
                .iter()
                .map(|block| block.x.f_select(1, column as i64))
                .collect::<std::result::Result<_, _>>()?)
        };
        // Those in the table may all be in test rows, or have been dropped.
        let mut has_missing = false;
        if missing[column] > 0 {
            for values in values()? {
                has_missing |= values.f_isnan()?.f_any()?.f_int64_value(&[])? != 0;
            }
        }
        found.push(match &levels[column] {
            None => {
                if data.reference.contains_key(feature) {
                    bail_input!("data.reference: `{feature}` is a column of numbers and has no categories");
                }
                let fill = match data.missing {
                    MissingPolicy::Error | MissingPolicy::Drop => None,
                    MissingPolicy::Mean | MissingPolicy::Indicator => Some(mean(&values()?)?),
                    MissingPolicy::Median => Some(median(&values()?)?),
                };
                if fill.is_some_and(f64::is_nan) {
                    bail_input!(
                        "{name}: column `{feature}` has no value at all: leave it out with --drop {feature}"
                    );
                }
                let indicator = data.missing == MissingPolicy::Indicator && has_missing;
                Found {
                    feature: Feature { name: feature.clone(), kind: FeatureKind::Number { fill, indicator } },
                    codes: None,
                    texts: Vec::new(),
                }
            }
            Some(levels) => find_categories(feature, &values()?, levels, data, has_missing, name)?,
        });
    }
    Ok(found)
}

fn find_categories(
    feature: &str,
    values: &[Tensor],
    levels: &Levels,
    data: &TableDataConfig,
    has_missing: bool,
    name: &str,
) -> Result<Found> {
    let mut counts = vec![0u64; levels.texts.len()];
    for values in values {
        for code in Vec::<f64>::try_from(values.f_contiguous()?)? {
            if !code.is_nan() {
                counts[code as usize] += 1;
            }
        }
    }
    let known: Vec<usize> = (0..counts.len()).filter(|&level| counts[level] > 0).collect();
    let mut texts: Vec<String> = known.iter().map(|&level| levels.texts[level].clone()).collect();
    let mut codes = vec![UNSEEN; counts.len()];
    for (new, &old) in known.iter().enumerate() {
        codes[old] = new as f64;
    }
    let fill = match (has_missing, data.missing) {
        (_, MissingPolicy::Error | MissingPolicy::Drop) => None,
        (true, MissingPolicy::Indicator) => {
            texts.push(MISSING_LEVEL.to_owned());
            Some(texts.len() - 1)
        }
        // The first of the most frequent ones.
        _ => (0..known.len()).rev().max_by_key(|&level| counts[known[level]]),
    };
    if texts.len() < 2 {
        let value = texts.first().cloned().unwrap_or_default();
        bail_input!(
            "{name}: column `{feature}` is constant (`{value}`) in the training rows: leave it out with --drop {feature}"
        );
    }
    let reference = match data.reference.get(feature) {
        None => 0,
        Some(wanted) => match texts.iter().position(|text| text == wanted) {
            Some(position) => position,
            None => bail_input!(
                "data.reference: column `{feature}` has no category `{wanted}` in the training rows{}",
                crate::recipe::nearest_hint(wanted, texts.iter().map(String::as_str))
            ),
        },
    };
    Ok(Found {
        feature: Feature {
            name: feature.to_owned(),
            kind: FeatureKind::Category { levels: texts, reference, fill },
        },
        codes: Some(codes),
        texts: levels.texts.clone(),
    })
}

fn mean(parts: &[Tensor]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0i64);
    for part in parts {
        sum += part.f_nan_to_num(0.0, 0.0, 0.0)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        count += part.f_isnan()?.f_logical_not()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    }
    Ok(sum / count as f64)
}

fn median(parts: &[Tensor]) -> Result<f64> {
    let mut values = Vec::new();
    for part in parts {
        values
            .extend(Vec::<f64>::try_from(part.f_contiguous()?)?.into_iter().filter(|value| !value.is_nan()));
    }
    if values.is_empty() {
        return Ok(f64::NAN);
    }
    let (middle, even) = (values.len() / 2, values.len().is_multiple_of(2));
    let (below, upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    let lower = below.iter().copied().max_by(f64::total_cmp);
    Ok(match lower {
        Some(lower) if even => (lower + *upper) / 2.0,
        _ => *upper,
    })
}

fn refuse_unseen(test: &[RawBlock], features: &[Found]) -> Result<()> {
    for (column, found) in features.iter().enumerate() {
        let Some(codes) = &found.codes else { continue };
        let lost: Vec<&String> = found
            .texts
            .iter()
            .zip(codes)
            .filter(|(_, code)| **code == UNSEEN)
            .map(|(text, _)| text)
            .collect();
        for block in test {
            let unseen =
                block.x.f_select(1, column as i64)?.f_eq(UNSEEN)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            if unseen > 0 {
                bail_input!(
                    "column `{}` has categories in the test rows that no training row has ({}): count them as the reference with --unseen reference, or choose another --seed",
                    found.feature.name,
                    lost.iter().map(|text| text.as_str()).collect::<Vec<_>>().join(", ")
                );
            }
        }
    }
    Ok(())
}

/// Mean and deviation of every column of the design, and of the target, over the training rows.
///
/// One pass, shifted by the means of the first block, so that large means cost no digits.
pub fn measure(encoding: &mut Encoding, train: &[RawBlock], goal: Goal) -> Result<()> {
    let add = |moments: &mut Moments, block: &RawBlock| {
        moments.add(&encoding.encode(&block.x)?, (goal == Goal::Number).then_some(&block.y))
    };
    let mut moments = Moments::default();
    if let [first, others @ ..] = train {
        add(&mut moments, first)?;
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
        let parts =
            shares(others.iter(), threads).into_iter().map(|share| (share, moments.beside())).collect();
        let parts = on_threads(parts, &|(share, mut moments)| {
            share.iter().try_for_each(|block| add(&mut moments, block))?;
            Ok(moments)
        })?;
        parts.into_iter().try_for_each(|part| moments.merge(part))?;
    }
    moments.write_into(encoding)
}

/// Running sums for means and deviations.
#[derive(Default)]
pub struct Moments {
    rows: f64,
    shift: Option<Tensor>,
    sums: Option<(Tensor, Tensor)>,
    has_target: bool,
}

impl Moments {
    /// Takes rows of a design with their numeric target.
    pub fn add(&mut self, design: &Tensor, target: Option<&Tensor>) -> Result<()> {
        let values = match target {
            Some(target) => Tensor::f_cat(&[design, &target.f_unsqueeze(1)?], 1)?,
            None => design.shallow_clone(),
        };
        self.has_target = target.is_some();
        let over_rows = |tensor: &Tensor| tensor.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        let shift = match &self.shift {
            Some(shift) => shift.shallow_clone(),
            None => {
                let shift = over_rows(&values)? / values.size()[0] as f64;
                self.shift = Some(shift.shallow_clone());
                shift
            }
        };
        let centred = values.f_sub(&shift)?;
        let (sum, squares) = (over_rows(&centred)?, over_rows(&centred.f_square()?)?);
        self.sums = Some(match self.sums.take() {
            Some((old_sum, old_squares)) => (old_sum + sum, old_squares + squares),
            None => (sum, squares),
        });
        self.rows += values.size()[0] as f64;
        Ok(())
    }

    /// Sums of other rows around the same shift, to be merged.
    fn beside(&self) -> Self {
        let shift = self.shift.as_ref().map(Tensor::shallow_clone);
        Self { rows: 0.0, shift, sums: None, has_target: self.has_target }
    }

    fn merge(&mut self, other: Moments) -> Result<()> {
        if let Some((sum, squares)) = other.sums {
            self.sums = Some(match self.sums.take() {
                Some((old_sum, old_squares)) => (old_sum.f_add(&sum)?, old_squares.f_add(&squares)?),
                None => (sum, squares),
            });
            self.rows += other.rows;
        }
        Ok(())
    }

    /// Closes the sums.
    pub fn write_into(self, encoding: &mut Encoding) -> Result<()> {
        let (Some(shift), Some((sum, squares))) = (self.shift, self.sums) else {
            bail_input!("there is no row to learn from");
        };
        let offset = sum / self.rows;
        let variance = (squares / self.rows - offset.f_square()?).f_clamp_min(0.0)?;
        let mut mean = Vec::<f64>::try_from(shift + offset)?;
        let mut scale = Vec::<f64>::try_from(variance.f_sqrt()?)?;
        if self.has_target {
            encoding.target_mean = mean.pop().unwrap_or_default();
            encoding.target_scale = scale.pop().filter(|scale| *scale > 0.0).unwrap_or(1.0);
        }
        (encoding.mean, encoding.scale) = (mean, scale);
        Ok(())
    }
}

/// Columns of one value, or equal to another, have no coefficient of their own.
pub fn refuse_useless_columns(encoding: &Encoding, train: &dyn RowSource) -> Result<()> {
    let names = encoding.columns();
    let constant: Vec<&str> = (0..names.len())
        .filter(|&column| is_constant(encoding.mean[column], encoding.scale[column]))
        .map(|column| names[column].as_str())
        .collect();
    if let [first, others @ ..] = constant.as_slice() {
        let verb = if others.is_empty() { "column {} is" } else { "columns {} are" };
        let quoted: Vec<String> = constant.iter().map(|name| format!("`{name}`")).collect();
        bail_input!(
            "{} constant in the training rows: leave {} out with --drop {first}",
            verb.replace("{}", &quoted.join(", ")),
            if others.is_empty() { "it" } else { "them" },
        );
    }
    // Equal columns have equal moments: only those with the same ones are compared value by value.
    let mut alike: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    for column in 0..names.len() {
        alike
            .entry((encoding.mean[column].to_bits(), encoding.scale[column].to_bits()))
            .or_default()
            .push(column);
    }
    for columns in alike.values().filter(|columns| columns.len() > 1) {
        for (position, &second) in columns.iter().enumerate().skip(1) {
            for &first in &columns[..position] {
                let mut equal = true;
                train.visit(&mut |block| {
                    if equal {
                        let design = encoding.encode(&block.x)?;
                        equal =
                            design.f_select(1, first as i64)?.f_equal(&design.f_select(1, second as i64)?)?;
                    }
                    Ok(())
                })?;
                if equal {
                    bail_input!(
                        "columns `{}` and `{}` are equal in all training rows: leave one out with --drop {}",
                        names[first],
                        names[second],
                        names[second]
                    );
                }
            }
        }
    }
    Ok(())
}

/// Whether a deviation is nothing but rounding.
fn is_constant(mean: f64, scale: f64) -> bool {
    scale <= mean.abs() * 1e-13
}

/// Every class needs a training row.
pub fn refuse_missing_classes(encoding: &Encoding, train: &dyn RowSource) -> Result<()> {
    let Some(classes) = &encoding.classes else { return Ok(()) };
    let mut counts = vec![0i64; classes.len()];
    train.visit(&mut |block| {
        let bins = block.y.f_to_kind(Kind::Int64)?.f_bincount(None::<&Tensor>, classes.len() as i64)?;
        for (total, count) in counts.iter_mut().zip(Vec::<i64>::try_from(bins)?) {
            *total += count;
        }
        Ok(())
    })?;
    match counts.iter().position(|&count| count == 0) {
        Some(class) => Err(bad_input!(
            "no training row is of the class `{}`: hold fewer rows out (--test-fraction), or choose another --seed",
            classes[class]
        )),
        None => Ok(()),
    }
}
