//! Passes over the rows of a design, block by block, from memory or from a file.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::algebra::{scalar, vector};
use super::config::{Goal, MissingPolicy, TableDataConfig};
use super::encoding::{Encoding, Feature, FeatureKind};
use super::parallel::{on_threads, shares};
use super::prepare::{Moments, RawBlock, Roles, classes_of, count_rows, refuse_gaps};
use crate::bail_input;
use crate::data::table::{ColumnType, TableReader, TableSource, Wanted};
use crate::reporting::format::count;

/// Rows that can be gone through as often as needed.
pub trait RowSource {
    /// Hands every block to `look`, always in the same order.
    fn visit(&self, look: &mut dyn FnMut(&RawBlock) -> Result<()>) -> Result<()>;

    /// How many rows there are.
    fn rows(&self) -> usize;

    /// The rows, where they are in memory.
    fn blocks(&self) -> Option<&[RawBlock]> {
        None
    }
}

impl RowSource for Vec<RawBlock> {
    fn blocks(&self) -> Option<&[RawBlock]> {
        Some(self)
    }

    fn visit(&self, look: &mut dyn FnMut(&RawBlock) -> Result<()>) -> Result<()> {
        self.iter().try_for_each(look)
    }

    fn rows(&self) -> usize {
        count_rows(self)
    }
}

/// Rows of a file that is read anew for each pass, in memory that does not grow with it.
pub struct StreamedRows {
    /// For rows that no first pass has looked at: what must not be missing in them.
    unseen: Option<Encoding>,
    source: TableSource,
    data: TableDataConfig,
    roles: Roles,
    rows: usize,
    threads: usize,
    seed: u64,
    /// Whether to hand out the held-out rows or the others.
    held_out: bool,
}

