//! Small data sets in MNIST's file format.

use std::path::Path;

/// How many classes the small images have.
pub const CLASSES: usize = 4;

/// Height and width of the small images, in pixels: little more than LeNet-5 needs.
pub const SIDE: usize = 14;

/// An IDX file: magic number, sizes, bytes.
pub fn idx(magic: u32, sizes: &[usize], values: &[u8]) -> Vec<u8> {
    let header = std::iter::once(magic).chain(sizes.iter().map(|&size| size as u32));
    header.flat_map(u32::to_be_bytes).chain(values.iter().copied()).collect()
}

/// The magic number of image files.
pub const IMAGES: u32 = 2051;
/// The magic number of label files.
pub const LABELS: u32 = 2049;

/// Numbers that look random and are the same everywhere.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    /// The next number below `bound` (xorshift64*, Vigna 2016).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// An image of a class: a bright quarter on noise, dim enough that learning it takes some steps.
pub fn image(class: usize, side: usize, noise: &mut Noise) -> Vec<u8> {
    let half = side / 2;
    let bright = |row: usize, column: usize| (row >= half) as usize * 2 + (column >= half) as usize == class;
    (0..side * side)
        .map(|pixel| {
            let light = if bright(pixel / side, pixel % side) { 60 } else { 0 };
            light + noise.below(150) as u8
        })
        .collect()
}

/// Writes one part (`train` or `t10k`) with the given labels.
pub fn write_part(folder: &Path, part: &str, labels: &[u8], side: usize, seed: u64) {
    let mut noise = Noise::new(seed);
    let pixels: Vec<u8> = labels.iter().flat_map(|&label| image(label.into(), side, &mut noise)).collect();
    let write = |name: String, content: Vec<u8>| std::fs::write(folder.join(name), content).unwrap();
    write(format!("{part}-images-idx3-ubyte"), idx(IMAGES, &[labels.len(), side, side], &pixels));
    write(format!("{part}-labels-idx1-ubyte"), idx(LABELS, &[labels.len()], labels));
}

/// Labels that take the classes in turn.
pub fn even_labels(count: usize) -> Vec<u8> {
    (0..count).map(|sample| (sample % CLASSES) as u8).collect()
}

/// Writes a data set of `train` and `test` images into a new folder; no test part where `test` is 0.
pub fn write(folder: &Path, train: usize, test: usize) {
    std::fs::create_dir_all(folder).unwrap();
    write_part(folder, "train", &even_labels(train), SIDE, 1);
    if test > 0 {
        write_part(folder, "t10k", &even_labels(test), SIDE, 2);
    }
}
