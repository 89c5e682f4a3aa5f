//! Checks that the dtypes, shapes and devices of a model's tensors do not change.

use std::collections::HashMap;

use tch::{Device, Kind};

use super::{Invariant, Moment, Rule, run_state::RunView};
use crate::{Result, precision::dtype_name};

/// Checks that parameters and buffers keep their dtypes, shapes and devices.
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
