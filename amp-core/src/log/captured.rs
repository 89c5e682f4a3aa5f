//! The log of a step that runs as a CUDA graph. The graph adds the step's values to sums on the
//! device, without the host. For metrics that need every example, such as AUROC, the graph writes
//! one row per example, and the host copies the rows after each replay.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::{Log, entry::Entry};
use crate::{
    Error, Result, ffi,
    metric::{Merge, Part},
};

/// The initial number of f64 values for which memory is allocated (128 KiB). A scalar needs one
/// value, F1 of C classes needs 3·C values, and a confusion matrix of C classes needs C² values.
const AT_FIRST: i64 = 1 << 14;

/// Memory for the sums of a step that is captured as a CUDA graph. The memory must be allocated
/// before the capture. Memory that is allocated during the capture may have the addresses of
/// tensors that the step has used and freed. The next replay writes to these addresses before it
/// adds to the sums.
#[derive(Debug)]
pub(crate) struct LogRoom {
    numbers: Tensor,
    needed: Cell<i64>,
}

impl LogRoom {
    pub(crate) fn new(device: Device) -> Result<Self> {
        Self::with(AT_FIRST, device)
    }

    fn with(numbers: i64, device: Device) -> Result<Self> {
        let numbers = Tensor::f_zeros([numbers], (Kind::Double, device))?;
        Ok(Self { numbers, needed: Cell::new(0) })
    }

    /// Returns larger memory if a step logged more numbers than fit into this memory.
    pub(crate) fn larger(&self) -> Result<Option<Self>> {
        let needed = self.needed.get();
        let larger = || Self::with(needed, self.numbers.device());
        (needed > self.numbers.numel() as i64).then(larger).transpose()
    }

    /// Returns, for each tensor of `counts`, the part of this memory in which the replays sum the
    /// tensor up.
    ///
    /// # Errors
    /// When the sums do not fit into this memory. In this case, use [`larger`](Self::larger)
    /// memory.
    fn slots(&self, counts: &[&Tensor]) -> Result<Vec<Tensor>> {
        let numbers = counts.iter().map(|counts| counts.numel() as i64);
        self.needed.set(numbers.clone().sum());
        if self.needed.get() > self.numbers.numel() as i64 {
            return Err(Error::config(format!(
                "the step logs {} numbers, more than its memory can hold",
                self.needed.get()
            )));
        }
        let mut used = 0;
        let slots = counts.iter().zip(numbers).map(|(counts, numbers)| {
            let slot = self.numbers.f_narrow(0, used, numbers)?;
            used += numbers;
            Ok(slot.f_view(counts.size().as_slice())?)
        });
        slots.collect()
    }
}

/// The log of a step that was captured as a CUDA graph.
#[derive(Debug)]
pub(crate) struct CapturedLog {
    entries: Vec<Captured>,
    /// The number of calls of [`count_step`](CapturedLog::count_step) since
    /// [`take_over`](CapturedLog::take_over).
    steps: u64,
    device: Device,
}

#[derive(Debug)]
struct Captured {
    /// The values of the captured step. Each replay of the CUDA graph overwrites the tensors in
    /// `latest`.
    step: Entry,
    /// For each tensor or list of rows in the value's metric state, what the replays of the CUDA
    /// graph have accumulated.
    kept: Vec<Kept>,
    /// The number of batches in the log's entry at [`take_over`](CapturedLog::take_over). If the
    /// number has changed at [`give_back`](CapturedLog::give_back), a hook has logged a value under
    /// the same name.
    before: u64,
}

/// What the replays of the CUDA graph have accumulated for one part of a metric's state.
#[derive(Debug)]
enum Kept {
    Sum(Tensor),
    /// The rows of each counted step, copied from the device memory of the graph.
    Rows(Vec<Tensor>),
}

/// Returns the tensor of `part` that each replay adds to a sum. Returns `None` if the rows of each
/// step are collected instead of summed.
fn summed(part: &Part) -> Option<&Tensor> {
    match (part.merge, &*part.pieces) {
        (Merge::Sum, [counts]) => Some(counts),
        _ => None,
    }
}

