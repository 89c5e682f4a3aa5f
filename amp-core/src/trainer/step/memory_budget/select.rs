//! Selects the layers to recompute, so that the activations of the remaining layers fit into
//! memory.
//!
//! The forward pass is a chain of [cells](Cell): layers, or several layers that run fused. Which
//! tensors are in memory in the backward pass depends on which cells are recomputed. A cell that is
//! not recomputed keeps the activations inside it, and also keeps its input if the backward pass of
//! this cell, or of the previous cell (whose output it is), needs it. Of neighbouring cells that
//! are recomputed together, only the input of the first is kept. When they are recomputed, all
//! their values are in memory, in addition to what earlier cells keep. During the backward pass of
//! a cell, the gradients of its output and input are in memory, too. For cells that are recomputed
//! together, the output of the last cell and its gradient stay in memory during the backward passes
//! of all of them.
//!
//! This is the cost model for rematerialization in chains (Chen et al., "Training deep nets with
//! sublinear memory cost", 2016; Beaumont et al., "Optimal checkpointing for heterogeneous chains",
//! 2019), in which a cell is recomputed at most once. Dynamic programming over pairs (bytes,
//! seconds) finds the fastest choice that fits. At each cell, a pair is dropped if another one
//! needs no more bytes and no more seconds. A greedy choice by seconds per byte would be worse: it
//! could leave almost as many bytes of the budget unused as one cell keeps.

use std::ops::Range;

use crate::nn::Cell;

/// The largest number of pairs (bytes, seconds) that are kept at each cell. Dropping the others may
/// lead to a slower choice, but never to one that needs too many bytes.
const MOST: usize = 256;

/// A cell is large if it keeps more than 1/8 of the bytes of all cells. Large cells are split.
const MUCH: u64 = 8;

/// Returns the cells among which the search chooses. A large cell is split into the modules within
/// it if these keep most of its bytes. Other cells stay whole, because a whole cell can be
/// recomputed together with its neighbours.
pub(super) fn refine(cells: Vec<Cell>) -> Vec<Cell> {
    let much = held(&cells, &[]) / MUCH;
    cells.into_iter().flat_map(|cell| parts(cell, much)).collect()
}

fn parts(mut cell: Cell, much: u64) -> Vec<Cell> {
    let within = std::mem::take(&mut cell.within);
    let own = held(std::slice::from_ref(&cell), &[]);
    if own <= much || within.len() < 2 || held(&within, &[]) < own / 10 * 9 {
        return vec![cell];
    }
    within.into_iter().flat_map(|cell| parts(cell, much)).collect()
}

/// Returns, of the choices that never need more than `room` bytes, the one with the shortest
/// recomputation. The choice consists of ranges of cells to recompute together. Returns `None` if
/// every choice needs more.
pub(super) fn choose(cells: &[Cell], room: u64) -> Option<Vec<Range<usize>>> {
    let mut fronts = vec![vec![State::default()]];
    for end in 1..=cells.len() {
        let last = end - 1;
        let kept = fronts[last].iter().enumerate().map(|(at, state)| State {
            held: state.held + kept(cells, last),
            from: (last, at),
            checkpointed: false,
            ..*state
        });
        let gradients = gradients(&cells[last]);
        let mut states: Vec<State> = kept.filter(|state| state.held + gradients <= room).collect();
        for start in (0..end).rev() {
            if start + 1 < end && !cells[start].segment.meets(&cells[start + 1].segment) {
                break;
            }
            let again = again(cells, &(start..end));
            let seconds: f64 = cells[start..end].iter().map(|cell| cell.seconds).sum();
            let fits = fronts[start].iter().enumerate().filter(|(_, s)| s.held + again <= room);
            states.extend(fits.map(|(at, state)| State {
                held: state.held + cells[start].input,
                seconds: state.seconds + seconds,
                segments: state.segments + 1,
                from: (start, at),
                checkpointed: true,
            }));
        }
        fronts.push(front(states));
    }
    // The pairs are sorted by bytes, so the last pair has the fewest seconds.
    let mut at = fronts[cells.len()].len().checked_sub(1)?;
    let (mut end, mut chosen) = (cells.len(), Vec::new());
    while end > 0 {
        let state = &fronts[end][at];
        if state.checkpointed {
            chosen.push(state.from.0..end);
        }
        (end, at) = state.from;
    }
    chosen.reverse();
    Some(chosen)
}