/// What the first pass over a streamed table finds out.
pub struct Streamed {
    /// How rows become a design.
    pub encoding: Encoding,
    /// What is learned from.
    pub train: StreamedRows,
    /// What is looked at at the end; none where nothing is held out.
    pub test: Option<StreamedRows>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Whether a row of a streamed table is held out: a function of seed and position alone (SplitMix64, Steele et al. 2014).
fn is_held_out(seed: u64, row: u64, fraction: f64) -> bool {
    let mut bits =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(row.wrapping_mul(0xd134_2543_de82_ef95));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64 - fraction < 0.0
}

impl StreamedRows {
    /// Goes through the table once: finds the categories, means and deviations of the training rows.
    ///
    /// # Errors
    /// As [`super::prepare::prepare`]; what needs all rows at a time (medians, groups) is refused.
    pub fn open(data: &TableDataConfig, goal: Goal, seed: u64, threads: usize) -> Result<Streamed> {
        let source = data.source()?;
        if !source.is_repeatable() {
            bail_input!("--stream reads the table several times, which stdin does not allow: give a file");
        }
        if data.groups.is_some() {
            bail_input!("--stream cannot keep groups together: leave out --groups");
        }
        if data.missing == MissingPolicy::Median {
            bail_input!("--stream cannot find medians: choose --missing mean or drop");
        }
        let mut reader = TableReader::open(&source, &data.form())?;
        if data.skip_bad {
            reader.skip_bad_rows();
        }
        let name = reader.name().to_owned();
        let roles = Roles::find(data, goal, reader.head(), &name)?;
        let fraction = if data.test_path.is_some() { 0.0 } else { data.test_fraction };

        // First pass: categories, and the means that stand for missing values.
        let width = roles.requests.len();
        let mut missing = vec![0i64; width];
        let (mut sums, mut present) = (vec![0.0; width], vec![0.0; width]);
        let mut level_counts: Vec<Vec<u64>> = vec![Vec::new(); width];
        let types = reader.head().clone();
        let is_category: Vec<bool> = roles
            .requests
            .iter()
            .map(|request| match request.wanted {
                Wanted::Feature { .. } => {
                    let position = types.names.iter().position(|name| *name == request.name);
                    position.is_some_and(|position| types.types[position] == ColumnType::Category)
                }
                _ => false,
            })
            .collect();
        let mut rows = 0u64;
        let levels = reader.read(&roles.requests, threads, &mut |block| {
            let gaps = block.f_isnan()?;
            let counts =
                Vec::<i64>::try_from(gaps.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Int64)?)?;
            let totals = Vec::<f64>::try_from(block.f_nansum([0i64].as_slice(), false, Kind::Double)?)?;
            for column in 0..width {
                missing[column] += counts[column];
                sums[column] += totals[column];
                present[column] += (block.size()[0] - counts[column]) as f64;
            }
            for (column, counts) in level_counts.iter_mut().enumerate() {
                if !is_category[column] {
                    continue;
                }
                let codes = block.f_select(1, column as i64)?;
                let codes = codes.f_nan_to_num(0.0, 0.0, 0.0)?.f_to_kind(Kind::Int64)?;
                let bins = Vec::<i64>::try_from(codes.f_bincount(None::<&Tensor>, counts.len() as i64)?)?;
                counts.resize(bins.len().max(counts.len()), 0);
                for (total, bin) in counts.iter_mut().zip(bins) {
                    *total += bin as u64;
                }
                // Missing values were counted as the first category.
                let gaps = gaps.f_select(1, column as i64)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
                counts[0] -= gaps as u64;
            }
            rows += block.size()[0] as u64;
            Ok(())
        })?;
        let mut warnings = Vec::new();
        if reader.skipped() > 0 {
            warnings
                .push(format!("{name}: {} rows that cannot be read were left out", count(reader.skipped())));
        }
        let features = roles.features.len();
        let told: Vec<String> = (0..width)
            .filter(|&column| missing[column] > 0)
            .map(|column| format!("{} {}", roles.requests[column].name, count(missing[column] as u64)))
            .collect();
        if !told.is_empty()
            && (data.missing == MissingPolicy::Error || missing[features..].iter().any(|&count| count > 0))
            && data.missing != MissingPolicy::Drop
        {
            bail_input!(
                "{name} has missing values ({}): choose --missing drop, mean or indicator",
                told.join(", ")
            );
        }
        let classes = classes_of(
            goal,
            &levels[features].as_ref().map(|levels| levels.sorted().0),
            &roles.target,
            &name,
        )?;
        let mut encoding = Encoding {
            target: roles.target.clone(),
            classes,
            features: Vec::new(),
            mean: Vec::new(),
            scale: Vec::new(),
            target_mean: 0.0,
            target_scale: 1.0,
        };
        for (column, feature) in roles.features.iter().enumerate() {
            let filled = !matches!(data.missing, MissingPolicy::Error | MissingPolicy::Drop);
            let indicator = data.missing == MissingPolicy::Indicator && missing[column] > 0;
            let kind = match &levels[column] {
                None => FeatureKind::Number {
                    fill: filled.then(|| sums[column] / present[column].max(1.0)),
                    indicator,
                },
                Some(levels) => {
                    let (sorted, codes) = levels.sorted();
                    let mut texts = sorted.texts;
                    let most = (0..texts.len())
                        .max_by_key(|&old| level_counts[column].get(old).copied().unwrap_or(0));
                    let mut fill = most.filter(|_| filled).map(|old| codes[old] as usize);
                    if indicator {
                        texts.push(super::encoding::MISSING_LEVEL.to_owned());
                        fill = Some(texts.len() - 1);
                    }
                    if texts.len() < 2 {
                        bail_input!(
                            "{name}: column `{feature}` is constant: leave it out with --drop {feature}"
                        );
                    }
                    let reference = match data.reference.get(feature) {
                        None => 0,
                        Some(wanted) => match texts.iter().position(|text| text == wanted) {
                            Some(position) => position,
                            None => {
                                bail_input!("data.reference: column `{feature}` has no category `{wanted}`")
                            }
                        },
                    };
                    FeatureKind::Category { levels: texts, reference, fill }
                }
            };
            encoding.features.push(Feature { name: feature.clone(), kind });
        }
        // From now on, categories are read as what they are known to be.
        let roles = Roles::known(&encoding, data);

