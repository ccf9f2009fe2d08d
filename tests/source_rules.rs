//! Rules that hold for the source as a whole.

use std::path::{Path, PathBuf};

/// A line of the program proper: no test, no comment on a line of its own.
struct Line {
    place: String,
    /// Without a comment at its end.
    code: String,
    /// The comment at its end, and the block of comments above it.
    comment: String,
    /// The name of the function that it is in.
    function: String,
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every `.rs` file below a folder of `src`.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of a file up to its tests, which stand at its end.
fn lines_of(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = Vec::new();
    let (mut above, mut function, mut in_tests) = (String::new(), String::new(), false);
    for (number, line) in text.lines().enumerate() {
        let place = format!("{}:{}", path.display(), number + 1);
        if in_tests {
            let item =
                ["pub ", "fn ", "struct ", "enum ", "impl ", "trait ", "const ", "static ", "use ", "type "];
            assert!(
                !item.iter().any(|item| line.starts_with(item)),
                "{place}: tests stand at the end of a file, so that this test can tell them from the program"
            );
            continue;
        }
        if line == "#[cfg(test)]" {
            in_tests = true;
            continue;
        }
        let trimmed = line.trim_start();
        if let Some(comment) = trimmed.strip_prefix("//") {
            above.push_str(comment);
            continue;
        }
        let (code, at_end) = match trimmed.find(" // ") {
            Some(start) => trimmed.split_at(start),
            None => (trimmed, ""),
        };
        if let Some((_, rest)) = code.split_once("fn ") {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() {
                function = name;
            }
        }
        lines.push(Line {
            place,
            code: code.to_owned(),
            comment: format!("{at_end} {above}"),
            function: function.clone(),
        });
        above.clear();
    }
    lines
}

fn assert_none(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n{}", offences.join("\n"));
}

/// The places in a folder of `src` whose line offends.
fn offences(folder: &Path, offends: impl Fn(&Line) -> bool) -> Vec<String> {
    let files = rust_files(folder);
    assert!(!files.is_empty());
    let lines = files.iter().flat_map(|path| lines_of(path));
    lines.filter(|line| offends(line)).map(|line| format!("{}: {}", line.place, line.code)).collect()
}

#[test]
fn models_tasks_and_training_name_the_cpu_only_where_a_comment_says_why() {
    for folder in ["models", "tasks", "training"] {
        let found = offences(&source().join(folder), |line| {
            // A pattern asks which device it is; it does not choose one.
            let chosen = line.code.replace("Device::Cpu =>", "").replace("Device::Cpu |", "");
            chosen.contains("Device::Cpu") && !line.comment.contains("CPU")
        });
        assert_none(
            &found,
            "a device is written down without a comment (beside or above) that says why it is the CPU",
        );
    }
}

#[test]
fn only_native_is_unsafe() {
    let native = source().join("native");
    let is_word = |code: &str| {
        code.match_indices("unsafe").any(|(start, word)| {
            let boundary =
                |character: Option<char>| character.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            boundary(code[..start].chars().next_back()) && boundary(code[start + word.len()..].chars().next())
        })
    };
    let found: Vec<String> = offences(&source(), |line| is_word(&line.code))
        .into_iter()
        .filter(|place| !place.starts_with(&native.display().to_string()))
        .collect();
    assert_none(&found, "unsafe code outside src/native");
    assert!(!offences(&native, |line| is_word(&line.code)).is_empty(), "the search finds nothing at all");
}

#[test]
fn nothing_panics_on_purpose_outside_of_forward_passes() {
    let panics = [".unwrap()", ".expect(", "panic!(", "unreachable!(", "todo!(", "unimplemented!("];
    let found = offences(&source(), |line| {
        // tch's own operations panic there, too. Two steps of forward passes have the names of what they do.
        let is = |file: &str, function: &str| line.place.contains(file) && line.function == function;
        let forward = line.place.contains("/src/models/") && line.function.starts_with("forward")
            || is("/src/models/attention.rs:", "attention")
            || is("/src/models/blocks.rs:", "dropout");
        !forward && panics.iter().any(|panic| line.code.contains(panic))
    });
    assert_none(&found, "a panic outside tests and forward passes");
}

#[test]
fn an_error_of_the_input_is_never_a_context() {
    // As a context it would be a text, and the exit code that of a failed machine.
    let pattern = regex::Regex::new(r"context\(\s*(\|\|\s*\{?)?\s*[a-z:]*(bad_input!|BadInput)").unwrap();
    for path in rust_files(&source()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let found = pattern.find(&text).map(|found| text[..found.start()].lines().count());
        assert_eq!(found, None, "{}: use ok_or_else or map_err", path.display());
    }
}

#[test]
fn nothing_is_left_to_do() {
    let found = offences(&source(), |line| {
        ["TODO", "FIXME", "XXX"].iter().any(|mark| line.code.contains(mark) || line.comment.contains(mark))
    });
    assert_none(&found, "something is left to do");
}
