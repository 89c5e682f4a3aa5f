//! Finds the choice of cells (layers, or several layers that run fused) to recompute that fits into
//! the memory budget at the least cost in time. How many bytes the cells keep was measured before.
//! How many bytes a step needs in addition is known only after a choice was tried.

use std::ops::Range;

use super::select::{choose, leanest, peak, seconds};
use crate::{Result, nn::Cell};

/// The largest number of choices that are tried, each in a forward and backward pass.
const TRIES: usize = 8;

/// A choice that was tried, with its measured peak.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tried {
    /// The ranges of neighbouring cells that are recomputed together.
    pub(super) chosen: Vec<Range<usize>>,
    /// The measured peak of tensor bytes in the forward and backward pass.
    pub(super) peak: u64,
}

/// Tries choices with `measure`, which returns the peak of a choice in bytes. Of the tried choices
/// whose peak is at most `budget`, returns the one with the shortest recomputation. If no tried
/// choice fits, returns the one with the smallest peak.
pub(super) fn search(
    cells: &[Cell],
    budget: u64,
    mut measure: impl FnMut(&[Range<usize>]) -> Result<u64>,
) -> Result<Tried> {
    let chosen = leanest(cells);
    let first = Tried { peak: measure(&chosen)?, chosen };
    let (mut best, mut tried) = (first.clone(), vec![first]);
    while let Some(chosen) = next(cells, budget, &tried) {
        let peak = match measure(&chosen) {
            // The trial ran out of memory: the search ends with the best choice so far.
            Err(error) if error.is_out_of_memory() => break,
            outcome => outcome?,
        };
        let new = Tried { chosen, peak };
        let better = match (new.peak <= budget, best.peak <= budget) {
            (true, true) => seconds(cells, &new.chosen) < seconds(cells, &best.chosen),
            _ => new.peak < best.peak,
        };
        if better {
            best = new.clone();
        }
        tried.push(new);
    }
    Ok(best)
}

/// Returns the next choice to try. Returns `None` if no choice is predicted to fit, if the search
/// proposes a choice that was tried before, or if [`TRIES`] choices were tried.
fn next(cells: &[Cell], budget: u64, tried: &[Tried]) -> Option<Vec<Range<usize>>> {
    let last = tried.last().filter(|_| tried.len() < TRIES)?;
    let chosen = match tried.iter().any(|tried| tried.peak <= budget) {
        // In addition to the bytes of the cells, a step needs other bytes. Their number is assumed
        // to be the same for every choice.
        true => choose(cells, (budget + peak(cells, &last.chosen)).saturating_sub(last.peak))?,
        // No choice has fitted so far. Recomputing nothing may need less, because recomputing needs
        // temporary tensors.
        false => Vec::new(),
    };
    tried.iter().all(|tried| tried.chosen != chosen).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, nn::Segment};

    /// Returns six layers of one container. Each keeps 100 bytes and takes one second to recompute.
    fn cells() -> Vec<Cell> {
        let cells = (0..6).map(|at| Cell {
            segment: Segment { path: "model".to_owned(), layers: Some(at..at + 1) },
            own: 100,
            input: 10,
            output: 10,
            keeps_input: true,
            keeps_output: false,
            seconds: 1.0,
            within: Vec::new(),
        });
        cells.collect()
    }

    /// Checks that the search learns from its first trial how many bytes a step needs in addition
    /// to the bytes of the cells (5000 in this test).
    #[test]
    fn what_else_is_held_is_learnt() -> Result<()> {
        let cells = cells();
        let budget = 5000 + peak(&cells, &[]) - 150;
        let found = search(&cells, budget, |chosen| Ok(5000 + peak(&cells, chosen)))?;
        assert!(found.peak <= budget, "{found:?}");
        let room = choose(&cells, budget - 5000).map(|chosen| seconds(&cells, &chosen));
        assert_eq!(Some(seconds(&cells, &found.chosen)), room);
        Ok(())
    }

    /// Checks that a choice whose measured peak exceeds the budget is not returned, although its
    /// predicted peak is within the budget.
    #[test]
    fn what_turns_out_not_to_fit_is_not_taken() -> Result<()> {
        let cells = cells();
        let held = |chosen: &[Range<usize>]| peak(&cells, chosen) * peak(&cells, chosen) / 100;
        for percent in [60, 70, 80, 90, 99] {
            let budget = held(&[]) * percent / 100;
            let found = search(&cells, budget, |chosen| Ok(held(chosen)))?;
            assert!(found.peak <= budget, "{percent}: {found:?}");
        }
        Ok(())
    }

    /// Checks that nothing is recomputed if recomputing needs more memory for temporary tensors
    /// than it saves.
    #[test]
    fn nothing_is_taken_where_that_holds_less() -> Result<()> {
        let cells = cells();
        let held = |chosen: &[Range<usize>]| 1000 + 500 * chosen.len() as u64;
        let found = search(&cells, 1200, |chosen| Ok(held(chosen)))?;
        assert_eq!(found, Tried { chosen: vec![], peak: 1000 });
        let least = search(&cells, 900, |chosen| Ok(held(chosen)))?;
        assert_eq!(least.peak, 1000, "the smallest peak, although it exceeds the budget");
        Ok(())
    }

    /// Checks that the best earlier choice is returned if a later trial runs out of memory.
    #[test]
    fn a_try_may_run_out_of_memory() -> Result<()> {
        let cells = cells();
        let lean = leanest(&cells);
        let full = |chosen: &[Range<usize>]| match chosen == lean {
            true => Ok(peak(&cells, chosen)),
            false => Err(Error::Torch("CUDA out of memory".to_owned())),
        };
        assert_eq!(search(&cells, 1 << 20, full)?.chosen, lean);
        assert!(search(&cells, 1, |_| Err(Error::config("another failure"))).is_err());
        Ok(())
    }
}
