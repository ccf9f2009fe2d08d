//! Test data too large for the repository, and tests that are skipped for want of it or of something else. Also part of the library's own tests.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Says why the test that runs is skipped: on stderr, which harnesses hide for tests that pass, and, once for each test, as a line of the file
/// that `TCH_SUITE_SKIP_LOG` names, so that a script can count them.
pub fn skipped(reason: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    // The harness names a test's thread after the test.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped: {test}: {reason}");
    let first = SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(test.clone());
    if let (true, Some(path)) = (first, std::env::var_os("TCH_SUITE_SKIP_LOG")) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        // One write, so that lines of several processes do not mix.
        file.write_all(format!("{test}: {reason}\n").as_bytes()).unwrap();
    }
}

/// A file or folder of the larger test data, below the folder that `TCH_SUITE_DATA` names. Where it is missing the test is [`skipped`].
pub fn data(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("TCH_SUITE_DATA") else {
        skipped("TCH_SUITE_DATA is not set");
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    if !path.exists() {
        skipped(&format!("TCH_SUITE_DATA has no {name}"));
        return None;
    }
    Some(path)
}