impl CapturedLog {
    /// Adds to sums in `room` the values that the batches of one step have logged. Call this during
    /// the capture of the CUDA graph. The contents of the sums are undefined until
    /// [`take_over`](Self::take_over) writes them.
    ///
    /// # Errors
    /// When the memory `room` is too small.
    pub(crate) fn capture(batches: Vec<Log>, room: &LogRoom) -> Result<Self> {
        let mut step = Log::default();
        batches.into_iter().try_for_each(|log| step.merge(log))?;
        let parts = step.entries.iter().flat_map(|entry| &entry.state.parts);
        let counts: Vec<&Tensor> = parts.filter_map(summed).collect();
        let slots = room.slots(&counts)?;
        // One kernel adds the values to all sums.
        ffi::foreach_add_each(&slots.iter().collect::<Vec<_>>(), &counts)?;
        let mut slots = slots.into_iter();
        let entries = step.entries.into_iter().map(|entry| {
            let parts = entry.state.parts.iter().map(|part| match summed(part) {
                Some(_) => Kept::Sum(slots.next().expect("each sum has a slot")),
                None => Kept::Rows(Vec::new()),
            });
            let kept = parts.collect();
            let latest = entry.state.shallow_clone();
            Captured { step: Entry { latest, batches: 1, ..entry }, kept, before: 0 }
        });
        Ok(Self { entries: entries.collect(), steps: 0, device: room.numbers.device() })
    }

    /// Returns the sums, which are on the device.
    pub(crate) fn sums(&self) -> impl Iterator<Item = &Tensor> {
        let kept = self.entries.iter().flat_map(|entry| &entry.kept);
        kept.filter_map(|kept| match kept {
            Kept::Sum(sum) => Some(sum),
            Kept::Rows(_) => None,
        })
    }

    /// Copies the sums of `log` into the sums on the device, to which the next replays add.
    ///
    /// # Errors
    /// When `log` has a value of the same name, but the structure or shape of its state differs
    /// from that of the captured step.
    pub(crate) fn take_over(&mut self, log: &mut Log) -> Result<()> {
        self.steps = 0;
        for Captured { step, kept, before } in &mut self.entries {
            let place = log.entries.iter().position(|entry| entry.name == step.name);
            let entry = match place {
                Some(place) => &mut log.entries[place],
                None => {
                    log.entries.push(Entry {
                        name: step.name.clone(),
                        reduction: step.reduction.clone(),
                        state: step.state.nothing_like()?,
                        latest: step.state.nothing_like()?,
                        batches: 0,
                        ..*step
                    });
                    log.entries.last_mut().expect("an entry was just added")
                }
            };
            if !entry.state.is_like(&step.state) {
                let error = entry.state.differs(&step.state);
                return Err(step.named(error));
            }
            if entry.reduction.is_none() {
                entry.reduction = step.reduction.clone();
            }
            for (kept, part) in kept.iter_mut().zip(&entry.state.parts) {
                match (kept, entry.batches, part.pieces.as_slice()) {
                    (Kept::Rows(rows), ..) => rows.clear(),
                    (Kept::Sum(sum), 1.., [counts]) => sum.f_copy_(counts)?,
                    (Kept::Sum(sum), ..) => _ = sum.f_zero_()?,
                }
            }
            *before = entry.batches;
        }
        Ok(())
    }

    /// Copies the rows of the replay that was started last, before the next replay overwrites them.
    ///
    /// # Errors
    /// When there is not enough device memory.
    pub(crate) fn rows(&self) -> Result<Vec<Tensor>> {
        let parts = self.entries.iter().flat_map(|entry| &entry.step.state.parts);
        let rows = parts.filter(|part| part.merge == Merge::Concat).flat_map(|part| &part.pieces);
        rows.map(|rows| Ok(rows.f_detach_copy()?)).collect()
    }

    /// Counts a replayed step, whose values the device has already added to the sums, and keeps the
    /// step's [rows](Self::rows).
    pub(crate) fn count_step(&mut self, rows: Vec<Tensor>) {
        self.steps += 1;
        let mut rows = rows.into_iter();
        for Captured { step, kept, .. } in &mut self.entries {
            for (kept, part) in kept.iter_mut().zip(&step.state.parts) {
                if let Kept::Rows(own) = kept {
                    own.extend(rows.by_ref().take(part.pieces.len()));
                }
            }
        }
    }

