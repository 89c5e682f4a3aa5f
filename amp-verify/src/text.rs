//! Formats texts and numbers for display.

/// Joins the lines of a text to one line.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Joins the lines of clap's error message to one line, without the usage and the hint at `--help`.
pub fn usage_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("Usage:")).collect();
    let line = lines.join(" ").replace(" tip: ", "; tip: ");
    line.strip_suffix("For more information, try '--help'.").unwrap_or(&line).trim_end().to_owned()
}

/// Replaces the error messages of Rust's number parsers by a description of a valid number.
pub fn remedied(message: &str) -> String {
    [
        ("invalid digit found in string", "it must be a whole number, at least 0"),
        ("number too large to fit in target type", "it is too large"),
        ("cannot parse integer from empty string", "it must be a whole number"),
        ("invalid float literal", "it must be a number"),
        ("cannot parse float from empty string", "it must be a number"),
    ]
    .iter()
    .fold(message.to_owned(), |message, (reason, remedy)| message.replace(reason, remedy))
}

/// Formats a count: `1 thread`, `2 threads`.
pub fn counted(count: i32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Formats a number with a sign and `digits` decimals. A number that is rounded to zero gets a plus
/// sign.
pub fn signed(value: f64, digits: usize) -> String {
    let text = format!("{value:+.digits$}");
    let is_zero = text.bytes().all(|byte| !byte.is_ascii_digit() || byte == b'0');
    if is_zero { text.replace('-', "+") } else { text }
}

/// Formats a number with `digits` significant digits, without trailing zeros: `0`, `0.85`,
/// `1.3e-7`, `120000`. Uses an exponent if the number is below 10⁻⁴, or 10⁶ or more.
pub fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return value.to_string();
    }
    let after = digits.saturating_sub(1);
    let scientific = format!("{value:.after$e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..6).contains(&exponent) {
        return format!("{}e{exponent}", without_zeros(mantissa));
    }
    let rounded: f64 = scientific.parse().unwrap_or(value);
    let decimals = usize::try_from(after as i32 - exponent).unwrap_or_default();
    without_zeros(&format!("{rounded:.decimals$}")).to_owned()
}

/// Formats the fraction `share` as a percentage with two significant digits. A percentage below
/// 0.001 that is not zero is shown as `under 0.001 %`.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent.abs() {
        small if small > 0.0 && small < 1e-3 => "under 0.001 %".to_owned(),
        _ => format!("{} %", significant(percent, 2)),
    }
}

/// Formats `share`, the ratio of a measured value and its bound: as a percentage of the bound, or
/// as a multiple such as `12 ×` if `share` is 10 or more.
pub fn of_bound(share: f64) -> String {
    match share < 10.0 {
        true => percent(share),
        false => format!("{} ×", significant(share, 2)),
    }
}

fn without_zeros(number: &str) -> &str {
    match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn an_error_of_usage_is_one_line() {
        let clap = "error: unexpected argument '--quit' found\n\n  tip: a similar argument exists: \
                    '--quiet'\n\nUsage: amp gate [OPTIONS]\n\nFor more information, try '--help'.\n";
        let line =
            "error: unexpected argument '--quit' found; tip: a similar argument exists: '--quiet'";
        assert_eq!(usage_line(clap), line);
        let plain = "error: no such model\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_line(plain), "error: no such model");
    }

    #[rstest]
    #[case(0.0, 2, "0")]
    #[case(0.000_85, 2, "0.00085")]
    #[case(9.842_915_805_643_156e-4, 3, "0.000984")]
    #[case(9.99e-5, 2, "0.0001")]
    #[case(1.3e-7, 2, "1.3e-7")]
    #[case(1e-5, 2, "1e-5")]
    #[case(0.01, 2, "0.01")]
    #[case(99.96, 2, "100")]
    #[case(-2.5, 2, "-2.5")]
    #[case(123_456.0, 2, "120000")]
    #[case(2e6, 2, "2e6")]
    #[case(f64::INFINITY, 2, "inf")]
    fn a_number_has_its_significant_digits(
        #[case] value: f64,
        #[case] digits: usize,
        #[case] expected: &str,
    ) {
        assert_eq!(significant(value, digits), expected);
    }

    #[rstest]
    #[case(0.01, "1 %")]
    #[case(0.000_85, "0.085 %")]
    #[case(0.0, "0 %")]
    #[case(1e-9, "under 0.001 %")]
    #[case(2.345, "230 %")]
    fn a_share_is_a_percentage(#[case] share: f64, #[case] expected: &str) {
        assert_eq!(percent(share), expected);
    }

    #[rstest]
    #[case(1.5, "150 %")]
    #[case(830.0, "830 ×")]
    fn a_large_share_is_shown_as_a_multiple(#[case] share: f64, #[case] expected: &str) {
        assert_eq!(of_bound(share), expected);
    }

    #[rstest]
    #[case(-0.00001, 4, "+0.0000")]
    #[case(0.0, 2, "+0.00")]
    #[case(-0.00006, 4, "-0.0001")]
    #[case(-10.0, 1, "-10.0")]
    #[case(f64::NAN, 4, "NaN")]
    fn a_signed_zero_is_positive(#[case] value: f64, #[case] digits: usize, #[case] shown: &str) {
        assert_eq!(signed(value, digits), shown);
    }

    #[rstest]
    #[case("invalid value '-1' for '--seed <SEED>': invalid digit found in string")]
    #[case("invalid value '' for '--seed <SEED>': cannot parse integer from empty string")]
    fn a_reason_says_what_a_number_must_be(#[case] message: &str) {
        let text = remedied(message);
        assert!(text.contains("for '--seed <SEED>': it must be a whole number"), "{text}");
    }
}
