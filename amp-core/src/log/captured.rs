//! The sums of a captured step: it adds to them on the device, without the host's knowing.

use tch::{Device, Kind, Tensor};

use super::{Entry, Log};
use crate::{Error, Result, ffi};

/// Numbers that a captured step may log in all; a value is one, F1 of C classes 3·C.
const ROOM: i64 = 1 << 14;

/// What a captured step logs.
#[derive(Debug)]
pub(crate) struct CapturedLog {
    entries: Vec<Captured>,
    /// Steps that count since the sums were [taken over](CapturedLog::take_over).
    steps: u64,
}

#[derive(Debug)]
struct Captured {
    /// Of one step; `latest` is where each replay leaves its counts.
    step: Entry,
    sum: Tensor,
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
    /// When the room is not enough.
    pub(crate) fn capture(batches: Vec<Log>, room: &Tensor) -> Result<Self> {
        let mut step = Log::default();
        batches.into_iter().try_for_each(|log| step.merge(log))?;
        let mut used = 0;
        let entries = step.entries.into_iter().map(|entry| {
            let sum = take_room(room, &mut used, &entry.counts)?;
            let latest = (entry.counts.shallow_clone(), entry.weight);
            let step = Entry { latest, batches: 1, ..entry };
            Ok(Captured { step, sum, before: 0 })
        });
        let entries = entries.collect::<Result<Vec<_>>>()?;
        // In one kernel.
        let sums: Vec<&Tensor> = entries.iter().map(|entry| &entry.sum).collect();
        let counts: Vec<&Tensor> = entries.iter().map(|entry| &entry.step.latest.0).collect();
        ffi::foreach_add_each(&sums, &counts)?;
        Ok(Self { entries, steps: 0 })
    }

    /// The sums.
    pub(crate) fn sums(&self) -> impl Iterator<Item = &Tensor> {
        self.entries.iter().map(|entry| &entry.sum)
    }

    /// Goes on from the sums of `log`.
    ///
    /// # Errors
    /// When a value of this name was logged otherwise.
    pub(crate) fn take_over(&mut self, log: &mut Log) -> Result<()> {
        self.steps = 0;
        for Captured { step, sum, before } in &mut self.entries {
            let place = log.entries.iter().position(|entry| entry.name == step.name);
            let entry = match place {
                Some(place) => &log.entries[place],
                None => {
                    let counts = step.counts.f_zeros_like()?;
                    let latest = (counts.shallow_clone(), 0.0);
                    let name = step.name.clone();
                    log.entries.push(Entry {
                        name,
                        counts,
                        weight: 0.0,
                        latest,
                        batches: 0,
                        ..*step
                    });
                    log.entries.last().expect("one was just added")
                }
            };
            if entry.counts.size() != sum.size() {
                return Err(Error::config(format!(
                    "log `{}`: its counts were of shape {:?} and are of shape {:?} now",
                    step.name,
                    entry.counts.size(),
                    sum.size()
                )));
            }
            match entry.batches {
                0 => _ = sum.f_zero_()?,
                _ => sum.f_copy_(&entry.counts)?,
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
        for Captured { step, sum, before } in &self.entries {
            let entry = log.entries.iter_mut().find(|entry| entry.name == step.name);
            let Some(entry) = entry.filter(|entry| entry.batches == *before) else {
                return Err(Error::config(format!(
                    "log `{}`: the step and a hook log under one name: rename one of them",
                    step.name
                )));
            };
            entry.forget_left_out()?;
            entry.counts = sum.f_detach_copy()?;
            entry.weight += step.weight * steps as f64;
            entry.batches += step.batches * steps;
            entry.latest = (step.latest.0.f_detach_copy()?, step.latest.1);
        }
        Ok(())
    }
}
