//! The forward passes that record dtypes before rounding is emulated.

use std::{cell::RefCell, collections::BTreeMap};

use amp_core::{
    nn::{Call, Op, Probe, Substitute},
    precision::is_floating,
    tch::{Kind, Tensor},
};

use super::Kinds;

/// Makes layers run as in the runs with emulated rounding, but changes no tensor.
pub(super) struct Unchanged;

impl Substitute for Unchanged {}

/// Records the dtypes of each module in a forward pass; see
/// [`Emulation`](super::Emulation).
#[derive(Default)]
pub(super) struct Seen {
    pub(super) modules: RefCell<BTreeMap<String, Kinds>>,
    pub(super) inner: RefCell<BTreeMap<(String, String), Kind>>,
}

impl Probe for Seen {
    fn ran(&self, call: &Call<'_>) {
        let given = match call.plan.autocast {
            // Autocast casts the input inside the module, so `call.input` is not cast yet.
            Some(kind) if call.op == Op::Matmul && is_floating(call.input.kind()) => kind,
            _ => call.input.kind(),
        };
        let kinds = Kinds {
            given,
            returned: call.output.kind(),
            computed: call.plan.compute,
            sums_parts: call.op != Op::Matmul,
        };
        self.modules.borrow_mut().insert(call.path.to_owned(), kinds);
    }

    fn inner(&self, path: &str, name: &str, inner: &Tensor) {
        self.inner.borrow_mut().insert((path.to_owned(), name.to_owned()), inner.kind());
    }
}
