//! Coefficients and statistics against scikit-learn and statsmodels.

use std::path::Path;

use serde_json::Value;

use super::{Place, coefficients, number, numbers};
use crate::support::runs::read_json;
use crate::support::{assert_close, data, fixture};

/// Asserts that numbers agree one by one, relative to each; those that are zero, relative to the largest.
fn assert_each_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let size = if *expected == 0.0 { scale } else { expected.abs() };
        assert!(
            (found - expected).abs() <= tolerance * size,
            "{what}: value {place} is {found}, expected {expected}"
        );
    }
}

/// One key of every coefficient of a run's statistics.
fn column(statistics: &Value, key: &str) -> Vec<f64> {
    statistics["coefficients"]
        .as_array()
        .unwrap()
        .iter()
        .map(|coefficient| number(&coefficient[key]))
        .collect()
}

fn figure(statistics: &Value, key: &str) -> f64 {
    let figures = statistics["figures"].as_array().unwrap();
    figures.iter().find(|figure| figure["key"] == key).map_or(f64::NAN, |figure| number(&figure["value"]))
}

fn statistics(run: &Path) -> Value {
    read_json(&run.join("statistics.json"))
}

#[test]
fn least_squares_has_the_statistics_of_statsmodels() {
    let (Some(reference), Some(tables)) = (data("parity/linear_models.json"), data("regression")) else {
        return;
    };
    let reference = read_json(&reference);
    let place = Place::new();
    for table in ["diabetes.csv", "diabetes_scaled.csv"] {
        let path = tables.join(table).display().to_string();
        let expected = &reference[table]["ols"];
        for solver in ["qr", "cholesky", "svd"] {
            let name = format!("{table}-{solver}");
            let run = place.train(
                &name,
                &["--recipe", "linear", "--data", &path, "--test-fraction", "0", "--solver", solver],
            );
            let found = statistics(&run);
            assert_each_close(&column(&found, "value"), &numbers(&expected["coef"]), 1e-8, &name);
            assert_each_close(&column(&found, "standard_error"), &numbers(&expected["std_err"]), 1e-8, &name);
            assert_each_close(&column(&found, "statistic"), &numbers(&expected["t"]), 1e-8, &name);
            assert_each_close(&column(&found, "p"), &numbers(&expected["p"]), 1e-6, &name);
            assert_each_close(&column(&found, "low"), &numbers(&expected["ci95_low"]), 1e-6, &name);
            assert_each_close(&column(&found, "high"), &numbers(&expected["ci95_high"]), 1e-6, &name);
            let robust: Vec<f64> = found["coefficients"]
                .as_array()
                .unwrap()
                .iter()
                .map(|coefficient| number(&coefficient["robust"][1]))
                .collect();
            assert_each_close(&robust, &numbers(&expected["std_err_HC1"]), 1e-6, &name);
            for (key, of) in [
                ("r2", "r2"),
                ("r2_adjusted", "r2_adj"),
                ("f", "f"),
                ("f_p", "f_p"),
                ("log_likelihood", "log_likelihood"),
                ("aic", "aic"),
                ("bic", "bic"),
                ("residual_variance", "residual_variance"),
            ] {
                assert_each_close(&[figure(&found, key)], &[number(&expected[of])], 1e-8, key);
            }
        }
    }
}