/// Returns the choice with the smallest peak of bytes, to within 1 %. The choice depends only on
/// the cells and not on the budget, so that an error can say which budget would suffice.
pub(super) fn leanest(cells: &[Cell]) -> Vec<Range<usize>> {
    let cells: Vec<Cell> = cells.iter().map(|cell| Cell { seconds: 1.0, ..cell.clone() }).collect();
    let cells = cells.as_slice();
    let (mut too_low, mut enough) = (0, peak(cells, &[]));
    let mut chosen = choose(cells, enough).unwrap_or_default();
    while enough - too_low > enough / 128 + 1 {
        let middle = too_low + (enough - too_low) / 2;
        match choose(cells, middle) {
            Some(leaner) => (chosen, enough) = (leaner, middle),
            None => too_low = middle,
        }
    }
    chosen
}

/// Returns the peak of the cells' bytes over the forward and backward pass, if the cells in
/// `chosen` are recomputed.
pub(super) fn peak(cells: &[Cell], chosen: &[Range<usize>]) -> u64 {
    walk(cells, chosen).1
}

/// Returns the number of bytes that the cells keep at the end of the forward pass, if the cells in
/// `chosen` are recomputed.
pub(super) fn held(cells: &[Cell], chosen: &[Range<usize>]) -> u64 {
    walk(cells, chosen).0
}

/// Returns the time in seconds that it takes to recompute the cells of a choice.
pub(super) fn seconds(cells: &[Cell], chosen: &[Range<usize>]) -> f64 {
    chosen.iter().flat_map(|range| &cells[range.clone()]).map(|cell| cell.seconds).sum()
}

/// Returns the bytes that are kept at the end of the forward pass, and the peak over the forward
/// and backward pass.
fn walk(cells: &[Cell], chosen: &[Range<usize>]) -> (u64, u64) {
    let (mut held, mut most, mut at) = (0, 0, 0);
    let mut chosen = chosen.iter().peekable();
    while at < cells.len() {
        match chosen.next_if(|range| range.start == at) {
            Some(range) => {
                most = most.max(held + again(cells, range));
                held += cells[at].input;
                at = range.end.max(at + 1);
            }
            None => {
                held += kept(cells, at);
                most = most.max(held + gradients(&cells[at]));
                at += 1;
            }
        }
    }
    (held, most.max(held))
}

/// Returns the number of bytes that a cell keeps for the backward pass if it is not recomputed.
fn kept(cells: &[Cell], at: usize) -> u64 {
    let before = at.checked_sub(1).map(|before| &cells[before]);
    let kept_before =
        before.is_some_and(|cell| cell.keeps_output && cell.segment.meets(&cells[at].segment));
    let Cell { own, input, keeps_input, .. } = cells[at];
    own + if keeps_input || kept_before { input } else { 0 }
}

/// Returns the peak of bytes that the cells in `range` need in their backward pass if they are
/// recomputed together.
fn again(cells: &[Cell], range: &Range<usize>) -> u64 {
    let Range { start, end } = *range;
    let kept: u64 = (start + 1..end).map(|at| kept(cells, at)).sum();
    let gradients = cells[start..end].iter().map(gradients).max().unwrap_or(0);
    let output = if end - start > 1 { 2 * cells[end - 1].output } else { cells[start].output };
    cells[start].input + cells[start].own + kept + output + gradients
}

/// Returns the number of bytes of the gradients of a cell's output and input.
fn gradients(cell: &Cell) -> u64 {
    cell.output + cell.input
}

/// A choice for the first cells of the chain, with the bytes and seconds that it needs.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    held: u64,
    seconds: f64,
    segments: usize,
    /// The earlier state to which this state adds cells: the number of its cells, and its index
    /// among the states with this number of cells.
    from: (usize, usize),
    /// Whether the cells that were added to the earlier state are recomputed.
    checkpointed: bool,
}

