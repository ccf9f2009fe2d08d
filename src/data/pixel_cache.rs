//! Decoded images that are kept for the next pass, up to a limit.
//!
//! Every pass takes each image once, in another order: what was kept stays, what finds no room is decoded again each time. Replacing the oldest would keep
//! nothing that the next pass still finds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What may still be kept, in bytes; parts of a data set share it.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Budget {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    /// Takes bytes if there are so many.
    fn take(&self, bytes: usize) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// An image before it is varied.
#[derive(Debug, Default)]
pub struct KeptImage {
    /// Height and width.
    pub size: [usize; 2],
    /// `[channel, height, width]` bytes.
    pub pixels: Box<[u8]>,
}

/// A place for each sample.
#[derive(Debug)]
pub struct PixelCache {
    budget: Arc<Budget>,
    images: Vec<OnceLock<KeptImage>>,
}

impl PixelCache {
    /// Places for so many samples, all empty.
    pub fn new(samples: usize, budget: Arc<Budget>) -> Self {
        Self { budget, images: (0..samples).map(|_| OnceLock::new()).collect() }
    }

    /// The image of a sample, if it is kept.
    pub fn get(&self, sample: usize) -> Option<&KeptImage> {
        self.images[sample].get()
    }

    /// Whether so many more bytes would find room.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.budget.0.load(Ordering::Relaxed) >= bytes
    }

    /// Keeps an image if there is room.
    pub fn offer(&self, sample: usize, size: [usize; 2], pixels: &[u8]) {
        if self.get(sample).is_none() && self.budget.take(pixels.len()) {
            // Another thread may have been faster: then this one's share of the budget is lost, which keeps the bound.
            let _ = self.images[sample].set(KeptImage { size, pixels: pixels.into() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays_within_the_budget() {
        let budget = Arc::new(Budget::new(100));
        let (one, other) = (PixelCache::new(3, budget.clone()), PixelCache::new(3, budget));
        one.offer(0, [6, 10], &[1; 60]);
        one.offer(1, [6, 10], &[2; 60]);
        other.offer(2, [4, 10], &[3; 40]);
        other.offer(1, [1, 1], &[4]);
        assert_eq!(one.get(0).map(|kept| (kept.size, kept.pixels.len())), Some(([6, 10], 60)));
        assert!(one.get(1).is_none() && other.get(1).is_none());
        assert_eq!(other.get(2).map(|kept| kept.pixels[0]), Some(3));
    }
}
