//! Fits on parts of the rows: cross-validation, regularisation paths, searches.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::config::{Goal, RegressionModelConfig};
use super::encoding::Encoding;
use super::fit::{Fit, fit};
use super::prepare::{RawBlock, count_rows, measure};
use super::scores::evaluate;
use crate::bail_input;
use crate::data::order::permutation;

/// Parts rows into `k` folds: for each row the fold in which it is held out.
///
/// Classes keep their shares in every fold; rows of a group are held out together. Drawn from the seed.
///
/// # Errors
/// There are fewer rows, groups, or rows of a class than folds.
pub fn folds(train: &[RawBlock], k: usize, classes: bool, seed: u64) -> Result<Vec<usize>> {
    let rows = count_rows(train);
    if k < 2 || k > rows {
        bail_input!(
            "--cv {k}: choose at least 2 and at most as many folds as there are training rows ({rows})"
        );
    }
    let column = |of: &dyn Fn(&RawBlock) -> Option<Tensor>| -> Result<Option<Vec<f64>>> {
        let mut values = Vec::with_capacity(rows);
        for block in train {
            match of(block) {
                Some(tensor) => values.extend(Vec::<f64>::try_from(tensor.f_contiguous()?)?),
                None => return Ok(None),
            }
        }
        Ok(Some(values))
    };
    let mut fold = vec![0; rows];
    if let Some(groups) = column(&|block| block.group.as_ref().map(Tensor::shallow_clone))? {
        let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
        for group in &groups {
            *sizes.entry(*group as u64).or_default() += 1;
        }
        if sizes.len() < k {
            bail_input!("--cv {k}: there are {} groups only", sizes.len());
        }
        // The largest groups first, each into the fold with the fewest rows so far (as scikit-learn's GroupKFold).
        let mut order: Vec<(u64, usize)> = sizes.into_iter().collect();
        order.sort_by_key(|&(group, size)| (std::cmp::Reverse(size), group));
        let (mut filled, mut of_group) = (vec![0; k], BTreeMap::new());
        for (group, size) in order {
            let smallest = (0..k).min_by_key(|&fold| filled[fold]).unwrap_or(0);
            filled[smallest] += size;
            of_group.insert(group, smallest);
        }
        for (fold, group) in fold.iter_mut().zip(&groups) {
            *fold = of_group.get(&(*group as u64)).copied().unwrap_or(0);
        }
        return Ok(fold);
    }
    let targets = match classes {
        true => {
            column(&|block| Some(block.y.shallow_clone()))?.ok_or_else(|| anyhow!("rows without targets"))?
        }
        false => vec![0.0; rows],
    };
    // Dealt out class by class in a random order.
    let mut next: BTreeMap<u64, usize> = BTreeMap::new();
    let mut dealt = 0;
    for row in permutation(rows, seed)? {
        let class = targets[row] as u64;
        let place = next.entry(class).or_insert_with(|| {
            dealt += 1;
            dealt - 1
        });
        fold[row] = *place % k;
        *place += 1;
    }
    if classes {
        for class in next.keys() {
            let count = targets.iter().filter(|target| **target as u64 == *class).count();
            if count < k {
                bail_input!("--cv {k}: a class has {count} training rows only");
            }
        }
    }
    Ok(fold)
}

/// The rows inside and outside of a fold.
pub fn part(train: &[RawBlock], fold: &[usize], held_out: usize) -> Result<(Vec<RawBlock>, Vec<RawBlock>)> {
    let (mut inside, mut outside, mut first) = (Vec::new(), Vec::new(), 0);
    for block in train {
        let rows = block.rows() as usize;
        for (part, wanted) in [(&mut inside, true), (&mut outside, false)] {
            let positions: Vec<i64> = (0..rows)
                .filter(|row| (fold[first + row] == held_out) == wanted)
                .map(|row| row as i64)
                .collect();
            if !positions.is_empty() {
                part.push(block.select(&Tensor::f_from_slice(&positions)?)?);
            }
        }
        first += rows;
    }
    Ok((outside, inside))
}

