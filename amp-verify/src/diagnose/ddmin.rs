//! Finds a minimal set that passes a test, with the algorithm ddmin (Zeller and Hildebrandt,
//! "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002). The paper searches
//! for a minimal set that fails a test. Here, passing and failing are exchanged.

use std::collections::BTreeMap;

use amp_core::Result;

/// The minimal set that passes the test, as [`ddmin`] found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minimal<T> {
    /// The elements of the set, in the order in which they were passed to [`ddmin`].
    pub set: Vec<T>,
    /// Whether the search has shown that the set is 1-minimal: the set passes the test, but without
    /// any one of its elements it fails.
    pub is_one_minimal: bool,
    /// How many sets were tested. No set is tested twice.
    pub tests: usize,
}

/// Searches for a subset of `all` for which `passes` returns true, and which is 1-minimal: without
/// any one of its elements, `passes` returns false. Returns `None` if `passes` returns false for
/// `all`. The subset may still contain a smaller one that passes, if more than one element must be
/// removed to get it. For n elements the search takes at most n² + 3n calls of `passes`. If a
/// single element is enough, it takes about 2·log₂ n calls.
///
/// # Errors
/// When `passes` returns an error.
pub fn ddmin<T: Clone + Ord>(
    all: &[T],
    passes: impl FnMut(&[T]) -> Result<bool>,
) -> Result<Option<Minimal<T>>> {
    let mut asked = Asked { passes, known: BTreeMap::new() };
    if !asked.passes(all)? {
        return Ok(None);
    }
    let mut set = all.to_vec();
    let mut parts = 2;
    if asked.passes(&[])? {
        set.clear();
    }
    while set.len() > 1 {
        let chunks = split(&set, parts);
        let without = |skipped: usize| -> Vec<T> {
            let kept = chunks.iter().enumerate().filter(|(at, _)| *at != skipped);
            kept.flat_map(|(_, chunk)| chunk.iter().cloned()).collect()
        };
        if let Some(chunk) = asked.first(chunks.iter().map(|chunk| chunk.to_vec()))? {
            (set, parts) = (chunk, 2);
        } else if let Some(rest) = asked.first((0..chunks.len()).map(without))? {
            (set, parts) = (rest, (parts - 1).max(2));
        } else if parts < set.len() {
            parts = (2 * parts).min(set.len());
        } else {
            break;
        }
    }
    let mut is_one_minimal = asked.passes(&set)?;
    for at in 0..set.len() {
        let mut rest = set.clone();
        rest.remove(at);
        is_one_minimal &= !asked.passes(&rest)?;
    }
    Ok(Some(Minimal { set, is_one_minimal, tests: asked.known.len() }))
}

struct Asked<T, F> {
    passes: F,
    known: BTreeMap<Vec<T>, bool>,
}

impl<T: Clone + Ord, F: FnMut(&[T]) -> Result<bool>> Asked<T, F> {
    fn passes(&mut self, set: &[T]) -> Result<bool> {
        if let Some(known) = self.known.get(set) {
            return Ok(*known);
        }
        let passes = (self.passes)(set)?;
        self.known.insert(set.to_vec(), passes);
        Ok(passes)
    }

    /// Returns the first of `sets` that passes the test. Returns `None` if there is none.
    fn first(&mut self, sets: impl Iterator<Item = Vec<T>>) -> Result<Option<Vec<T>>> {
        for set in sets {
            if self.passes(&set)? {
                return Ok(Some(set));
            }
        }
        Ok(None)
    }
}

/// Splits the set into `parts` subsets of nearly equal size.
fn split<T>(set: &[T], parts: usize) -> Vec<&[T]> {
    let bound = |part: usize| part * set.len() / parts;
    (0..parts).map(|part| &set[bound(part)..bound(part + 1)]).collect()
}