        // Second pass: means and deviations.
        let of = |held_out: bool, rows: usize| StreamedRows {
            unseen: None,
            source: source.clone(),
            data: TableDataConfig { test_fraction: fraction, ..data.clone() },
            roles: roles.clone(),
            rows,
            threads,
            seed,
            held_out,
        };
        let mut train = of(false, 0);
        let (mut moments, mut learned) = (Moments::default(), 0);
        train.visit(&mut |block| {
            learned += block.rows() as usize;
            moments.add(&encoding.encode(&block.x)?, (goal == Goal::Number).then_some(&block.y))
        })?;
        moments.write_into(&mut encoding)?;
        train.rows = learned;
        let test = (fraction > 0.0).then(|| of(true, rows as usize - learned));
        Ok(Streamed { encoding, train, test, warnings })
    }
}

impl StreamedRows {
    /// All rows of a table for a known encoding; how many there are is not known.
    pub fn with(encoding: &Encoding, source: TableSource, data: &TableDataConfig, threads: usize) -> Self {
        Self {
            unseen: Some(encoding.clone()).filter(|_| data.missing != MissingPolicy::Drop),
            source,
            data: TableDataConfig { test_fraction: 0.0, ..data.clone() },
            roles: Roles::known(encoding, data),
            rows: 0,
            threads,
            seed: 0,
            held_out: false,
        }
    }
}

impl RowSource for StreamedRows {
    fn visit(&self, look: &mut dyn FnMut(&RawBlock) -> Result<()>) -> Result<()> {
        let mut reader = TableReader::open(&self.source, &self.data.form())?;
        if self.data.skip_bad {
            reader.skip_bad_rows();
        }
        let (mut row, fraction) = (0u64, self.data.test_fraction);
        reader.read(&self.roles.requests, self.threads, &mut |block| {
            let rows = block.size()[0];
            let mut kept = block;
            if fraction > 0.0 {
                let positions: Vec<i64> = (0..rows)
                    .filter(|offset| is_held_out(self.seed, row + *offset as u64, fraction) == self.held_out)
                    .collect();
                kept = kept.f_index_select(0, &Tensor::f_from_slice(&positions)?)?;
            }
            row += rows as u64;
            if self.data.missing == MissingPolicy::Drop {
                let whole = kept.f_isnan()?.f_any_dim(1, false)?.f_logical_not()?;
                kept = kept.f_index_select(0, &whole.f_nonzero()?.f_view([-1])?)?;
            }
            if kept.size()[0] == 0 {
                return Ok(());
            }
            let part = self.roles.part(&kept)?;
            if let Some(encoding) = &self.unseen {
                refuse_gaps(encoding, std::slice::from_ref(&part), &self.source.name())?;
            }
            look(&part)
        })?;
        Ok(())
    }

    fn rows(&self) -> usize {
        self.rows
    }
}

/// A block of rows as a solver sees it.
pub struct Block {
    /// The design `[rows, columns]`: a column of ones first where there is an intercept, the rest shifted and scaled.
    pub x: Tensor,
    /// The target `[rows]`.
    pub y: Tensor,
    /// Weights `[rows]`.
    pub weight: Option<Tensor>,
}

impl Block {
    /// The rows' weights, ones where there are none.
    pub fn weights(&self) -> Result<Tensor> {
        match &self.weight {
            Some(weight) => Ok(weight.shallow_clone()),
            None => Ok(self.y.f_ones_like()?),
        }
    }

    /// The sum of a value of each row, weighted.
    pub fn sum(&self, values: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Some(weight) => Ok(values.f_dot(weight)?),
            None => Ok(values.f_sum(Kind::Double)?),
        }
    }
}

/// What a block adds to some sums, given some tensors.
pub type SumOfBlock<'a> = dyn Fn(&[Tensor], &[Tensor], &Block) -> Result<()> + Sync + 'a;

/// How rows become those of a design; for one thread.
struct Transformation<'a> {
    encoding: &'a Encoding,
    intercept: bool,
    shift: Tensor,
    inverse: Tensor,
}

