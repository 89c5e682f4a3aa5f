//! Finds the cheapest choice of cells to recompute that fits into the memory budget. The bytes that
//! cells hold are known in advance. The other bytes of a step are known only after a choice was
//! tried.

use std::ops::Range;

use super::select::{choose, leanest, peak, seconds};
use crate::{Result, nn::Cell};

/// The largest number of choices that are tried.
const TRIES: usize = 8;

/// A choice that was tried.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tried {
    /// The ranges of cells that are recomputed together.
    pub(super) chosen: Vec<Range<usize>>,
    /// The measured peak of bytes.
    pub(super) peak: u64,
}

/// Returns the cheapest choice that was measured to hold at most `budget` bytes, or the choice with
/// the fewest bytes if none fits. `measure` tries a choice.
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
            // The search ends with the best earlier choice.
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

/// Returns the next choice to try, if there is one.
fn next(cells: &[Cell], budget: u64, tried: &[Tried]) -> Option<Vec<Range<usize>>> {
    let last = tried.last().filter(|_| tried.len() < TRIES)?;
    let chosen = match tried.iter().any(|tried| tried.peak <= budget) {
        // The difference between the measured peak and the cells' bytes belongs to no cell. It is
        // assumed to be constant.
        true => choose(cells, (budget + peak(cells, &last.chosen)).saturating_sub(last.peak))?,
        // No choice fits so far. Recomputing nothing may need fewer bytes, because a recomputation
        // needs temporary tensors.
        false => Vec::new(),
    };
    tried.iter().all(|tried| tried.chosen != chosen).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, nn::Segment};

    /// Returns six layers of one container, of 100 bytes and one second each.
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

    /// The search learns from the first trial how many bytes belong to no cell; here they are 5000.
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

    /// A choice that needs more memory than the cells predict is not returned if it exceeds the
    /// budget.
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

    /// Nothing is recomputed if a recomputation needs more memory, for its temporary tensors, than
    /// it saves.
    #[test]
    fn nothing_is_taken_where_that_holds_less() -> Result<()> {
        let cells = cells();
        let held = |chosen: &[Range<usize>]| 1000 + 500 * chosen.len() as u64;
        let found = search(&cells, 1200, |chosen| Ok(held(chosen)))?;
        assert_eq!(found, Tried { chosen: vec![], peak: 1000 });
        let least = search(&cells, 900, |chosen| Ok(held(chosen)))?;
        assert_eq!(least.peak, 1000, "the least, though it does not fit");
        Ok(())
    }

    /// If a trial runs out of memory, the result of the earlier trial is used.
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
