//! What makes an optimizer: its options, what it keeps for a parameter, and its rule for a step.

use tch::{Device, Kind, Tensor};

use super::{Abilities, Moments, OnDevice, Rates, moments::Code};
use crate::{
    Result,
    ffi::{Kernels, Known},
};

/// An optimizer's options with its rule for one step. Implemented by this module's optimizers.
pub(super) trait Algorithm: Copy + std::fmt::Debug + serde::Serialize + 'static {
    /// PyTorch's name.
    const NAME: &'static str;

    /// Why a dtype is stepped in f32 with its state in f32, whatever the user chose; `None` where
    /// the kernels can step it as it is.
    fn widens(kind: Kind) -> Option<&'static str>;

    /// Refuses options out of range.
    ///
    /// # Errors
    /// Names the option and its range.
    fn check(&self) -> Result<()>;

    /// What is kept for each parameter, by PyTorch's names.
    fn slots(&self) -> Vec<Slot>;

    /// The current rates.
    fn rates(&self) -> Rates;

    /// Sets the rates.
    fn set_rates(&mut self, rates: Rates);

    /// Steps parameters of one dtype.
    ///
    /// # Errors
    /// When a kernel fails.
    fn step(&self, tensors: &StepTensors<'_>) -> Result<()>;

    /// Whether the first step of a parameter follows another rule.
    fn first_step_differs(&self) -> bool {
        false
    }

    /// What [`step`](Self::step) can take on this device: everything where its kernel is ours.
    fn abilities(&self, device: Device) -> Abilities {
        Abilities::all(device.is_cuda())
    }

    /// Whether [`step`](Self::step) takes running averages as they are kept for parameters of this
    /// dtype, rather than in f32 for the time of the step.
    fn takes(&self, moments: Moments, kind: Kind, device: Device) -> bool {
        let _ = (kind, device);
        moments == Moments::Full
    }
}

/// A slot's tensors; none where the options want no such slot.
pub(super) fn kept<'s, 't>(slot: Option<&'s Vec<&'t Tensor>>) -> &'s [&'t Tensor] {
    slot.map(Vec::as_slice).unwrap_or_default()
}

/// One tensor of a parameter's state.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) name: &'static str,
    pub(super) shape: SlotShape,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum SlotShape {
    /// The parameter's, and its dtype unless that is widened: a running average, which may be
    /// negative where it is signed.
    Parameter { signed: bool },
    /// One f32, on the parameter's device.
    Scalar,
    /// One f32 on the CPU.
    HostScalar,
}

impl Slot {
    /// A running average of the parameter's shape.
    pub(super) const fn like_parameter(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter { signed: true } }
    }

    /// One of squares.
    pub(super) const fn of_squares(name: &'static str) -> Self {
        Self { name, shape: SlotShape::Parameter { signed: false } }
    }
}

/// What one step works on: lists of one length.
#[derive(Debug)]
pub(super) struct StepTensors<'a> {
    pub(super) params: &'a [&'a Tensor],
    pub(super) grads: &'a [&'a Tensor],
    /// By slot; what has 8 bits as codes.
    pub(super) states: &'a [Vec<&'a Tensor>],
    /// Of the slots with codes, in their order.
    pub(super) scales: &'a [Vec<&'a Tensor>],
    /// As `scales`, what the codes stand for.
    pub(super) codes: &'a [&'a Code],
    /// Whether these parameters have never been stepped; all of them or none.
    pub(super) first: bool,
    /// What the device alone knows.
    pub(super) known: OnDevice<'a>,
    /// Where a step that can be captured finds its rates.
    pub(super) rates: Option<&'a Tensor>,
}

impl StepTensors<'_> {
    /// Ours where it can be captured, or else libtorch's, of which `fused` is one for the whole step.
    pub(super) fn kernels(&self, fused: bool) -> Kernels<'_> {
        let OnDevice { factor, found_inf } = self.known;
        match self.rates {
            Some(rates) => Kernels::Ours(Known::new(rates, factor, found_inf)),
            None if fused => Kernels::Fused(found_inf),
            None => Kernels::Foreach,
        }
    }
}