impl Transformation<'_> {
    fn block(&self, raw: &RawBlock) -> Result<Block> {
        let device = self.shift.device();
        let (columns, ones) = (self.shift.size()[0], i64::from(self.intercept));
        let encoded = self.encoding.encode(&raw.x.f_to_device(device)?)?;
        let x = Tensor::f_empty([raw.rows(), columns + ones], (Kind::Double, device))?;
        if self.intercept {
            let _ = x.f_narrow(1, 0, 1)?.f_fill_(1.0)?;
        }
        let part = x.f_narrow(1, ones, columns)?;
        let _ = encoded.f_sub_out(&part, &self.shift)?;
        let _ = part.shallow_clone().f_mul_(&self.inverse)?;
        let on_device = |tensor: &Tensor| tensor.f_to_device(device)?.f_contiguous();
        Ok(Block { x, y: on_device(&raw.y)?, weight: raw.weight.as_ref().map(on_device).transpose()? })
    }
}

/// Rows with the transformation under which they are fitted.
pub struct Design<'a> {
    rows: &'a dyn RowSource,
    encoding: &'a Encoding,
    /// Whether there is a column of ones.
    pub intercept: bool,
    /// What is subtracted from each column.
    pub shift: Vec<f64>,
    /// What each column is divided by after that.
    pub scale: Vec<f64>,
    device: Device,
    /// Only every so manieth block is looked at.
    every: usize,
}

impl<'a> Design<'a> {
    /// A design whose columns are centred where there is an intercept, and divided by their deviation if `scaled`.
    pub fn new(
        rows: &'a dyn RowSource,
        encoding: &'a Encoding,
        intercept: bool,
        scaled: bool,
        device: Device,
    ) -> Self {
        let columns = encoding.mean.len();
        let shift = if intercept { encoding.mean.clone() } else { vec![0.0; columns] };
        let scale = match scaled {
            true => encoding.scale.iter().map(|scale| if *scale > 0.0 { *scale } else { 1.0 }).collect(),
            false => vec![1.0; columns],
        };
        Self { rows, encoding, intercept, shift, scale, device, every: 1 }
    }

    /// The same design of a part of the rows, spread over all of them: every so manieth block.
    pub fn thinned(&self, every: usize) -> Self {
        let (shift, scale) = (self.shift.clone(), self.scale.clone());
        Self { rows: self.rows, encoding: self.encoding, shift, scale, every, ..*self }
    }

    /// How rows become a design.
    pub fn encoding(&self) -> &Encoding {
        self.encoding
    }

    /// The rows.
    pub fn source(&self) -> &dyn RowSource {
        self.rows
    }

    /// Columns with the ones.
    pub fn columns(&self) -> usize {
        self.shift.len() + usize::from(self.intercept)
    }

    /// Where the fit is computed.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Names of the columns; the intercept is `const`, as in statsmodels.
    pub fn names(&self) -> Vec<String> {
        let intercept = self.intercept.then(|| "const".to_owned());
        intercept.into_iter().chain(self.encoding.columns()).collect()
    }

