//! Finds what differs between the settings of a saved run and those of the resumed run.

use serde_json::{Map, Value};

/// Returns the entries that differ between two maps, each with the value in `there` and the value
/// in `here`. If a map lacks the entry, its value is null.
pub(super) fn different<'v>(
    there: &'v Map<String, Value>,
    here: &'v Map<String, Value>,
) -> Vec<(&'v str, &'v Value, &'v Value)> {
    let lacking = here.keys().filter(|name| !there.contains_key(*name));
    let value = |map: &'v Map<String, Value>, name| map.get(name).unwrap_or(&Value::Null);
    let all = there
        .keys()
        .chain(lacking)
        .map(|name| (name.as_str(), value(there, name), value(here, name)));
    all.filter(|(_, there, here)| there != here).collect()
}

/// Returns the optimizer options in `there` that differ from those in `here`, and the other way
/// round. Each is a list with a text for each optimizer, in which `; ` is between two parameter
/// groups. The rates in these texts are zeros, because schedules change them. Equal options are left
/// out, so that these zeros are not shown. `…` stands for an equal group.
pub(super) fn differing_options(there: &Value, here: &Value) -> (Value, Value) {
    let texts = |list: &Value| -> Vec<String> {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let (own, other) = (texts(there), texts(here));
    if own.len() != other.len() {
        let count = |texts: &[String]| format!("optimizers: {}", texts.len()).into();
        return (count(&own), count(&other));
    }
    let pairs = own.iter().zip(&other).filter(|(own, other)| own != other);
    let (left, right): (Vec<_>, Vec<_>) = pairs.map(|(own, other)| of_groups(own, other)).unzip();
    (left.join("; ").into(), right.join("; ").into())
}

/// Compares the options of one optimizer's parameter groups.
fn of_groups(there: &str, here: &str) -> (String, String) {
    let groups = |text: &str| text.split("; ").count();
    let (own, other) = (groups(there), groups(here));
    if own != other {
        let count = |groups: usize| format!("parameter groups: {groups}");
        return (count(own), count(other));
    }
    let pairs = there.split("; ").zip(here.split("; "));
    let (left, right): (Vec<_>, Vec<_>) = pairs.map(|(own, other)| of_values(own, other)).unzip();
    (left.join("; "), right.join("; "))
}

/// Compares two values, as `Debug` writes them. Of two structs, returns the fields that differ. In
/// two tuples or lists, `…` stands for an equal element, as in `Adam { betas: (…, 0.95) }`. Of
/// different structs, returns the names.
fn of_values(there: &str, here: &str) -> (String, String) {
    if there == here {
        return ("…".to_owned(), "…".to_owned());
    }
    let whole = (there.to_owned(), here.to_owned());
    let (Some(own), Some(other)) = (Parts::of(there), Parts::of(here)) else { return whole };
    if own.head != other.head {
        return (own.name(), other.name());
    }
    if own.items.len() != other.items.len() {
        return whole;
    }
    let is_struct = own.head.ends_with('{');
    let pairs = own.items.iter().zip(&other.items);
    let pairs = pairs.filter(|(there, here)| !is_struct || there != here);
    let (left, right): (Vec<_>, Vec<_>) = pairs.map(|(own, other)| of_values(own, other)).unzip();
    (own.with(&left), other.with(&right))
}

/// A text such as `Adam { lr: 0.1, eps: 1e-8 }`.
struct Parts<'t> {
    /// The text up to the first opening bracket.
    head: &'t str,
    /// The texts between the commas.
    items: Vec<&'t str>,
    /// The closing bracket.
    tail: &'t str,
}

impl<'t> Parts<'t> {
    /// Splits a text. Returns `None` if it does not end with the bracket that closes its first one.
    fn of(text: &'t str) -> Option<Self> {
        let open = text.find(['{', '(', '['])?;
        let (head, inner) = text.split_at(open + 1);
        let (mut depth, mut start, mut items) = (0, 0, Vec::new());
        for (at, letter) in inner.char_indices() {
            match letter {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' if depth == 0 => {
                    items.push(inner[start..at].trim());
                    let tail = &inner[at..];
                    return (tail.len() == 1).then_some(Self { head, items, tail });
                }
                '}' | ')' | ']' => depth -= 1,
                ',' if depth == 0 => {
                    items.push(inner[start..at].trim());
                    start = at + 1;
                }
                _ => {}
            }
        }
        None
    }

    /// Returns the text before the bracket.
    fn name(&self) -> String {
        self.head[..self.head.len() - 1].trim().to_owned()
    }

    /// Returns the text with these items.
    fn with(&self, items: &[String]) -> String {
        let space = if self.head.ends_with('{') { " " } else { "" };
        format!("{}{space}{}{space}{}", self.head, items.join(", "), self.tail)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::a_part_of_a_tuple(
        "Adam { lr: 0.0, betas: (0.0, 0.95), eps: 1e-8 }",
        "Adam { lr: 0.0, betas: (0.0, 0.999), eps: 1e-8 }",
        ("Adam { betas: (…, 0.95) }", "Adam { betas: (…, 0.999) }")
    )]
    #[case::two_options(
        "Sgd { lr: 0.0, weight_decay: 0.1, nesterov: true }",
        "Sgd { lr: 0.0, weight_decay: 0.2, nesterov: false }",
        ("Sgd { weight_decay: 0.1, nesterov: true }", "Sgd { weight_decay: 0.2, nesterov: false }")
    )]
    #[case::another_optimizer("Sgd { lr: 0.0 }", "Lion { lr: 0.0 }", ("Sgd", "Lion"))]
    #[case::one_group(
        "Sgd { lr: 0.0, dampening: 0.0 }; Sgd { lr: 0.0, dampening: 0.5 }",
        "Sgd { lr: 0.0, dampening: 0.0 }; Sgd { lr: 0.0, dampening: 0.1 }",
        ("…; Sgd { dampening: 0.5 }", "…; Sgd { dampening: 0.1 }")
    )]
    #[case::fewer_groups(
        "Sgd { lr: 0.0 }; Sgd { lr: 0.0 }",
        "Sgd { lr: 0.0 }",
        ("parameter groups: 2", "parameter groups: 1")
    )]
    fn only_the_options_that_differ_are_shown(
        #[case] there: &str,
        #[case] here: &str,
        #[case] shown: (&str, &str),
    ) {
        let same = "Lion { lr: 0.0, betas: (0.0, 0.99) }";
        let list = |text: &str| Value::from(vec![same, text]);
        let shown = (Value::from(shown.0), Value::from(shown.1));
        assert_eq!(differing_options(&list(there), &list(here)), shown);
    }
}
