//! Models under a seed begin with the very weights that they have in PyTorch under it.

use anyhow::Result;
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};
use tch_suite::models::Parameters;
use tch_suite::models::image::{self, ImageModelConfig};
use tch_suite::native::random::manual_seed;

use crate::support::{exclusive_generator, fixture, numbers};

/// One case of `scripts/references/initial_weights.py`.
#[derive(Deserialize)]
struct Case {
    model: String,
    seed: u64,
    image_size: [i64; 2],
    parameters: BTreeMap<String, Reference>,
}

#[derive(Deserialize)]
struct Reference {
    shape: Vec<i64>,
    first_bits: Vec<u32>,
    crc32: u32,
    sum: f64,
}

/// The float32 values as raw bits.
fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn initial_weights_are_pytorchs_to_the_last_bit() -> Result<()> {
    let _lock = exclusive_generator();
    let cases: Vec<Case> = serde_json::from_value(fixture("initial_weights.json")["cases"].clone())?;
    for case in cases {
        manual_seed(case.seed)?;
        let parameters = Parameters::new(Device::Cpu);
        let mut config: ImageModelConfig = serde_json::from_value(serde_json::json!({"name": case.model}))?;
        config.num_classes = Some(10);
        config.in_channels = Some(1);
        config.image_size = Some(case.image_size);
        image::build(&parameters.root(), &config)?;
        assert_eq!(parameters.entries().len(), case.parameters.len(), "{}", case.model);
        for (name, expected) in &case.parameters {
            let what = format!("{}, seed {}, {name}", case.model, case.seed);
            let tensor = parameters.get(name).unwrap_or_else(|| panic!("{what} is missing"));
            assert_eq!((tensor.size(), tensor.kind()), (expected.shape.clone(), Kind::Float), "{what}");
            let sum: f64 = numbers(&tensor).iter().sum();
            assert!((sum - expected.sum).abs() < 1e-9, "{what}: the sum is {sum}, expected {}", expected.sum);
            let bits = bits(&tensor);
            assert_eq!(bits[..expected.first_bits.len()], expected.first_bits, "{what}");
            let mut checksum = flate2::Crc::new();
            bits.iter().for_each(|bits| checksum.update(&bits.to_le_bytes()));
            assert_eq!(checksum.sum(), expected.crc32, "{what}: some value differs");
        }
    }
    Ok(())
}
