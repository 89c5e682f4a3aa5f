//! Checks that the dtypes, shapes and devices of a model's tensors do not change, and that no
//! buffer is replaced by another tensor.

use std::collections::{HashMap, HashSet};

use tch::{Device, Kind};

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{Result, ffi, nn::Role, precision::dtype_name};

/// Checks that parameters and buffers keep their dtypes, shapes and devices, and that no buffer is
/// replaced by another tensor.
#[derive(Default)]
pub(super) struct DtypesStay {
    first: HashMap<String, Form>,
}

/// The properties of a tensor that must not change during a run.
#[derive(Debug, PartialEq)]
struct Form {
    kind: Kind,
    size: Vec<i64>,
    device: Device,
}

impl Form {
    fn text(&self) -> String {
        format!("{} {:?} on {:?}", dtype_name(self.kind), self.size, self.device)
    }
}

impl Rule for DtypesStay {
    fn invariant(&self) -> Invariant {
        Invariant::DtypesStay
    }

    fn moments(&self) -> &'static [Moment] {
        &[Moment::Start, Moment::StepEnds, Moment::EpochEnds]
    }

    fn violation(&mut self, moment: Moment, seen: &RunView<'_>) -> Result<Option<String>> {
        let forms = seen.tensors().iter().map(|(name, tensor, _)| {
            let (kind, size, device) = (tensor.kind(), tensor.size(), tensor.device());
            (name, Form { kind, size, device })
        });
        if let Some(replaced) = replaced_buffer(seen) {
            return Ok(Some(replaced));
        }
        if moment == Moment::Start {
            self.first = forms.map(|(name, form)| (name.clone(), form)).collect();
            return Ok(None);
        }
        for (name, now) in forms {
            if let Some(first) = self.first.get(name).filter(|first| **first != now) {
                return Ok(Some(format!(
                    "`{name}` is {} now, but was {} when the run began: code of the model, of a callback or \
                     of the optimizer has converted it; choose dtypes by the run's precision and by \
                     `#[precision(…)]`, and write to tensors in place",
                    now.text(),
                    first.text()
                )));
            }
        }
        Ok(None)
    }
}

/// Describes the first buffer that code of the model has replaced by another tensor since the run
/// began. Skipped steps, averages of weights and CUDA graphs would still use the earlier tensor.
fn replaced_buffer(seen: &RunView<'_>) -> Option<String> {
    let state = seen.state;
    // In manual optimization, the model itself decides which tensors a skipped step restores, so it
    // may replace buffers.
    if seen.model.optimizes_manually() && state.average.is_none() {
        return None;
    }
    let held: HashSet<usize> = state.rollback.buffers().map(ffi::identity).collect();
    let mut buffers = seen.tensors().iter().filter(|(_, _, role)| *role == Role::Buffer);
    let (name, ..) = buffers.find(|(_, tensor, _)| !held.contains(&ffi::identity(tensor)))?;
    Some(format!(
        "`{name}` has been replaced by another tensor since the run began: a skipped step, \
         averaged weights and a CUDA graph would use the earlier tensor; write the new values \
         into the buffer instead, as `buffer.f_copy_(&values)` does"
    ))
}
