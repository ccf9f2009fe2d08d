//! Loops compiled for the widest vectors that the processor has.

/// A loop over integers: its result does not depend on the instructions that it is compiled to.
pub trait IntegerLoop {
    /// What it computes.
    type Output;

    /// Runs it. Implementations and what they call are `#[inline(always)]`, or they stay as they are.
    fn run(self) -> Self::Output;
}

/// Runs a loop with AVX2 where there is such.
pub fn run_wide<L: IntegerLoop>(work: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the processor has the instructions that the function is compiled to.
        return unsafe { run_with_avx2(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn run_with_avx2<L: IntegerLoop>(work: L) -> L::Output {
    work.run()
}

/// Takes interleaved bytes of three channels apart.
pub fn part_colors(interleaved: &[u8], planes: [&mut [u8]; 3]) {
    run_wide(Parting { interleaved, planes });
}

struct Parting<'a> {
    interleaved: &'a [u8],
    planes: [&'a mut [u8]; 3],
}

impl IntegerLoop for Parting<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [red, green, blue] = self.planes;
        for (((colors, red), green), blue) in self.interleaved.chunks_exact(3).zip(red).zip(green).zip(blue) {
            (*red, *green, *blue) = (colors[0], colors[1], colors[2]);
        }
    }
}

/// Weighted sums of neighbouring pixels of three interleaved bytes, by the instructions of AVX2, which compilers do not find for them: four neighbours
/// in all their channels at a time. To the bit what the plain loop computes.
#[derive(Debug)]
pub struct ColorFilter<'a> {
    first: &'a [usize],
    /// Per pixel so many groups of four neighbours.
    groups: usize,
    /// Of each group, the upper halves of the weights and the lower ones, in the order of the vectors' lanes.
    halves: Vec<[[i16; 16]; 2]>,
    precision: u32,
}

/// A weight is its upper half times 2^11 and its lower half, so that both fit into the factors of one multiplication.
const LOWER_BITS: i32 = 11;

impl<'a> ColorFilter<'a> {
    /// For pixels whose neighbours begin with `first` and have `reach` weights each, in units of 2^-`precision`. None where the processor has no AVX2, or
    /// a weight is too large for the halves.
    pub fn new(first: &'a [usize], weights: &[i32], reach: usize, precision: u32) -> Option<Self> {
        let fits = |&weight: &i32| i16::try_from(weight >> LOWER_BITS).is_ok();
        if !has_avx2() || reach == 0 || !weights.iter().all(fits) {
            return None;
        }
        let groups = reach.div_ceil(4);
        let mut halves = Vec::with_capacity(first.len() * groups);
        for weights in weights.chunks_exact(reach) {
            for four in weights.chunks(4) {
                let weight = |lane: usize| {
                    // Two neighbours, alternating, in the lower four pairs of lanes, two more in the upper.
                    four.get(lane / 8 * 2 + lane % 2).copied().unwrap_or(0)
                };
                halves.push([
                    std::array::from_fn(|lane| (weight(lane) >> LOWER_BITS) as i16),
                    std::array::from_fn(|lane| (weight(lane) & ((1 << LOWER_BITS) - 1)) as i16),
                ]);
            }
        }
        Some(Self { first, groups, halves, precision })
    }

    /// Writes the pixels of one row as far as enough bytes follow in `row`, whose first pixel is pixel `offset` of the line; returns how many pixels.
    pub fn run(&self, row: &[u8], offset: usize, out: &mut [u8]) -> usize {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `new` has looked for AVX2.
        return unsafe { self.run_with_avx2(row, offset, out) };
        #[cfg(not(target_arch = "x86_64"))]
        0
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn run_with_avx2(&self, row: &[u8], offset: usize, out: &mut [u8]) -> usize {
        use std::arch::x86_64::*;
        // From twelve bytes to words: the first channel of two neighbours, the second, the third, and nothing; in the upper half of
        // the vector for the next two neighbours.
        const NONE: i8 = -1;
        let order = _mm256_setr_epi8(
            0, NONE, 3, NONE, 1, NONE, 4, NONE, 2, NONE, 5, NONE, NONE, NONE, NONE, NONE, //
            6, NONE, 9, NONE, 7, NONE, 10, NONE, 8, NONE, 11, NONE, NONE, NONE, NONE, NONE,
        );
        let half = _mm_set1_epi32(1 << (self.precision - 1));
        let shift = _mm_cvtsi32_si128(self.precision as i32);
        let pixels =
            self.first.iter().zip(self.halves.chunks_exact(self.groups)).zip(out.chunks_exact_mut(3));
        for (done, ((&first, groups), out)) in pixels.enumerate() {
            let start = 3 * (first - offset);
            let Some(seen) = row.get(start..start + 12 * self.groups + 4) else {
                return done;
            };
            let (mut upper, mut lower) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            for (group, [upper_halves, lower_halves]) in groups.iter().enumerate() {
                // SAFETY: 16 bytes from byte 12 · group on are within the slice, and 32 within each array; none need be aligned.
                let (bytes, upper_halves, lower_halves) = unsafe {
                    (
                        _mm_loadu_si128(seen.as_ptr().add(12 * group).cast()),
                        _mm256_loadu_si256(upper_halves.as_ptr().cast()),
                        _mm256_loadu_si256(lower_halves.as_ptr().cast()),
                    )
                };
                let values = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), order);
                upper = _mm256_add_epi32(upper, _mm256_madd_epi16(values, upper_halves));
                lower = _mm256_add_epi32(lower, _mm256_madd_epi16(values, lower_halves));
            }
            let sums = _mm256_add_epi32(_mm256_slli_epi32::<LOWER_BITS>(upper), lower);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let whole = _mm_sra_epi32(_mm_add_epi32(sum, half), shift);
            let bytes = _mm_packus_epi16(_mm_packs_epi32(whole, whole), _mm_setzero_si128());
            out.copy_from_slice(&_mm_cvtsi128_si32(bytes).to_le_bytes()[..3]);
        }
        self.first.len()
    }
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}
