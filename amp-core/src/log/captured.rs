//! The sums of a captured step: it adds to them on the device, without the host's knowing.

use tch::{Device, Kind, Tensor};

use super::{Log, entry::Entry};
use crate::{Error, Result, ffi, metric::Merge};

/// Numbers that a captured step may log in all, 2 MiB of them: a value is one, F1 of C classes 3·C, a confusion matrix
/// of them C².
const ROOM: i64 = 1 << 18;

/// What a captured step logs.
#[derive(Debug)]
pub(crate) struct CapturedLog {
    entries: Vec<Captured>,
    /// Steps that count since the sums were [taken over](CapturedLog::take_over).
    steps: u64,
    device: Device,
}

#[derive(Debug)]
struct Captured {
    /// Of one step; `latest` is where each replay leaves its counts.
    step: Entry,
    /// One for each part of the state.
    sums: Vec<Tensor>,
    /// The steps in the log when the sum was taken over.
    before: u64,
}

/// The place of a sum of such counts in `room`, of which the first `used` are taken.
fn take_room(room: &Tensor, used: &mut i64, counts: &Tensor) -> Result<Tensor> {
    let count = counts.numel() as i64;
    if *used + count > ROOM {
        return Err(Error::config(format!(
            "a step logs more than {ROOM} numbers in all: log less"
        )));
    }
    let sum = room.f_narrow(0, *used, count)?.f_view(counts.size().as_slice())?;
    *used += count;
    Ok(sum)
}

impl CapturedLog {
    /// Room for the sums, to be made before the capture: what is allocated within it may lie where
    /// something else lay earlier in the step, which the next replay writes again.
    pub(crate) fn room(device: Device) -> Result<Tensor> {
        Ok(Tensor::f_zeros([ROOM], (Kind::Double, device))?)
    }

    /// Adds what the batches of one step logged to sums of their own in `room`. To be called while
    /// the step is captured; the sums are unknown until they are taken over.
    ///
    /// # Errors
    /// When the room is not enough, or a metric keeps every example.
    pub(crate) fn capture(batches: Vec<Log>, room: &Tensor) -> Result<Self> {
        let mut step = Log::default();
        batches.into_iter().try_for_each(|log| step.merge(log))?;
        let mut used = 0;
        let entries = step.entries.into_iter().map(|entry| {
            let parts = entry.state.parts.iter().map(|part| match (part.merge, &*part.pieces) {
                (Merge::Sum, [counts]) => take_room(room, &mut used, counts),
                _ => Err(Error::config(format!(
                    "the metric `{}` keeps every example of an epoch: compute it in validation alone (`stage = val`), \
                     or in bins where it has them (`thresholds = 200`)",
                    entry.name
                ))),
            });
            let sums = parts.collect::<Result<Vec<_>>>()?;
            let latest = entry.state.shallow_clone();
            let step = Entry { latest, batches: 1, ..entry };
            Ok(Captured { step, sums, before: 0 })
        });
        let entries = entries.collect::<Result<Vec<_>>>()?;
        // In one kernel.
        let sums: Vec<&Tensor> = entries.iter().flat_map(|entry| &entry.sums).collect();
        let states = entries.iter().flat_map(|entry| &entry.step.latest.parts);
        let counts: Vec<&Tensor> = states.flat_map(|part| &part.pieces).collect();
        ffi::foreach_add_each(&sums, &counts)?;
        Ok(Self { entries, steps: 0, device: room.device() })
    }

    /// The sums.
    pub(crate) fn sums(&self) -> impl Iterator<Item = &Tensor> {
        self.entries.iter().flat_map(|entry| &entry.sums)
    }

    /// Goes on from the sums of `log`.
    ///
    /// # Errors
    /// When a value of this name was logged otherwise.
    pub(crate) fn take_over(&mut self, log: &mut Log) -> Result<()> {
        self.steps = 0;
        for Captured { step, sums, before } in &mut self.entries {
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
                    log.entries.last_mut().expect("one was just added")
                }
            };
            if !entry.state.is_like(&step.state) {
                let error = entry.state.differs(&step.state);
                return Err(error.at(&format!("log `{}`", step.name)));
            }
            if entry.reduction.is_none() {
                entry.reduction = step.reduction.clone();
            }
            for (sum, part) in sums.iter_mut().zip(&entry.state.parts) {
                match (entry.batches, part.pieces.as_slice()) {
                    (1.., [counts]) => sum.f_copy_(counts)?,
                    _ => _ = sum.f_zero_()?,
                }
            }
            *before = entry.batches;
        }
        Ok(())
    }

    /// Counts a step that the device has added.
    pub(crate) fn count_step(&mut self) {
        self.steps += 1;
    }

    /// Brings the sums back to `log`.
    ///
    /// # Errors
    /// When somebody else logged under the same name in the meantime.
    pub(crate) fn give_back(&mut self, log: &mut Log) -> Result<()> {
        let steps = std::mem::take(&mut self.steps);
        if steps == 0 {
            return Ok(());
        }
        for Captured { step, sums, before } in &self.entries {
            let entry = log.entries.iter_mut().find(|entry| entry.name == step.name);
            let Some(entry) = entry.filter(|entry| entry.batches == *before) else {
                return Err(Error::config(format!(
                    "log `{}`: the step and a hook log under one name: rename one of them",
                    step.name
                )));
            };
            entry.forget_left_out()?;
            for (part, sum) in entry.state.parts.iter_mut().zip(sums) {
                part.pieces = vec![sum.f_detach_copy()?];
            }
            entry.state.weight += step.state.weight * steps as f64;
            entry.batches += step.batches * steps;
            entry.latest = step.latest.copied_to(self.device)?;
        }
        Ok(())
    }
}
