//! Images are scaled as Pillow and torchvision do it.

use serde_json::Value;
use tch_suite::data::resize::{Interpolation, Resize};

use crate::support::fixture;

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