/// Drops each state if another one needs no more bytes and no more seconds, and keeps about
/// [`MOST`] of the rest. Sorts them by bytes, from few to many, and so by seconds, from many to
/// few.
fn front(mut states: Vec<State>) -> Vec<State> {
    let cost = |state: &State| (state.seconds, state.segments);
    states.sort_by(|a, b| {
        let by_cost = a.seconds.total_cmp(&b.seconds).then(a.segments.cmp(&b.segments));
        a.held.cmp(&b.held).then(by_cost)
    });
    let mut best: Vec<State> = Vec::new();
    for state in states {
        if best.last().is_none_or(|last| cost(&state) < cost(last)) {
            best.push(state);
        }
    }
    let (last, step) = (best.len().saturating_sub(1), best.len().div_ceil(MOST).max(1));
    let thinned = best.into_iter().enumerate();
    thinned.filter(|(at, _)| at % step == 0 || *at == last).map(|(_, state)| state).collect()
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::nn::Segment;

    /// Makes the cells of a container whose layers keep only their inputs for the backward pass.
    /// `of` contains, for each layer, the bytes of its input and the seconds that recomputing it
    /// takes.
    fn chain(of: &[(u64, f64)]) -> Vec<Cell> {
        let cells = of.iter().enumerate().map(|(at, (input, seconds))| Cell {
            segment: Segment { path: "model".to_owned(), layers: Some(at..at + 1) },
            own: 0,
            input: *input,
            output: *input,
            keeps_input: true,
            keeps_output: false,
            seconds: *seconds,
            within: Vec::new(),
        });
        cells.collect()
    }

    /// Returns all possible choices among the cells from the index `from` on.
    fn all(cells: &[Cell], from: usize) -> Vec<Vec<Range<usize>>> {
        if from == cells.len() {
            return vec![Vec::new()];
        }
        let mut choices = all(cells, from + 1);
        for end in from + 1..=cells.len() {
            let meets = |at: usize| cells[at].segment.meets(&cells[at + 1].segment);
            if !(from..end - 1).all(meets) {
                break;
            }
            let rest = all(cells, end).into_iter();
            choices.extend(rest.map(|rest| iter::once(from..end).chain(rest).collect()));
        }
        choices
    }

    /// Checks that equal layers are divided into √n segments, as in Chen et al. Without
    /// recomputation, n = 25 layers keep 25 inputs. With five segments of five layers, 5 inputs are
    /// kept, and 4 more while a segment is recomputed, which is 2√n − 1 = 9. The peak also contains
    /// two gradients and, while a segment is recomputed, its output and the gradient of that
    /// output.
    #[test]
    fn equal_layers_are_cut_at_the_root_of_their_number() {
        let cells = chain(&[(1000, 1.0); 25]);
        assert_eq!((held(&cells, &[]), peak(&cells, &[])), (25_000, 27_000));
        let root = [0..5, 5..10, 10..15, 15..20, 20..25];
        assert_eq!((held(&cells, &root), peak(&cells, &root)), (5000, 13_000));
        assert!(peak(&cells, &leanest(&cells)) <= 13_000);
        assert_eq!(choose(&cells, 27_000), Some(vec![]), "recomputed a layer although all fit");
        assert_eq!(choose(&cells, 8000), None, "every choice needs more than 8000 bytes");
    }

    /// Checks, on chains of different layers and for every limit, that no possible choice that fits
    /// is faster than the returned one.
    #[test]
    fn no_choice_that_fits_is_cheaper() {
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        for _ in 0..40 {
            let mut cells = chain(&[(0, 0.0); 7]);
            for (at, cell) in cells.iter_mut().enumerate() {
                (cell.own, cell.input, cell.output) = (next(50), next(50), next(50));
                cell.seconds = next(9) as f64;
                (cell.keeps_input, cell.keeps_output) = (next(2) == 1, next(2) == 1);
                // The last layers belong to a second container.
                cell.segment.path = if at < 5 { "first" } else { "second" }.to_owned();
            }
            let choices = all(&cells, 0);
            for room in (0..=peak(&cells, &[])).step_by(7) {
                let fitting = choices.iter().filter(|choice| peak(&cells, choice) <= room);
                let best = fitting.map(|choice| seconds(&cells, choice)).min_by(f64::total_cmp);
                let chosen = choose(&cells, room);
                assert_eq!(chosen.as_ref().map(|chosen| seconds(&cells, chosen)), best, "{room}");
                assert!(chosen.is_none_or(|chosen| peak(&cells, &chosen) <= room));
            }
            let least = choices.iter().map(|choice| peak(&cells, choice)).min();
            let found = peak(&cells, &leanest(&cells));
            assert!(found <= least.unwrap_or(0) * 129 / 128 + 1, "{found} of {least:?}");
        }
    }

    /// Checks that a tensor between two layers is counted once, even if both layers need it.
    #[test]
    fn a_tensor_between_two_layers_is_kept_once() {
        for (output, input, expected) in
            [(false, false, 0), (true, false, 10), (false, true, 10), (true, true, 10)]
        {
            let mut cells = chain(&[(0, 1.0), (10, 1.0)]);
            cells[0].keeps_output = output;
            cells[1].keeps_input = input;
            assert_eq!(held(&cells, &[]), expected, "{output} {input}");
            // Layers of different containers do not share a tensor.
            cells[1].segment.path = "another".to_owned();
            assert_eq!(held(&cells, &[]), if input { 10 } else { 0 });
        }
    }

    /// Checks that only large cells are split. The model has three stages of two blocks each. The
    /// third stage stays whole, because its blocks keep only a small part of its bytes. The small
    /// blocks of the other two stages stay whole, too.
    #[test]
    fn what_holds_much_is_taken_apart() {
        let stage = |at: usize, blocks: &[u64]| {
            let mut cell = chain(&[(0, 1.0)]).remove(0);
            cell.segment.layers = Some(at..at + 1);
            cell.own = 100;
            cell.within = chain(&[(0, 1.0), (0, 1.0)]);
            for (block, own) in cell.within.iter_mut().zip(blocks) {
                block.segment.path = format!("model.{at}");
                block.own = *own;
                block.within = chain(&[(*own / 2, 1.0), (*own / 2, 1.0)]);
            }
            cell
        };
        let stages = vec![stage(0, &[70, 30]), stage(1, &[4, 96]), stage(2, &[20, 20])];
        let refined = refine(stages);
        let own: Vec<u64> = refined.iter().map(|cell| cell.own + cell.input).collect();
        assert_eq!(own, [35, 35, 30, 4, 48, 48, 100]);
        assert_eq!(refined[2].segment.path, "model.0");
        assert_eq!(refined[6].segment, Segment { path: "model".to_owned(), layers: Some(2..3) });
    }

    /// Checks that, of layers that keep equally many bytes, the fastest to recompute is chosen.
    #[test]
    fn the_cheap_one_goes_first() {
        let mut cells = chain(&[(10, 5.0), (10, 1.0), (10, 5.0)]);
        cells.iter_mut().for_each(|cell| cell.own = 100);
        // Layers with different paths are not neighbours, so they cannot be recomputed together.
        for (cell, path) in cells.iter_mut().zip(["a", "b", "c"]) {
            cell.segment = Segment { path: path.to_owned(), layers: None };
        }
        // Without recomputation the peak is 350 bytes: each of the three layers keeps 110, and the
        // gradients of the last layer's input and output take 20. If the second layer is
        // recomputed, the peak is 250 bytes.
        assert_eq!(choose(&cells, 350), Some(vec![]));
        let cheap = 1..2;
        assert_eq!(choose(&cells, 349), Some(vec![cheap]));
        assert_eq!(choose(&cells, 249), Some(vec![0..1, 1..2]));
    }

    /// Checks that the choice still fits when pairs (bytes, seconds) are dropped, because there are
    /// many layers of different sizes.
    #[test]
    fn long_chains_are_thinned() {
        let layers: Vec<(u64, f64)> = (0..300_u64).map(|at| (at * at % 977 + 1, 1.0)).collect();
        let cells = chain(&layers);
        let room = peak(&cells, &[]) / 3;
        let chosen = choose(&cells, room).expect("some choice needs at most a third of the peak");
        assert!(peak(&cells, &chosen) <= room);
    }
}