    /// Hands every block to `look`.
    pub fn visit(&self, look: &mut dyn FnMut(&Block) -> Result<()>) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let transformation = self.transformation()?;
        self.visit_raw(&mut |raw| look(&transformation.block(raw)?))
    }

    /// Hands the rows of every block to `look` as they are.
    fn visit_raw(&self, look: &mut dyn FnMut(&RawBlock) -> Result<()>) -> Result<()> {
        let mut number = 0;
        self.rows.visit(&mut |raw| {
            number += 1;
            if (number - 1usize).is_multiple_of(self.every) { look(raw) } else { Ok(()) }
        })
    }

    /// Sums over all rows, on all threads where they are in memory: `look` adds what a block contributes to tensors that begin as zeros of
    /// these shapes (float64, on the device of the design). It is handed tensors that it needs for that.
    pub fn sum(&self, given: &[&Tensor], shapes: &[&[i64]], look: &SumOfBlock) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        let zeros = || -> Result<Vec<Tensor>> {
            let zero = |shape: &&[i64]| Tensor::f_zeros(*shape, (Kind::Double, self.device));
            Ok(shapes.iter().map(zero).collect::<std::result::Result<_, _>>()?)
        };
        let given = || given.iter().map(|tensor| tensor.shallow_clone()).collect::<Vec<_>>();
        let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
        let blocks = match self.rows.blocks() {
            Some(blocks) if self.device == Device::Cpu && threads > 1 => blocks,
            _ => {
                let (given, sums) = (given(), zeros()?);
                self.visit(&mut |block| look(&given, &sums, block))?;
                return Ok(sums);
            }
        };
        let parts = shares(blocks.iter().step_by(self.every), threads)
            .into_iter()
            .map(|share| Ok((share, given(), zeros()?, self.transformation()?)))
            .collect::<Result<Vec<_>>>()?;
        let sums = on_threads(parts, &|(share, given, sums, transformation)| {
            for raw in &share {
                look(&given, &sums, &transformation.block(raw)?)?;
            }
            Ok(sums)
        })?;
        let mut total = zeros()?;
        for part in sums {
            for (total, part) in total.iter_mut().zip(part) {
                let _ = total.f_add_(&part)?;
            }
        }
        Ok(total)
    }

    /// Weight of all rows, and weighted sum of all targets.
    pub fn totals(&self) -> Result<(f64, f64)> {
        let (mut weights, mut targets) = (0.0, 0.0);
        self.visit_raw(&mut |raw| {
            match &raw.weight {
                Some(weight) => {
                    weights += scalar(&weight.f_sum(Kind::Double)?)?;
                    targets += scalar(&weight.f_mul(&raw.y)?.f_sum(Kind::Double)?)?;
                }
                None => {
                    weights += raw.rows() as f64;
                    targets += scalar(&raw.y.f_sum(Kind::Double)?)?;
                }
            }
            Ok(())
        })?;
        Ok((weights, targets))
    }

    fn transformation(&self) -> Result<Transformation<'a>> {
        let inverse: Vec<f64> = self.scale.iter().map(|scale| 1.0 / scale).collect();
        Ok(Transformation {
            encoding: self.encoding,
            intercept: self.intercept,
            shift: vector(&self.shift)?.f_to_device(self.device)?,
            inverse: vector(&inverse)?.f_to_device(self.device)?,
        })
    }

    /// Coefficients of this design `[outputs, columns]` in the units of the table: intercepts and weights.
    pub fn in_units(&self, coefficients: &Tensor) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let (mut intercepts, mut weights) = (Vec::new(), Vec::new());
        for row in Vec::<Vec<f64>>::try_from(coefficients.f_to_device(Device::Cpu)?)? {
            let (mut intercept, scaled) = match self.intercept {
                true => (row[0], &row[1..]),
                false => (0.0, &row[..]),
            };
            let unscaled: Vec<f64> =
                scaled.iter().zip(&self.scale).map(|(weight, scale)| weight / scale).collect();
            if self.intercept {
                intercept -=
                    unscaled.iter().zip(&self.shift).map(|(weight, shift)| weight * shift).sum::<f64>();
            }
            intercepts.push(intercept);
            weights.push(unscaled);
        }
        Ok((intercepts, weights))
    }

    /// The matrix T with (intercept, weights) in the units of the table = T · coefficients of this design.
    pub fn to_units(&self) -> Result<Tensor> {
        let (size, ones) = (self.columns(), usize::from(self.intercept));
        let mut matrix = vec![0.0; size * size];
        for column in 0..self.shift.len() {
            let place = column + ones;
            matrix[place * size + place] = 1.0 / self.scale[column];
            if self.intercept {
                matrix[place] = -self.shift[column] / self.scale[column];
            }
        }
        if self.intercept {
            matrix[0] = 1.0;
        }
        Ok(vector(&matrix)?.f_view([size as i64, size as i64])?.f_to_device(self.device)?)
    }
}
