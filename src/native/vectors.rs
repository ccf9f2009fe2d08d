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
    if std::arch::is_x86_feature_detected!("avx2") {
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
