//! Tests of the statistical test. Its results are compared with published tables, with closed forms
//! and with simulated differences.

use amp_verify::verdict::{
    Design, Verdict, count_limit, evaluations, power, t_quantile, tolerance_factor,
};
use rstest::rstest;

const DESIGN: Design =
    Design { margin: 0.02, alpha: 0.05, first: 5, most: 5, resolution: 0.0, equivalence: false };

/// Checks the quantiles of Student's t against those of scipy.stats.t.ppf.
#[rstest]
#[case(0.95, 1.0, 6.313751514675043)]
#[case(0.975, 2.0, 4.302652729696142)]
#[case(0.95, 4.0, 2.131846786326649)]
#[case(0.975, 9.0, 2.2621571627409915)]
#[case(0.995, 4.0, 4.604094871349993)]
#[case(0.99, 30.0, 2.457261542285175)]
fn quantiles_are_the_tables(#[case] p: f64, #[case] freedom: f64, #[case] expected: f64) {
    assert!((t_quantile(p, freedom) - expected).abs() < 1e-7 * expected);
}

/// Checks the numbers of seeds that a power of 80 % (second column) and of 97 % (third column)
/// needs against published tables of the one-sided t test. The first column is the margin divided
/// by σ, and α is 0.05.
#[rstest]
#[case(0.5, 27, 52)]
#[case(1.0, 8, 14)]
#[case(1.5, 5, 8)]
#[case(2.0, 4, 5)]
#[case(3.0, 3, 4)]
fn power_gives_the_tables_seeds(#[case] ratio: f64, #[case] eighty: usize, #[case] high: usize) {
    let fewest = |wanted: f64| (2..200).find(|n| power(ratio, 1.0, *n, 0.05) >= wanted);
    assert_eq!((fewest(0.80), fewest(0.97)), (Some(eighty), Some(high)));
}

/// Checks that the power equals the level α for every number n of differences if the effect is 0.
#[rstest]
fn power_without_an_effect_is_alpha(#[values(2, 3, 10, 60)] n: usize) {
    assert!((power(0.0, 1.0, n, 0.05) - 0.05).abs() < 1e-6);
}

/// Checks the interval of five differences against an interval computed by hand. The mean of the
/// differences is 0.01, their standard deviation is s = 0.01·√2.5/2 = 0.0079057, and the ends of
/// the interval are 0.01 ± 2.1318·s/√5.
#[test]
fn intervals_are_those_of_the_formula() {
    let found = DESIGN.judge(&[0.0, 0.005, 0.01, 0.015, 0.02]);
    let half = 2.131846786326649 * 0.007905694150420948 / 5.0_f64.sqrt();
    assert!((found.mean - 0.01).abs() < 1e-15);
    assert!((found.upper - (0.01 + half)).abs() < 1e-9);
    assert!((found.lower - (0.01 - half)).abs() < 1e-9);
    assert_eq!(found.verdict, Verdict::Pass);
}

#[rstest]
#[case::unchanged(&[0.0, 0.001, -0.001, 0.0, 0.001], false, Verdict::Pass)]
#[case::worse(&[0.05, 0.051, 0.049, 0.05, 0.052], false, Verdict::Fail)]
#[case::scattered(&[0.05, -0.05, 0.01, 0.03, -0.02], false, Verdict::Inconclusive)]
#[case::better(&[-0.05, -0.051, -0.049, -0.05, -0.052], false, Verdict::Pass)]
#[case::better_is_no_equivalence(&[-0.05, -0.051, -0.049, -0.05, -0.052], true, Verdict::Fail)]
#[case::equivalent(&[0.0, 0.001, -0.001, 0.0, 0.001], true, Verdict::Pass)]
#[case::one_pair_says_nothing(&[0.0], false, Verdict::Inconclusive)]
#[case::none_says_nothing(&[], false, Verdict::Inconclusive)]
#[case::not_a_number(&[0.0, f64::NAN, 0.0], false, Verdict::Inconclusive)]
fn three_ways(#[case] d: &[f64], #[case] equivalence: bool, #[case] expected: Verdict) {
    let found = Design { equivalence, ..DESIGN }.judge(d);
    assert_eq!(found.verdict, expected, "{found:?}");
    assert_eq!(found.improved, found.mean < -0.04);
}

/// Checks that the interval of equal differences is not empty. Their standard deviation is 0, so
/// the interval is computed from the standard deviation that is caused by rounding to multiples of
/// the metric's smallest change. The interval is wider than this change.
#[test]
fn equal_differences_are_judged_by_the_metrics_step() {
    let step = 1.0 / 360.0;
    let found = Design { resolution: step, ..DESIGN }.judge(&[0.0; 3]);
    assert_eq!(found.s, 0.0);
    assert!((found.s_used - step / 6.0_f64.sqrt()).abs() < 1e-15);
    assert!(found.upper > 0.5 * step && found.lower < -0.5 * step, "{found:?}");
    let coarse = Design { resolution: 0.1, ..DESIGN }.judge(&[0.0; 3]);
    assert_eq!(coarse.verdict, Verdict::Inconclusive, "ten examples cannot show 2%");
}

