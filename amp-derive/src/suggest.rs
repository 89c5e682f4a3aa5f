//! Suggests the known name that is closest to an unknown name.

/// Formats an error message "unknown `what` `word`". The message suggests the closest name of
/// `known`. If no name is close, the message lists all names.
pub(crate) fn unknown(what: &str, word: &str, known: &[&str]) -> String {
    match (closest(word, known), known) {
        (Some(meant), _) => format!("unknown {what} `{word}`: did you mean `{meant}`?"),
        (None, []) => format!("unknown {what} `{word}`"),
        (None, known) => format!("unknown {what} `{word}`: expected {}", one_of(known)),
    }
}

/// Formats the names as `` `a`, `b` or `c` ``.
pub(crate) fn one_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => format!("`{only}`"),
        [head @ .., last] => format!("{} or `{last}`", quoted(head)),
    }
}

/// Formats the names as `` `a`, `b`, `c` ``.
pub(crate) fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Names from other frameworks, each with the corresponding name of amp-core.
const ALIASES: &[(&str, &str)] = &[
    ("float64", "fp64"),
    ("f64", "fp64"),
    ("double", "fp64"),
    ("float32", "fp32"),
    ("f32", "fp32"),
    ("float", "fp32"),
    ("single", "fp32"),
    ("float16", "fp16"),
    ("f16", "fp16"),
    ("half", "fp16"),
    ("bfloat16", "bf16"),
    ("batch_norm", "batch_norm1d"),
    ("swish", "silu"),
    ("cosine", "cosine_annealing"),
    ("warm_restarts", "cosine_annealing_warm_restarts"),
    ("warmup_stable_decay", "wsd"),
    ("bce", "binary_cross_entropy_with_logits"),
    ("bce_with_logits", "binary_cross_entropy_with_logits"),
    ("learning_rate", "lr"),
    ("validation", "val"),
    ("batch", "step"),
    ("progress_bar", "prog_bar"),
];

/// Returns the name in `known` that `word` most likely means.
pub(crate) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded = fold(word);
    let alias = ALIASES.iter().find(|(alias, _)| fold(alias) == folded).map(|(_, meant)| *meant);
    if let Some(found) = alias.and_then(|meant| known.iter().find(|name| **name == meant)) {
        return Some(found);
    }
    let near = known
        .iter()
        .map(|name| (distance(&folded, &fold(name)), *name))
        .min()
        .filter(|(distance, name)| *distance <= allowed(name.len().min(word.len())));
    let extended = || {
        let longer = |a: &str, b: &str| b.len() >= 3 && a.starts_with(b);
        known.iter().find(|name| longer(&folded, &fold(name)) || longer(&fold(name), &folded))
    };
    near.map(|(_, name)| name).or_else(|| extended().copied())
}

/// Returns the largest number of edits between a word and a known name with which the two still
/// count as close. `length` is the length of the shorter of the two.
fn allowed(length: usize) -> usize {
    match length {
        0..=2 => 0,
        3..=5 => 1,
        6..=8 => 2,
        _ => 3,
    }
}

/// Removes underscores and converts to lower case, so that `BatchNorm1d` and `batch_norm1d` become
/// equal.
pub(crate) fn fold(name: &str) -> String {
    name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// Returns the edit distance of two words. Swapping two neighbouring letters counts as one edit
/// (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, edits) in [
            ("linear", "linear", 0),
            ("liner", "linear", 1),
            ("lienar", "linear", 1),
            ("adm", "adam", 1),
            ("", "sgd", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn close_names_are_suggested_and_far_ones_are_not() {
        let layers = ["linear", "batch_norm1d", "relu", "gelu", "layer_norm"];
        assert_eq!(closest("lienar", &layers), Some("linear"));
        assert_eq!(closest("BatchNorm1d", &layers), Some("batch_norm1d"));
        assert_eq!(closest("batchnorm", &layers), Some("batch_norm1d"));
        assert_eq!(closest("conv3d", &layers), None);
        assert_eq!(closest("float16", &["fp32", "fp16", "bf16"]), Some("fp16"));
        assert_eq!(closest("mse", &["l1_loss", "mse_loss"]), Some("mse_loss"));
        assert_eq!(closest("lr", &["p"]), None);
    }

    #[test]
    fn lists() {
        assert_eq!(one_of(&["a"]), "`a`");
        assert_eq!(one_of(&["a", "b", "c"]), "`a`, `b` or `c`");
        assert_eq!(unknown("loss", "x", &[]), "unknown loss `x`");
        assert_eq!(
            unknown("loss", "focal", &["mse_loss"]),
            "unknown loss `focal`: expected `mse_loss`"
        );
    }
}
