//! Patterns of names with wildcards (`*`). The text that a wildcard matched can be inserted into a
//! new name.

/// A pattern for dotted names. Each `*` matches any text, as short as possible.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    text: String,
    parts: Vec<String>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), parts: text.split('*').map(str::to_owned).collect() }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the number of `*` in the pattern.
    pub(super) fn wildcards(&self) -> usize {
        self.parts.len() - 1
    }

    /// Returns the text that each `*` matches, or `None` if the name does not match.
    pub(super) fn captures<'n>(&self, name: &'n str) -> Option<Vec<&'n str>> {
        matched(&self.parts, name)
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.captures(name).is_some()
    }

    /// Returns the name in which each `*` is replaced by its text in `captures`.
    pub(super) fn filled(&self, captures: &[&str]) -> String {
        let mut name = self.parts[0].clone();
        for (capture, part) in captures.iter().zip(&self.parts[1..]) {
            name.push_str(capture);
            name.push_str(part);
        }
        name
    }
}

/// Returns the texts that the wildcards between `parts` match in `text`, or `None` if `text` does
/// not match. `text` must start with the first part and end with the last part.
fn matched<'n>(parts: &[String], text: &'n str) -> Option<Vec<&'n str>> {
    let (first, rest) = parts.split_first()?;
    let text = text.strip_prefix(first.as_str())?;
    let Some(next) = rest.first() else {
        return text.is_empty().then(Vec::new);
    };
    let places = (0..=text.len()).filter(|place| text.is_char_boundary(*place));
    for place in places {
        if text[place..].starts_with(next.as_str())
            && let Some(mut captures) = matched(rest, &text[place..])
        {
            captures.insert(0, &text[..place]);
            return Some(captures);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Checks which texts each `*` matches, and that the pattern filled with these texts is the
    /// name.
    #[rstest]
    #[case("weight", "weight", Some(vec![]))]
    #[case("weight", "weights", None)]
    #[case("bert.*", "bert.pooler.bias", Some(vec!["pooler.bias"]))]
    #[case("*", "", Some(vec![""]))]
    #[case("*.gamma", "norm.gamma", Some(vec!["norm"]))]
    #[case("layer.*.q.*", "layer.11.q.weight", Some(vec!["11", "weight"]))]
    #[case("layer.*.q.*", "layer.1.q.q.weight", Some(vec!["1", "q.weight"]))]
    #[case("a*a", "aba", Some(vec!["b"]))]
    #[case("a*a", "a", None)]
    #[case("*a*", "bab", Some(vec!["b", "b"]))]
    #[case("é*", "éé", Some(vec!["é"]))]
    fn a_star_is_any_text(
        #[case] pattern: &str,
        #[case] name: &str,
        #[case] expected: Option<Vec<&str>>,
    ) {
        let pattern = Pattern::new(pattern);
        assert_eq!(pattern.captures(name), expected);
        if let Some(captures) = expected {
            assert_eq!(pattern.filled(&captures), name);
        }
    }
}
