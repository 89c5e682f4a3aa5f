//! Finds a minimal set that passes a test, with the algorithm ddmin (Zeller and Hildebrandt,
//! "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002). The paper searches
//! for a minimal set that fails a test. Here the roles of passing and failing are exchanged.

use std::collections::BTreeMap;

use amp_core::Result;

/// A set found by [`ddmin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minimal<T> {
    /// Its elements, in the order of the input.
    pub set: Vec<T>,
    /// Whether the set was tested to be 1-minimal: it passes, and it fails if any single element is
    /// removed.
    pub is_one_minimal: bool,
    /// The number of calls of the predicate. No set is tested twice.
    pub tests: usize,
}

/// Searches for a 1-minimal subset of `all` for which `passes` returns true. Returns `None` if it
/// returns false for `all`. If the predicate is not monotone, smaller subsets that pass may exist.
/// For n elements the search takes at most n² + 3n calls, and about 2·log₂ n calls if a single
/// element is enough.
///
/// # Errors
/// When the predicate fails.
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

    /// Returns the first set that passes.
    fn first(&mut self, sets: impl Iterator<Item = Vec<T>>) -> Result<Option<Vec<T>>> {
        for set in sets {
            if self.passes(&set)? {
                return Ok(Some(set));
            }
        }
        Ok(None)
    }
}

/// Splits the set into `parts` parts of nearly equal size.
fn split<T>(set: &[T], parts: usize) -> Vec<&[T]> {
    let bound = |part: usize| part * set.len() / parts;
    (0..parts).map(|part| &set[bound(part)..bound(part + 1)]).collect()
}
