//! Features as the columns of a design.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::config::UnseenPolicy;
use crate::data::table::{ColumnRequest, Wanted};

/// The category of rows without a value, under the policy that gives them one.
pub const MISSING_LEVEL: &str = "(missing)";

/// How one column of the table enters the design.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FeatureKind {
    /// As it is.
    Number {
        /// What stands for a missing value.
        fill: Option<f64>,
        /// Whether a further column says where the value was missing.
        indicator: bool,
    },
    /// A column of zeros and ones for each category but the reference.
    Category {
        /// The categories of the training rows.
        levels: Vec<String>,
        /// Position of the category that has no column.
        reference: usize,
        /// Position of the category that stands for a missing value.
        fill: Option<usize>,
    },
}

/// A column of the table.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// How it enters the design.
    #[serde(flatten)]
    pub kind: FeatureKind,
}

/// All that is needed to make a design of table rows, found out in the training rows.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Encoding {
    /// The column that is predicted.
    pub target: String,
    /// The texts of the target in the order of their numbers, where they are classes.
    pub classes: Option<Vec<String>>,
    /// The features in the order of the design.
    pub features: Vec<Feature>,
    /// Mean of each column of the design over the training rows.
    pub mean: Vec<f64>,
    /// Standard deviation of each column of the design over the training rows, with n.
    pub scale: Vec<f64>,
    /// Mean and standard deviation of a numeric target.
    pub target_mean: f64,
    /// See `target_mean`; 1 for classes.
    pub target_scale: f64,
}

impl Encoding {
    /// Names of the design's columns: the feature's, `feature=category`, `feature (missing)`.
    pub fn columns(&self) -> Vec<String> {
        let mut names = Vec::new();
        for Feature { name, kind } in &self.features {
            match kind {
                FeatureKind::Number { indicator, .. } => {
                    names.push(name.clone());
                    names.extend(indicator.then(|| format!("{name} {MISSING_LEVEL}")));
                }
                FeatureKind::Category { levels, reference, .. } => {
                    let others = levels.iter().enumerate().filter(|(level, _)| level != reference);
                    names.extend(others.map(|(_, level)| format!("{name}={level}")));
                }
            }
        }
        names
    }

    /// What must be read of a table to encode it, without the target.
    pub fn requests(&self, unseen: UnseenPolicy) -> Vec<ColumnRequest> {
        let request = |feature: &Feature| ColumnRequest {
            name: feature.name.clone(),
            wanted: match &feature.kind {
                FeatureKind::Number { .. } => Wanted::Number,
                FeatureKind::Category { levels, .. } => Wanted::OneOf {
                    levels: levels.clone(),
                    otherwise: (unseen == UnseenPolicy::Reference).then_some(UNSEEN),
                },
            },
        };
        self.features.iter().map(request).collect()
    }

    /// Whether rows go into the design as they are.
    pub fn is_plain(&self) -> bool {
        let plain =
            |feature: &Feature| matches!(feature.kind, FeatureKind::Number { fill: None, indicator: false });
        self.features.iter().all(plain)
    }

    /// Whether there is something to put in the place of every missing value.
    pub fn is_filled(&self) -> bool {
        let filled = |feature: &Feature| match &feature.kind {
            FeatureKind::Number { fill, .. } => fill.is_some(),
            FeatureKind::Category { fill, .. } => fill.is_some(),
        };
        self.features.iter().all(filled)
    }

    /// Rows of the table `[rows, features]`, categories as codes and missing values as NaN, to rows of the design `[rows, columns]`. An
    /// unknown category is a row of zeros, which is the reference.
    pub fn encode(&self, rows: &Tensor) -> Result<Tensor> {
        if self.is_plain() {
            return Ok(rows.shallow_clone());
        }
        let mut parts = Vec::new();
        for (position, feature) in self.features.iter().enumerate() {
            let values = rows.f_narrow(1, position as i64, 1)?; // [rows, 1]
            match &feature.kind {
                FeatureKind::Number { fill: None, .. } => parts.push(values),
                FeatureKind::Number { fill: Some(fill), indicator } => {
                    let missing = values.f_isnan()?;
                    parts.push(values.f_masked_fill(&missing, *fill)?);
                    if *indicator {
                        parts.push(missing.f_to_kind(rows.kind())?);
                    }
                }
                FeatureKind::Category { levels, reference, fill } => {
                    let codes = match fill {
                        Some(fill) => values.f_masked_fill(&values.f_isnan()?, *fill as f64)?,
                        None => values,
                    };
                    // Compared with plain numbers and not with a tensor of them, which a trace would not keep.
                    for level in (0..levels.len()).filter(|level| level != reference) {
                        parts.push(codes.f_eq(level as f64)?.f_to_kind(rows.kind())?);
                    }
                }
            }
        }
        Ok(Tensor::f_cat(&parts, 1)?)
    }

    /// The name of the class with this number.
    pub fn class(&self, number: usize) -> String {
        let name = self.classes.as_ref().and_then(|classes| classes.get(number));
        name.cloned().unwrap_or_else(|| number.to_string())
    }

    /// Mean and deviation of the design's columns, float64.
    pub fn standards(&self, device: Device) -> Result<(Tensor, Tensor)> {
        let on_device =
            |values: &[f64]| Tensor::f_from_slice(values).and_then(|tensor| tensor.f_to_device(device));
        Ok((on_device(&self.mean)?, on_device(&self.scale)?))
    }
}

/// The code of a category that no training row has.
pub const UNSEEN: f64 = -1.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_gaps_and_unknown_texts_become_columns() -> Result<()> {
        let number = |name: &str, fill, indicator| Feature {
            name: name.to_owned(),
            kind: FeatureKind::Number { fill, indicator },
        };
        let encoding = Encoding {
            target: "y".to_owned(),
            classes: None,
            features: vec![
                number("a", None, false),
                number("b", Some(7.0), true),
                Feature {
                    name: "c".to_owned(),
                    kind: FeatureKind::Category {
                        levels: ["p", "q", "r"].map(str::to_owned).to_vec(),
                        reference: 1,
                        fill: Some(2),
                    },
                },
            ],
            mean: Vec::new(),
            scale: Vec::new(),
            target_mean: 0.0,
            target_scale: 1.0,
        };
        assert_eq!(encoding.columns(), ["a", "b", "b (missing)", "c=p", "c=r"]);
        let rows =
            Tensor::from_slice(&[1.0, 2.0, 0.0, 3.0, f64::NAN, f64::NAN, 4.0, 5.0, UNSEEN]).view([3, 3]);
        let design = Vec::<Vec<f64>>::try_from(encoding.encode(&rows)?)?;
        assert_eq!(design, [[1.0, 2.0, 0.0, 1.0, 0.0], [3.0, 7.0, 1.0, 0.0, 1.0], [4.0, 5.0, 0.0, 0.0, 0.0]]);
        let read = serde_json::from_value::<Encoding>(serde_json::to_value(&encoding)?)?;
        assert_eq!(read, encoding);
        Ok(())
    }
}
