//! Tests of optimizer rules that get their numbers, such as the learning rate, on the device, as in
//! a step that is captured in a CUDA graph. In these tests the CPU is the device.

use rstest::rstest;
use tch::{Device, Kind, Tensor};

use super::{
    Adafactor, Algorithm, Lamb, Muon, OnDevice, ParameterStep, Rates, Slot, StepTensors,
    state::SlotShape,
};
use crate::{Result, parameter::Parameter};

/// An optimizer with a mistake: its rule reads the rate from the options, so a CUDA graph would
/// capture the rate as a constant.
#[derive(Debug, Clone)]
struct Careless {
    lr: f64,
}

impl Algorithm for Careless {
    const NAME: &'static str = "Careless";

    fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
        Ok(Vec::new())
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: None }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
    }

    fn captures(&self) -> bool {
        true
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        tensors.each(self, |own, one| {
            let _ = one.param().shallow_clone().f_sub_(&one.grad().f_mul_scalar(own.lr)?)?;
            Ok(())
        })
    }
}

/// A parameter that is a matrix, with its optimizer state.
struct Rig<A> {
    options: A,
    param: Tensor,
    slots: Vec<Slot>,
    states: Vec<Tensor>,
}

fn wave(phase: f64) -> Result<Tensor> {
    let grid = Tensor::f_arange(24, (Kind::Double, Device::Cpu))?;
    Ok(grid.f_mul_scalar(0.7)?.f_add_scalar(phase)?.f_sin()?.f_view([6, 4])?)
}

impl<A: Algorithm> Rig<A> {
    fn new(options: A) -> Result<Self> {
        let parameter = Parameter { name: "w".to_owned(), tensor: wave(0.3)? };
        let slots = options.slots(&parameter)?;
        let zeros = |slot: &Slot| match &slot.shape {
            SlotShape::Own(shape) => Tensor::f_zeros(shape.as_slice(), (Kind::Double, Device::Cpu)),
            SlotShape::Parameter { .. } => Tensor::f_zeros([6, 4], (Kind::Double, Device::Cpu)),
            _ => Tensor::f_zeros([0_i64; 0], (Kind::Float, Device::Cpu)),
        };
        let states = slots.iter().map(zeros).collect::<std::result::Result<_, _>>()?;
        Ok(Self { options, param: parameter.tensor, slots, states })
    }

    fn step(&self, grad: &Tensor, known: OnDevice<'_>, rates: Option<&Tensor>) -> Result<()> {
        let states: Vec<Vec<&Tensor>> = self.states.iter().map(|state| vec![state]).collect();
        self.options.step(&StepTensors {
            params: &[&self.param],
            grads: &[grad],
            slots: &self.slots,
            states: &states,
            scales: &[],
            codes: &[],
            first: false,
            known,
            rates,
        })
    }

    fn everything(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.param).chain(&self.states)
    }

    /// Returns the largest absolute difference between elements of the parameters or states of
    /// `self` and `other`.
    fn off(&self, other: &Self) -> Result<f64> {
        let mut most = 0.0;
        for (own, other) in self.everything().zip(other.everything()) {
            most = f64::max(most, own.f_sub(other)?.f_abs()?.f_max()?.f_double_value(&[])?);
        }
        Ok(most)
    }
}

fn on_device(rates: Rates) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[rates.lr, rates.momentum.unwrap_or_default()])?)
}