    /// Writes the sums and the rows of the counted steps back to `log`.
    ///
    /// # Errors
    /// When a hook has logged a value under the same name since [`take_over`](Self::take_over).
    pub(crate) fn give_back(&mut self, log: &mut Log) -> Result<()> {
        let steps = std::mem::take(&mut self.steps);
        if steps == 0 {
            return Ok(());
        }
        for Captured { step, kept, before } in &mut self.entries {
            let entry = log.entries.iter_mut().find(|entry| entry.name == step.name);
            let Some(entry) = entry.filter(|entry| entry.batches == *before) else {
                return Err(Error::config(format!(
                    "log `{}`: the step and a hook log the same name: rename one of them",
                    step.name
                )));
            };
            entry.forget_left_out()?;
            for (part, kept) in entry.state.parts.iter_mut().zip(kept) {
                match kept {
                    Kept::Sum(sum) => part.pieces = vec![sum.f_detach_copy()?],
                    Kept::Rows(rows) => part.pieces.append(rows),
                }
            }
            entry.state.weight += step.state.weight * steps as f64;
            entry.batches += step.batches * steps;
            entry.latest = step.latest.copied_to(self.device)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::LogOptions,
        metric::{Auroc, Rmse},
    };

    /// Returns the outputs and targets of the two batches of a step.
    fn batches(step: i64) -> Vec<(Tensor, Tensor)> {
        let batch = |at: i64| {
            let places = Tensor::arange(3, (Kind::Float, Device::Cpu));
            let output = ((places + 1.0) * (7 * step + 3 * at + 1)).sin();
            (output, Tensor::from_slice(&[1_i64, 0, (step + at) % 2]))
        };
        (0..2).map(batch).collect()
    }

    fn logged(step: i64) -> Result<Vec<Log>> {
        let batch = |(output, target): (Tensor, Tensor)| {
            let mut log = Log::default();
            log.metric("auroc", &Auroc::default(), &output, &target, LogOptions::ON_BOTH)?;
            log.metric(
                "rmse",
                &Rmse,
                &output,
                &target.f_to_kind(Kind::Float)?,
                LogOptions::ON_BOTH,
            )?;
            Ok(log)
        };
        batches(step).into_iter().map(batch).collect()
    }

    fn merged(steps: impl Iterator<Item = i64>) -> Result<Log> {
        let mut log = Log::default();
        for step in steps {
            // The log of a step without a CUDA graph gives the expected values.
            let mut own = Log::default();
            logged(step)?.into_iter().try_for_each(|batch| own.merge(batch))?;
            log.merge(own)?;
        }
        Ok(log)
    }

    /// Simulates a replay of the CUDA graph: writes the values that the step logs, and adds them to
    /// the sums.
    fn replay(captured: &CapturedLog, step: i64) -> Result<()> {
        let own = merged(std::iter::once(step))?;
        for (entry, own) in captured.entries.iter().zip(&own.entries) {
            let parts = entry.step.state.parts.iter().zip(&own.state.parts);
            for ((part, own), kept) in parts.zip(&entry.kept) {
                for (at, given) in part.pieces.iter().zip(&own.pieces) {
                    at.shallow_clone().f_copy_(given)?;
                    if let Kept::Sum(sum) = kept {
                        let _ = sum.shallow_clone().f_add_(given)?;
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn replays_keep_what_steps_keep() -> Result<()> {
        let mut log = merged(0..2)?;
        let room = LogRoom::new(Device::Cpu)?;
        let mut captured = CapturedLog::capture(logged(9)?, &room)?;
        for replays in [2..5, 5..6] {
            captured.take_over(&mut log)?;
            // All replays start before the first step is counted, as on a device that runs ahead of
            // the host.
            let mut queue = Vec::new();
            for step in replays {
                replay(&captured, step)?;
                queue.push(captured.rows()?);
            }
            queue.into_iter().for_each(|rows| captured.count_step(rows));
            captured.give_back(&mut log)?;
        }
        let expected = merged(0..6)?;
        assert_eq!(log.epoch_values()?, expected.epoch_values()?);
        assert_eq!(log.step_values()?, expected.step_values()?);
        // A later replay must not change the sums in the log.
        replay(&captured, 20)?;
        assert_eq!(log.epoch_values()?, expected.epoch_values()?);
        assert_eq!(log.step_values()?, expected.step_values()?);
        Ok(())
    }
}