fn normal(random: &mut fastrand::Rng) -> f64 {
    let (u, v) = (1.0 - random.f64(), random.f64());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

const TRIALS: u32 = 4000;

/// Simulates many tests. Returns the fraction of them in which `design` gives `verdict`. The
/// simulated differences have the mean `mean` and the standard deviation 0.01. They are rounded to
/// the metric's resolution.
fn rate(design: Design, mean: f64, verdict: Verdict) -> f64 {
    let mut random = fastrand::Rng::with_seed(20260801);
    let mut count = 0;
    for _ in 0..TRIALS {
        let mut d = Vec::new();
        let mut draw = |count: usize, d: &mut Vec<f64>| {
            while d.len() < count {
                let exact = mean + 0.01 * normal(&mut random);
                d.push(match design.resolution {
                    0.0 => exact,
                    step => (exact / step).round() * step,
                });
            }
        };
        let mut found = Verdict::Inconclusive;
        for count in evaluations(design.first, design.most) {
            if found == Verdict::Inconclusive {
                draw(count, &mut d);
                found = design.judge(&d).verdict;
            }
        }
        count += u32::from(found == verdict);
    }
    f64::from(count) / f64::from(TRIALS)
}

/// Checks how often a regression as large as the margin passes. With one evaluation, the
/// probability is α. With several evaluations, the first of which has the level α/2, it is between
/// α/2 and α. The rate in 4,000 trials may differ from these limits by 3.3 binomial standard
/// deviations. A larger difference occurs by chance in about one of a thousand runs of the test.
#[rstest]
#[case::one_look(5, 5, 0.05, 0.05)]
#[case::two_looks(3, 4, 0.025, 0.05)]
#[case::three_looks(4, 10, 0.025, 0.05)]
#[case::nightly(8, 24, 0.025, 0.05)]
fn a_regression_of_the_margin_passes_at_most_alpha(
    #[case] first: usize,
    #[case] most: usize,
    #[case] low: f64,
    #[case] high: f64,
) {
    let design = Design { first, most, ..DESIGN };
    let deviation = |p: f64| 3.3 * (p * (1.0 - p) / f64::from(TRIALS)).sqrt();
    let found = rate(design, design.margin, Verdict::Pass);
    assert!(found >= low - deviation(low) && found <= high + deviation(high), "{found}");
}

/// Checks that the levels of all evaluations add up to α, so that the total risk is at most α, and
/// that the second evaluation adds a third of the seeds that remain after the first.
#[rstest]
#[case(5, 5, &[5])]
#[case(3, 4, &[3, 4])]
#[case(4, 10, &[4, 6, 10])]
#[case(8, 24, &[8, 14, 24])]
fn the_levels_of_all_evaluations_add_up_to_alpha(
    #[case] first: usize,
    #[case] most: usize,
    #[case] expected: &[usize],
) {
    let design = Design { first, most, ..DESIGN };
    assert_eq!(evaluations(first, most), expected);
    let total: f64 = expected.iter().map(|n| design.level(*n)).sum();
    assert!((total - design.alpha).abs() < 1e-12, "{total}");
}

/// Checks that, with one evaluation, two simulated rates equal the result of `power`: how often a
/// precision passes that is as good as 32-true, and how often a precision fails that is worse by
/// twice the margin.
#[rstest]
fn power_is_the_simulated_rate(#[values(3, 5, 8)] n: usize) {
    let design = Design { first: n, most: n, ..DESIGN };
    let expected = power(design.margin, 0.01, n, design.alpha);
    let bound = 3.3 * (expected * (1.0 - expected) / f64::from(TRIALS)).sqrt();
    let passes = rate(design, 0.0, Verdict::Pass);
    let fails = rate(design, 2.0 * design.margin, Verdict::Fail);
    assert!((passes - expected).abs() <= bound, "{passes}, not {expected} ± {bound}");
    assert!((fails - expected).abs() <= bound, "{fails}, not {expected} ± {bound}");
}

/// Checks that a regression as large as the margin passes with at most the probability α, even if
/// the metric changes in steps as large as σ.
#[test]
fn coarse_metrics_keep_to_alpha() {
    let design = Design { first: 3, most: 10, resolution: 0.01, ..DESIGN };
    let found = rate(design, design.margin, Verdict::Pass);
    assert!(found <= 0.05 + 3.3 * (0.05 * 0.95 / f64::from(TRIALS)).sqrt(), "{found}");
}

/// Checks the tolerance factors against those of ISO 16269-6 and of the NIST handbook.
#[rstest]
#[case(10, 0.05, 0.95, 2.911)]
#[case(30, 0.05, 0.95, 2.220)]
#[case(30, 0.01, 0.95, 3.064)]
#[case(50, 0.01, 0.95, 2.862)]
#[case(10, 0.10, 0.99, 3.048)]
fn the_tolerance_factor_is_the_tables(
    #[case] n: usize,
    #[case] risk: f64,
    #[case] confidence: f64,
    #[case] expected: f64,
) {
    let found = tolerance_factor(risk, confidence, n);
    assert!((found - expected).abs() < 1.5e-3, "{found}, not {expected}");
}

/// Checks the upper limit of a Poisson count against values that were computed in Python by summing
/// Poisson probabilities. First, a script searched for the mean with which the sum of `draws`
/// counts is at most `seen` with a probability of 5 %. The limit is the smallest count that a
/// Poisson distribution with this mean exceeds with at most the probability `risk`.
#[rstest]
#[case(0, 1, 0.01, 8)]
#[case(0, 4, 1e-7, 9)]
#[case(3, 4, 1e-5, 10)]
#[case(100, 4, 1e-7, 62)]
#[case(0, 0, 0.01, u64::MAX)]
fn the_limit_of_a_count_follows_from_poissons_distribution(
    #[case] seen: u64,
    #[case] draws: usize,
    #[case] risk: f64,
    #[case] expected: u64,
) {
    assert_eq!(count_limit(seen, draws, risk, 0.95), expected);
}
