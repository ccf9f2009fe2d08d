//! Images are scaled as Pillow and torchvision do it.

use serde_json::Value;
use tch::{Kind, Tensor};
use tch_suite::data::decode::ImageForm;
use tch_suite::data::images::decode_file;
use tch_suite::data::resize::{Interpolation, Resize};
use tch_suite::models::pretrained::preprocessing_of;
use tch_suite::weights::{self, TensorSource};

use crate::support::{data, fixture};

fn sides(value: &Value) -> [usize; 2] {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn scaled_images_are_those_of_pillow_to_the_bit() {
    let cases = fixture("resizing.json");
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let (image, input) = (sides(&case["image"]), sides(&case["input"]));
        let interpolation: Interpolation = serde_json::from_value(case["interpolation"].clone()).unwrap();
        let resize =
            Resize { shorter_side: case["shorter_side"].as_u64().map(|side| side as usize), interpolation };
        let [height, width] = image;
        let value = |row: usize, column: usize| {
            row * 37 + column * 91 + row * column * 13 + (row / 5 + column / 7) % 2 * 128
        };
        let plane: Vec<u8> =
            (0..height * width).map(|place| (value(place / width, place % width) % 256) as u8).collect();
        let mut pixels = Vec::new();
        resize.append_plane(&plane, image, input, &mut pixels);
        let expected: Vec<u8> = serde_json::from_value(case["pixels"].clone()).unwrap();
        assert_eq!(pixels, expected, "{image:?} {resize:?}");
    }
}

#[test]
fn photographs_become_the_input_that_published_weights_were_tried_with() {
    let Some(folder) = data("pretrained/efficientnet_lite0") else { return };
    let expected = weights::open(&folder.join("expected.safetensors")).unwrap().tensor("input").unwrap();
    let form = ImageForm { channels: 3, size: [224, 224] };
    let preprocessing = preprocessing_of("efficientnet-lite0", 3, 224);
    let mut pixels = Vec::new();
    for name in ["china.jpg", "flower.jpg"] {
        decode_file(&folder.join("images").join(name), form, preprocessing.resize, &mut pixels).unwrap();
    }
    let found = Tensor::from_data_size(&pixels, &[2, 3, 224, 224], Kind::Uint8).to_kind(Kind::Float);
    let levels = (expected * preprocessing.std[0] + preprocessing.mean[0]) * 255.0;
    let difference = (found - levels).abs();
    // Decoders of JPEG differ by a level here and there.
    let (largest, mean) =
        (difference.max().double_value(&[]), difference.mean(Kind::Double).double_value(&[]));
    assert!(largest < 4.0 && mean < 0.3, "largest {largest}, mean {mean}");
}
