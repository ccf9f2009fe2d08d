//! Work on blocks of rows that are in memory, on several threads.
//!
//! A block is small, so libtorch's own threads would meet at a barrier after each of many short operations. Here a thread takes whole
//! blocks instead, and computes alone. Which blocks it takes does not depend on time, so sums are the same in every run with as many threads.

use anyhow::{Result, anyhow};

use super::prepare::RawBlock;

/// Cuts blocks into as many runs as there are threads to use, in order; handles, not copies.
pub fn shares<'a>(blocks: impl ExactSizeIterator<Item = &'a RawBlock>, threads: usize) -> Vec<Vec<RawBlock>> {
    let size = blocks.len().div_ceil(threads.max(1)).max(1);
    let mut shares: Vec<Vec<RawBlock>> = Vec::new();
    for block in blocks {
        match shares.last_mut() {
            Some(share) if share.len() < size => share.push(block.handle()),
            _ => shares.push(vec![block.handle()]),
        }
    }
    shares
}

/// Works on every part on a thread of its own, on which libtorch uses no others; results in the order of the parts.
pub fn on_threads<P: Send, R: Send>(parts: Vec<P>, work: &(dyn Fn(P) -> Result<R> + Sync)) -> Result<Vec<R>> {
    if parts.len() < 2 {
        let _guard = tch::no_grad_guard();
        return parts.into_iter().map(work).collect();
    }
    let threads = tch::get_num_threads();
    let results = std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .into_iter()
            .map(|part| {
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let _guard = tch::no_grad_guard();
                    work(part)
                })
            })
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        joined.map(|result| result.map_err(|_| anyhow!("a thread of the fit ended early"))?).collect()
    });
    // What later threads begin with, which each of these has set to one.
    tch::set_num_threads(threads);
    results
}