#[test]
fn penalised_fits_and_classifiers_have_the_coefficients_of_the_references() {
    let (Some(reference), Some(tables)) = (data("parity/linear_models.json"), data("regression")) else {
        return;
    };
    let reference = read_json(&reference);
    let place = Place::new();
    let table = |name: &str| tables.join(name).display().to_string();
    let with_intercept = |expected: &Value| -> Vec<f64> {
        std::iter::once(number(&expected["intercept"])).chain(numbers(&expected["coef"])).collect()
    };
    for (run, name, key, flags) in [
        ("r1", "diabetes.csv", "ridge_alpha_1", &["--recipe", "ridge", "--alpha", "1"][..]),
        (
            "r2",
            "diabetes_scaled.csv",
            "ridge_alpha_1",
            &["--recipe", "ridge", "--alpha", "1", "--solver", "svd"],
        ),
        ("l", "diabetes_scaled.csv", "lasso_alpha_0.1", &["--recipe", "lasso", "--alpha", "0.1"]),
        (
            "e",
            "diabetes_scaled.csv",
            "elastic_net_alpha_0.01_l1_0.5",
            &["--recipe", "elastic-net", "--alpha", "0.01"],
        ),
    ] {
        let path = table(name);
        let shared = ["--data", &path, "--standardize", "false", "--test-fraction", "0"];
        let run = place.train(run, &[flags, &shared].concat());
        assert_each_close(&coefficients(&run), &with_intercept(&reference[name][key]), 1e-8, key);
    }

    let path = table("breast_cancer.csv");
    let expected = &reference["breast_cancer.csv"]["logit_unregularised"];
    let features: Vec<&str> =
        expected["features"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let run = place.train(
        "logit",
        &[
            "--recipe",
            "logistic",
            "--penalty",
            "none",
            "--data",
            &path,
            "--features",
            &features.join(","),
            "--test-fraction",
            "0",
        ],
    );
    let found = statistics(&run);
    for (key, of, tolerance) in [
        ("value", "coef", 1e-8),
        ("standard_error", "std_err", 1e-6),
        ("statistic", "z", 1e-6),
        ("p", "p", 1e-6),
        ("low", "ci95_low", 1e-6),
        ("high", "ci95_high", 1e-6),
    ] {
        assert_each_close(&column(&found, key), &numbers(&expected[of]), tolerance, key);
    }
    for (key, of) in [
        ("log_likelihood", "log_likelihood"),
        ("log_likelihood_null", "log_likelihood_null"),
        ("pseudo_r2", "pseudo_r2_mcfadden"),
        ("aic", "aic"),
        ("bic", "bic"),
    ] {
        assert_each_close(&[figure(&found, key)], &[number(&expected[of])], 1e-8, key);
    }

    let expected = &reference["breast_cancer.csv"]["logistic_l2_C_1_standardised"];
    let run = place.train("l2", &["--recipe", "logistic", "--data", &path, "--test-fraction", "0"]);
    assert_each_close(&standardised(&run)[0], &with_intercept(expected), 1e-8, "logistic, l2");

    let expected = &reference["iris.csv"]["multinomial_l2_C_1"];
    let expected: Vec<f64> = expected["coef"]
        .as_array()
        .unwrap()
        .iter()
        .zip(numbers(&expected["intercept"]))
        .flat_map(|(row, intercept)| std::iter::once(intercept).chain(numbers(row)))
        .collect();
    for solver in ["newton", "lbfgs"] {
        let flags =
            ["--recipe", "multinomial", "--standardize", "false", "--test-fraction", "0", "--solver", solver];
        let run = place.train(solver, &[&flags[..], &["--data", &table("iris.csv")]].concat());
        assert_close(&coefficients(&run), &expected, 1e-8, solver);
    }
}

/// The coefficients of a run in units of deviations, intercept first, for each output.
fn standardised(run: &Path) -> Vec<Vec<f64>> {
    let model = read_json(&run.join("model.json"));
    let (mean, scale) = (numbers(&model["encoding"]["mean"]), numbers(&model["encoding"]["scale"]));
    let outputs = model["coefficients"].as_array().unwrap().iter().zip(numbers(&model["intercept"]));
    outputs
        .map(|(row, intercept)| {
            let row = numbers(row);
            let moved: f64 = row.iter().zip(&mean).map(|(weight, mean)| weight * mean).sum();
            std::iter::once(intercept + moved)
                .chain(row.iter().zip(&scale).map(|(weight, scale)| weight * scale))
                .collect()
        })
        .collect()
}

#[test]
fn paths_of_penalties_agree_with_scikit_learn() {
    // Made by scripts/references/regression_models.py.
    let reference = fixture("regression_models.json");
    let cases = reference["cases"].as_array().unwrap();
    assert!(cases.len() > 40, "{}", cases.len());
    let place = Place::new();
    for (position, case) in cases.iter().enumerate() {
        let settings = case["settings"].as_object().unwrap();
        let model = case["settings"]["name"].as_str().unwrap();
        let scaled = case["scaled"].as_bool().unwrap();
        let mut arguments: Vec<String> =
            ["--recipe", model, "--data", case["table"].as_str().unwrap()].map(str::to_owned).to_vec();
        arguments.extend(["--test-fraction", "0", "--standardize", &scaled.to_string()].map(str::to_owned));
        for (key, value) in settings.iter().filter(|(key, _)| *key != "name") {
            arguments.extend(["--set".to_owned(), format!("model.{key}={value}")]);
        }
        let borrowed: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = place.train(&position.to_string(), &borrowed);
        let found = match scaled {
            true => standardised(&run).concat(),
            false => coefficients(&run),
        };
        let rows = case["coefficients"].as_array().unwrap().iter();
        let expected: Vec<f64> = numbers(&case["intercept"])
            .into_iter()
            .zip(rows)
            .flat_map(|(intercept, row)| std::iter::once(intercept).chain(numbers(row)))
            .collect();
        // The references of these are not more exact: they stop by their own tolerance.
        let tolerance = match (model, case["settings"]["penalty"].as_str()) {
            ("huber", _) => 1e-4,
            ("logistic", Some("l1")) => 1e-6,
            ("quantile", _) => 1e-7,
            ("multinomial", _) => 1e-6,
            _ => 1e-8,
        };
        assert_close(&found, &expected, tolerance, &format!("{}", case["settings"]));
    }
}

#[test]
fn diagnostics_and_counts_are_those_of_statsmodels() {
    // Made by scripts/references/regression_models.py.
    let reference = &fixture("regression_models.json")["statistics"];
    let place = Place::new();
    let all_figures = |found: &Value, expected: &Value, tolerance: f64| {
        for (key, value) in expected["figures"].as_object().unwrap() {
            assert_each_close(&[figure(found, key)], &[number(value)], tolerance, key);
        }
    };
    let whole = ["--test-fraction", "0"];
    let found = statistics(&place.train("linear", &whole));
    let expected = &reference["linear"];
    all_figures(&found, expected, 1e-7);
    let vif: Vec<f64> = column(&found, "vif")[1..].to_vec();
    assert_each_close(&vif, &numbers(&expected["vif"]), 1e-8, "VIF");
    for kind in 0..4 {
        let coefficients = found["coefficients"].as_array().unwrap().iter();
        let errors: Vec<f64> = coefficients.map(|coefficient| number(&coefficient["robust"][kind])).collect();
        assert_each_close(&errors, &numbers(&expected["robust"][kind]), 1e-8, "HC");
    }

    let found = statistics(&place.train("poisson", &[&whole[..], &["--recipe", "poisson"]].concat()));
    let expected = &reference["poisson"];
    all_figures(&found, expected, 1e-8);
    assert_each_close(&column(&found, "value"), &numbers(&expected["coef"]), 1e-8, "poisson");
    assert_each_close(&column(&found, "standard_error"), &numbers(&expected["std_err"]), 1e-8, "poisson");

    let expected = &reference["multinomial"];
    let features = expected["features"].as_str().unwrap();
    let flags = ["--recipe", "multinomial", "--penalty", "none", "--features", features];
    let run = place.train("multinomial", &[&whole[..], &flags].concat());
    all_figures(&statistics(&run), expected, 1e-8);
    // Against the first class instead of the mean of all.
    let found = coefficients(&run);
    let columns = found.len() / 3;
    for (column, row) in expected["coef"].as_array().unwrap().iter().enumerate() {
        let against: Vec<f64> = (1..3).map(|class| found[class * columns + column] - found[column]).collect();
        assert_each_close(&against, &numbers(row), 1e-7, "multinomial");
    }
}

#[test]
fn robust_fits_have_the_standard_errors_of_statsmodels() {
    // Made by scripts/references/regression_models.py.
    let reference = &fixture("regression_models.json")["statistics"];
    let place = Place::new();
    let whole = ["--test-fraction", "0"];
    let flags = ["--recipe", "huber", "--alpha", "0"];
    let found = statistics(&place.train("huber", &[&whole[..], &flags].concat()));
    let expected = &reference["huber"];
    assert_each_close(&[figure(&found, "scale")], &[number(&expected["scale"])], 1e-5, "huber");
    // scikit-learn's scale is as exact as its stop.
    for (key, of, tolerance) in
        [("value", "coef", 1e-3), ("standard_error", "std_err", 1e-5), ("p", "p", 1e-3)]
    {
        assert_each_close(&column(&found, key), &numbers(&expected[of]), tolerance, key);
    }
    for quantile in ["0.5", "0.8"] {
        let flags = ["--recipe", "quantile", "--set", &format!("model.quantile={quantile}")];
        let found = statistics(&place.train(&format!("quantile{quantile}"), &[&whole[..], &flags].concat()));
        let expected = &reference[format!("quantile_{quantile}")];
        for (key, value) in expected["figures"].as_object().unwrap() {
            assert_each_close(&[figure(&found, key)], &[number(value)], 1e-3, key);
        }
        assert_close(&column(&found, "value"), &numbers(&expected["coef"]), 1e-4, "quantile");
        assert_close(&column(&found, "standard_error"), &numbers(&expected["std_err"]), 1e-3, "quantile");
    }
    // A penalty has none.
    let found = statistics(&place.train("penalised", &[&whole[..], &["--recipe", "huber"]].concat()));
    assert!(found["coefficients"][0]["standard_error"].is_null());
}
