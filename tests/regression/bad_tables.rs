//! Tables and flags that cannot be used: one sentence, exit code 2, and no run folder.

use super::Place;
use crate::support::process::{assert_refused, regression, run};

/// Training on this text with these flags is refused with these words.
fn refuses(text: impl AsRef<[u8]>, flags: &[&str], words: &[&str]) {
    let place = Place::new();
    let table = place.write("t.csv", text);
    let refused = place.try_train("run", &[&["--data", &table][..], flags].concat());
    assert_refused(&refused, 2, words);
    assert!(!place.path("run").exists(), "{words:?} leaves a run folder");
}

/// A table of so many rows: x, z, y.
fn table(rows: usize) -> String {
    let mut text = "x,z,y\n".to_owned();
    for row in 0..rows {
        text.push_str(&format!("{row},{},{}\n", (row * row) % 7, (row * 3) % 11));
    }
    text
}

#[test]
fn a_column_that_is_not_there_is_named_with_the_nearest() {
    let good = table(40);
    refuses(&good, &["--target", "yy"], &["no column `yy`", "did you mean `y`?"]);
    refuses(&good, &[], &["no column `target`"]);
    refuses(&good, &["--target", "y", "--drop", "q"], &["data.drop", "no column `q`"]);
    refuses(&good, &["--target", "y", "--features", "x,y"], &["names the target"]);
    refuses(&good, &["--target", "y", "--drop", "x,z"], &["no column left"]);
}

#[test]
fn rows_that_cannot_be_read_are_told_with_their_line() {
    let good = table(40);
    refuses(
        good.replace("\n5,", "\n5,5,"),
        &["--target", "y"],
        &["line 7 has 4 fields where", "has 3 columns"],
    );
    refuses(
        good.replace("\n5,", "\nfive,"),
        &["--target", "y"],
        &["line 7: column `x` holds `five`, which is no number"],
    );
    refuses(good.replace("\n5,", "\ninf,"), &["--target", "y"], &["line 7: column `x` is infinite"]);
    refuses("", &["--target", "y"], &["is empty"]);
    refuses("x,y\n", &["--target", "y"], &["no rows"]);
    refuses(
        b"x,y\n1,2\n3,\xff\n",
        &["--target", "y", "--types", "y=category", "--recipe", "logistic"],
        &["line 3", "UTF-8"],
    );
    refuses(b"\xff\xfex\0", &["--target", "y"], &["UTF-16"]);
    refuses("1,2\n3,4\n", &["--target", "y"], &["numbers only", "--columns"]);
    refuses("x,x\n3,4\n", &["--target", "x"], &["two columns are called `x`"]);
    refuses(b"\x1f\x8b\x08\x00broken", &["--target", "x"], &["damaged gzip"]);
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let rows = |line: &dyn Fn(usize) -> String| {
        "a,b,y\n".to_owned() + &(0..30).map(|row| line(row) + "\n").collect::<String>()
    };
    let y = |row: usize| (row * 7) % 5;
    refuses(
        rows(&|row| format!("{row},4,{}", y(row))),
        &["--target", "y"],
        &["column `b` is constant", "--drop b"],
    );
    refuses(rows(&|row| format!("{row},{row},{}", y(row))), &["--target", "y"], &["`a` and `b` are equal"]);
    let twice = rows(&|row| format!("{row},{},{}", 2 * row + 1, y(row)));
    refuses(&twice, &["--target", "y", "--solver", "qr"], &["rank 2 of 3", "`a`, `b` depend on each other"]);
    refuses(&twice, &["--target", "y", "--solver", "cholesky"], &["rank 2 of 3"]);
    let few = "a,b,c,d,y\n1,2,3,5,4\n2,1,5,6,3\n4,4,1,9,1\n";
    let all = ["--target", "y", "--test-fraction", "0"];
    refuses(
        few,
        &[&all[..], &["--solver", "qr"]].concat(),
        &["3 training rows for 5 coefficients", "--solver svd"],
    );
    let gaps = rows(&|row| {
        format!("{row},{},{}", if row == 4 { String::new() } else { y(row).to_string() }, y(row))
    });
    refuses(
        &gaps,
        &["--target", "y"],
        &["missing values (b 1)", "--missing drop, mean, median or indicator"],
    );
    refuses(
        rows(&|row| format!("{row},1{row},k{}", row % 3)),
        &["--target", "y", "--recipe", "logistic"],
        &["has 3 values where logistic regression takes two"],
    );
    let parted = rows(&|row| format!("{row},{},{}", y(row), u8::from(row > 14)));
    refuses(
        &parted,
        &["--target", "y", "--recipe", "logistic", "--penalty", "none"],
        &["perfectly", "--penalty l2"],
    );
    refuses(
        &parted,
        &["--target", "y", "--recipe", "logistic", "--weights", "y"],
        &["data.weights is the target"],
    );
    let negative = rows(&|row| format!("{row},{},{}", row as i64 - 3, y(row)));
    refuses(&negative, &["--target", "y", "--weights", "b"], &["must not be negative"]);
    let many = rows(&|row| format!("{row},k{row},{}", y(row)));
    refuses(
        &many,
        &["--target", "y", "--set", "data.max_categories=10"],
        &["column `b` has more than 10 distinct texts"],
    );
}

#[test]
fn dependent_columns_are_told_where_a_solution_is_found_anyway() {
    let place = Place::new();
    let text: String = (0..30).map(|row| format!("{row},{},{}\n", 2 * row + 1, (row * 7) % 5)).collect();
    let table = place.write("t.csv", format!("a,b,y\n{text}"));
    let finished = place.try_train("run", &["--data", &table, "--target", "y", "--solver", "svd"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("rank 2 of 3: `a`, `b` depend on each other"), "{}", finished.stderr);
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    for (flags, words) in [
        (&["--recipe", "linear", "--alpha", "1"][..], &["model.alpha does not go with linear"][..]),
        (&["--recipe", "linear", "--solver", "newton"], &["newton does not fit linear", "qr"]),
        (&["--recipe", "linear", "--solver", "qrr"], &["unknown name `qrr`", "did you mean `qr`?"]),
        (&["--recipe", "linear", "--lr", "0.1"], &["--lr is for the trainer"]),
        (&["--recipe", "linear", "--set", "model.alhpa=1"], &["model.alhpa", "did you mean `alpha`?"]),
        (&["--recipe", "quantile", "--stream"], &["quantile"]),
        (&["--recipe", "logistic", "--c", "0"], &["model.c must be above 0"]),
        (&["--recipe", "mlp", "--cv", "3"], &["--cv goes with solvers"]),
        (&["--data", "no-such-file.csv"], &["no-such-file.csv", "does not exist"]),
        (&["--cv", "1"], &["--cv 1"]),
    ] {
        let place = Place::new();
        let refused = place.try_train("run", flags);
        assert_refused(&refused, 2, words);
    }
    assert_refused(
        &run(&mut regression(["describe", "diabetes", "--target", "bmj"])),
        2,
        &["did you mean `bmi`?"],
    );
}

#[test]
fn a_solver_that_gives_up_warns_and_fails_under_strict() {
    let place = Place::new();
    let flags = ["--recipe", "logistic", "--max-iterations", "2"];
    let warned = place.try_train("run", &flags);
    assert_eq!(warned.code, Some(0), "{}", warned.stderr);
    assert!(warned.stderr.contains("did not converge in 2 iterations"), "{}", warned.stderr);
    let failed = place.try_train("strict", &[&flags[..], &["--strict"]].concat());
    assert_refused(&failed, 1, &["did not converge"]);
    assert!(!place.path("strict").exists());
}
