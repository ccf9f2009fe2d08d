//! Tail probabilities and quantiles, by statrs. Tails are computed as such and never as one minus the other side, so that tiny values hold.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::function::beta::checked_beta_reg;
use statrs::function::erf::erfc;
use statrs::function::gamma::checked_gamma_ur;

/// P(|Z| > |z|) of a standard normal.
pub fn normal_two_sided(z: f64) -> f64 {
    erfc(z.abs() / std::f64::consts::SQRT_2)
}

/// P(|T| > |t|) of Student's t.
pub fn t_two_sided(t: f64, degrees: f64) -> f64 {
    beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))
}

/// P(F > f) of the F distribution.
pub fn f_tail(f: f64, numerator: f64, denominator: f64) -> f64 {
    if f <= 0.0 {
        return 1.0;
    }
    beta(denominator / 2.0, numerator / 2.0, denominator / (denominator + numerator * f))
}

/// P(X > x) of the χ² distribution.
pub fn chi_squared_tail(x: f64, degrees: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    checked_gamma_ur(degrees / 2.0, x / 2.0).unwrap_or(f64::NAN)
}

/// The value that a standard normal exceeds with probability `tail`.
pub fn normal_quantile(tail: f64) -> f64 {
    Normal::standard().inverse_cdf(1.0 - tail)
}

/// The value that Student's t exceeds with probability `tail`.
pub fn t_quantile(tail: f64, degrees: f64) -> f64 {
    let Ok(distribution) = StudentsT::new(0.0, 1.0, degrees) else { return f64::NAN };
    let mut value = distribution.inverse_cdf(1.0 - tail);
    // A step or two of Newton's method on the tail brings the last digits.
    for _ in 0..3 {
        let excess = t_two_sided(value, degrees) / 2.0 - tail;
        let density = statrs::distribution::Continuous::pdf(&distribution, value);
        if density.is_nan() || density <= 0.0 {
            break;
        }
        value += excess / density;
    }
    value
}

fn beta(a: f64, b: f64, x: f64) -> f64 {
    if x.is_nan() {
        return f64::NAN;
    }
    checked_beta_reg(a, b, x.clamp(0.0, 1.0)).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_hold_their_digits() {
        // scipy.stats 1.16: 2 * norm.sf(z), 2 * t.sf(t, df), f.sf, chi2.sf; t.ppf(0.975, df)
        for (found, expected) in [
            (normal_two_sided(1.0), 0.317_310_507_862_914_1),
            (normal_two_sided(10.0), 1.523_970_604_832_105_3e-23),
            (normal_two_sided(30.0), 9.813_427_854_295_816e-198),
            (t_two_sided(7.813302348874935, 431.0), 4.296391419518877e-14),
            (t_two_sided(59.06136586588633, 431.0), 1.0100819291677907e-208),
            (t_two_sided(0.16753125, 431.0), 0.867_030_638_220_541_2),
            (f_tail(46.272439585243234, 10.0, 431.0), 3.828649038185337e-62),
            (chi_squared_tail(316.607_04, 4.0), 2.830_610_871_303_329e-67),
        ] {
            let error = (found - expected).abs() / expected;
            assert!(error < 1e-6, "{found:e} instead of {expected:e}");
        }
        assert!(
            (t_quantile(0.025, 431.0) - 1.965_483_320_339_743_5).abs() < 1e-6,
            "{}",
            t_quantile(0.025, 431.0)
        );
        assert!((normal_quantile(0.025) - 1.959_963_984_540_054).abs() < 1e-12);
        assert!((t_quantile(0.025, 1.0) - 12.706_204_736_174_7).abs() < 1e-9);
    }
}