/// The result of a cross-validation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct CrossValidation {
    /// How many folds.
    pub folds: usize,
    /// Every metric on each held-out fold.
    pub scores: BTreeMap<String, Vec<f64>>,
}

impl CrossValidation {
    /// Mean of a metric over the folds.
    pub fn mean(&self, metric: &str) -> f64 {
        self.scores.get(metric).map_or(f64::NAN, |scores| scores.iter().sum::<f64>() / scores.len() as f64)
    }

    /// Standard error of that mean.
    pub fn standard_error(&self, metric: &str) -> f64 {
        let Some(scores) = self.scores.get(metric) else { return f64::NAN };
        let (count, mean) = (scores.len() as f64, self.mean(metric));
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        (squares / (count - 1.0) / count).sqrt()
    }

    fn add(&mut self, metrics: BTreeMap<String, f64>) {
        self.folds += 1;
        for (name, value) in metrics {
            self.scores.entry(name).or_default().push(value);
        }
    }
}

/// Rows with what a fit of them needs.
pub struct Sample<'a> {
    /// The rows.
    pub train: &'a [RawBlock],
    /// How they become a design. Centre and scale are found anew in each part.
    pub encoding: &'a Encoding,
    /// Whether to standardise; see `data.standardize`.
    pub standardize: Option<bool>,
    /// Where to compute.
    pub device: Device,
}

impl Sample<'_> {
    fn goal(&self) -> Goal {
        match &self.encoding.classes {
            None => Goal::Number,
            Some(classes) if classes.len() == 2 => Goal::TwoClasses,
            Some(_) => Goal::Classes,
        }
    }

    /// Fits rows with their own centre and scale.
    pub fn fit(&self, config: &RegressionModelConfig, rows: &Vec<RawBlock>) -> Result<Fit> {
        let mut encoding = self.encoding.clone();
        measure(&mut encoding, rows, self.goal())?;
        fit(config, &encoding, rows, self.standardize, self.device)
    }

    /// Fits outside each fold and scores inside.
    pub fn cross_validate(&self, config: &RegressionModelConfig, fold: &[usize]) -> Result<CrossValidation> {
        let mut result = CrossValidation::default();
        for held_out in 0..=fold.iter().copied().max().unwrap_or(0) {
            let (outside, inside) = part(self.train, fold, held_out)?;
            let fit = self.fit(config, &outside)?;
            result.add(evaluate(&fit.model, &inside)?.metrics);
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(y: &[f64], group: Option<&[f64]>) -> RawBlock {
        RawBlock {
            x: Tensor::from_slice(y).view([-1, 1]),
            y: Tensor::from_slice(y),
            weight: None,
            group: group.map(Tensor::from_slice),
        }
    }

    #[test]
    fn folds_keep_classes_and_groups_together() -> Result<()> {
        let y: Vec<f64> = (0..30).map(|row| f64::from(u8::from(row % 3 == 0))).collect();
        let fold = folds(&[block(&y[..7], None), block(&y[7..], None)], 5, true, 1)?;
        for held_out in 0..5 {
            let of_fold: Vec<f64> = (0..30).filter(|&row| fold[row] == held_out).map(|row| y[row]).collect();
            assert_eq!((of_fold.len(), of_fold.iter().sum::<f64>()), (6, 2.0));
        }
        let groups: Vec<f64> = (0..30).map(|row| f64::from(row / 4)).collect();
        let fold = folds(&[block(&y, Some(&groups))], 3, false, 1)?;
        for group in 0..7 {
            let of_group: Vec<usize> = (0..30).filter(|row| row / 4 == group).map(|row| fold[row]).collect();
            assert!(of_group.windows(2).all(|pair| pair[0] == pair[1]));
        }
        assert!(folds(&[block(&y[..3], None)], 5, false, 1).is_err());
        let (outside, inside) = part(&[block(&y, None)], &fold, 0)?;
        assert_eq!(count_rows(&outside) + count_rows(&inside), 30);
        Ok(())
    }
}