/// Checks that steps with changing rates give the same results whether the rates are numbers on the
/// host or tensors on the device.
#[rstest]
#[case::muon(Muon::default())]
#[case::plain_muon(Muon { nesterov: false, ..Muon::default() })]
#[case::adafactor(Adafactor { weight_decay: 0.1, ..Adafactor::default() })]
#[case::lamb(Lamb::default())]
fn numbers_on_the_device_are_the_hosts(#[case] options: impl Algorithm) -> Result<()> {
    let (mut host, device) = (Rig::new(options.clone())?, Rig::new(options)?);
    for step in 1..=20 {
        let rates = host.options.rates();
        host.options.set_rates(Rates { lr: rates.lr * 0.9, ..rates });
        let grad = wave(f64::from(step))?;
        host.step(&grad, OnDevice::default(), None)?;
        device.step(&grad, OnDevice::default(), Some(&on_device(host.options.rates())?))?;
    }
    let off = host.off(&device)?;
    assert!(off < 1e-13, "{off:e}");
    assert!(host.param.f_sub(&wave(0.3)?)?.f_abs()?.f_min()?.f_double_value(&[])? > 1e-6);
    Ok(())
}

/// Compares steps that read `found_inf` and `factor` on the device with steps on the host. If
/// `found_inf` is 1, the step must leave every bit unchanged, even if the gradient is NaN. If
/// `found_inf` is 0, a step with four times the gradient and a factor of 1/4 must equal the step on
/// the host.
#[rstest]
#[case::muon(Muon::default())]
#[case::adafactor(Adafactor::default())]
#[case::lamb(Lamb::default())]
fn a_step_is_skipped_and_scaled_on_the_device(#[case] options: impl Algorithm) -> Result<()> {
    let (plain, known) = (Rig::new(options.clone())?, Rig::new(options)?);
    let (no, yes) = (Tensor::from(0.0_f32), Tensor::from(1.0_f32));
    let (quarter, nan) = (Tensor::from(0.25_f32), wave(9.0)?.f_mul_scalar(f64::NAN)?);
    for step in 1..=3 {
        let grad = wave(f64::from(step))?;
        let larger = grad.f_mul_scalar(4.0)?;
        plain.step(&grad, OnDevice::default(), None)?;
        known.step(&larger, OnDevice { found_inf: Some(&no), factor: Some(&quarter) }, None)?;
        assert_eq!(plain.off(&known)?, 0.0, "taken");
        for spoiled in [&nan, &larger] {
            known.step(spoiled, OnDevice { found_inf: Some(&yes), factor: None }, None)?;
            assert_eq!(plain.off(&known)?, 0.0, "skipped");
        }
    }
    Ok(())
}

/// Checks that a rule that reads the rate from its options gets the learning rate in a step on the
/// host, but NaN in a step on the device, where a CUDA graph would capture the rate as a constant.
#[test]
fn a_rate_from_the_options_shows_itself() -> Result<()> {
    let rig = Rig::new(Careless { lr: 0.1 })?;
    rig.step(&wave(1.0)?, OnDevice::default(), None)?;
    assert_eq!(rig.param.f_isnan()?.f_any()?.f_int64_value(&[])?, 0);
    rig.step(&wave(1.0)?, OnDevice::default(), Some(&on_device(rig.options.rates())?))?;
    assert_eq!(rig.param.f_isnan()?.f_all()?.f_int64_value(&[])?, 1);
    Ok(())
}

/// Checks that the error for a slot that does not exist lists the slots that exist.
#[test]
fn a_slot_that_is_not_there_is_named() -> Result<()> {
    #[derive(Debug, Clone)]
    struct Wrong;

    impl Algorithm for Wrong {
        const NAME: &'static str = "Wrong";

        fn slots(&self, _: &Parameter) -> Result<Vec<Slot>> {
            Ok(vec![Slot::like_parameter("exp_avg")])
        }

        fn rates(&self) -> Rates {
            Rates { lr: 0.0, momentum: None }
        }

        fn set_rates(&mut self, _: Rates) {}

        fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
            tensors.each(self, |_, one: &ParameterStep<'_>| one.slot("exp_average").map(drop))
        }
    }

    let said = Rig::new(Wrong)?.step(&wave(1.0)?, OnDevice::default(), None);
    let said = said.expect_err("there is no such slot").to_string();
    assert!(
        said.contains("no slot is called `exp_average`: `slots` returned [\"exp_avg\"]"),
        "{said}"
    );
    Ok(())
}
