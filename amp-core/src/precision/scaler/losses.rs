//! Records whether the losses since the last update were finite.

use std::{
    cell::{Cell, RefCell},
    slice,
};

use tch::{Device, Kind, Tensor};

use crate::{Result, ffi};

/// Records whether a loss since the last update was not finite. A loss on the CPU is checked at
/// once, which costs almost nothing. A loss on CUDA is checked on the device, so that the host need
/// not wait.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Whether a loss on the CPU was not finite.
    bad: Cell<bool>,
    /// A scalar on the device: 0, or NaN if a loss was not finite. `None` if there was no loss on
    /// the device.
    on_device: RefCell<Option<Tensor>>,
}

impl Losses {
    pub(super) fn add(&self, loss: &Tensor) -> Result<()> {
        if loss.device() == Device::Cpu {
            if !ffi::all_finite(slice::from_ref(loss))? {
                self.bad.set(true);
            }
            return Ok(());
        }
        let zero = loss.f_detach()?.f_mul_scalar(0.0)?.f_to_kind(Kind::Float)?;
        let zero = zero.f_reshape([0_i64; 0])?;
        let mut sum = self.on_device.borrow_mut();
        *sum = Some(match sum.take() {
            Some(sum) => sum.f_add(&zero)?,
            None => zero,
        });
        Ok(())
    }

    /// Returns whether a loss on the CPU was not finite.
    pub(super) fn bad_on_host(&self) -> bool {
        self.bad.get()
    }

    /// Returns a new scalar on `device`, which is 0 unless a loss was not finite.
    pub(super) fn found_inf(&self, device: Device) -> Result<Tensor> {
        match &*self.on_device.borrow() {
            Some(sum) => Ok(sum.f_detach_copy()?),
            None => {
                let bad = if self.bad.get() { 1.0 } else { 0.0 };
                Ok(Tensor::f_full([0_i64; 0], bad, (Kind::Float, device))?)
            }
        }
    }

    pub(super) fn clear(&self) {
        self.bad.set(false);
        self.on_device.take();
    }
}
