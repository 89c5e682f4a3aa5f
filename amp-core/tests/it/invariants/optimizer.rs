//! An optimizer and a schedule that contain a fault on purpose, so that the invariants have
//! something to find.

use std::rc::Rc;

use amp_core::{
    Result,
    nn::Parameter,
    optim::{
        AdamW, BuildOptimizer, BuildScheduler, Capabilities, OnDevice, Optimizer, Rates, Scheduler,
        StepLr, Storage,
    },
    state::State,
    tch::{Tensor, no_grad},
};

/// The fault that an optimizer or its schedule contains on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    Nothing,
    /// Writes the old values back into the first weight after each step.
    WritesBack,
    /// Updates only parameters that had a gradient in the first step.
    StepsTheFirst,
    /// Does not update the first parameter.
    LeavesOut,
    /// Updates a copy of the first parameter, and not the model's tensor.
    Copies,
    KeepsGradients,
    IgnoresRates,
    /// Changes the learning rate even if the step was skipped.
    MovesRates,
    SchedulesTwice,
    SchedulesNever,
}

/// Builds AdamW or a schedule that contains the fault.
#[derive(Clone, Copy)]
pub(super) struct Build(pub(super) Odd);

impl BuildOptimizer for Build {
    fn build_with(
        &self,
        mut parameters: Vec<Parameter>,
        storage: Storage,
    ) -> Result<Box<dyn Optimizer>> {
        match self.0 {
            Odd::LeavesOut => drop(parameters.remove(0)),
            Odd::Copies => {
                let copy = parameters[0].tensor.detach().copy().set_requires_grad(true);
                parameters[0].tensor = copy;
            }
            _ => {}
        }
        let inner = AdamW::default().build_with(parameters, storage)?;
        Ok(Box::new(Wrapped { odd: self.0, inner, first: None }))
    }
}

struct Wrapped {
    odd: Odd,
    inner: Box<dyn Optimizer>,
    /// Whether each parameter had a gradient in the first step.
    first: Option<Vec<bool>>,
}

impl Optimizer for Wrapped {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn parameters(&self) -> &Rc<[Parameter]> {
        self.inner.parameters()
    }

    fn step_with(&mut self, known: OnDevice<'_>) -> Result<()> {
        let own = self.inner.parameters().clone();
        let has = |parameter: &Parameter| parameter.tensor.grad().defined();
        let first = self.first.get_or_insert_with(|| own.iter().map(has).collect()).clone();
        let kept: Vec<Option<Tensor>> = own
            .iter()
            .enumerate()
            .map(|(at, parameter)| {
                let back = self.odd == Odd::WritesBack && at == 0;
                let left = self.odd == Odd::StepsTheFirst && !first[at];
                (back || left).then(|| parameter.tensor.detach().copy())
            })
            .collect();
        self.inner.step_with(known)?;
        for (parameter, kept) in own.iter().zip(kept) {
            if let Some(kept) = kept {
                no_grad(|| parameter.tensor.shallow_clone().f_copy_(&kept))?;
            }
        }
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn rates(&self) -> Vec<Rates> {
        self.inner.rates()
    }

    fn set_rates(&mut self, rates: &[Rates]) {
        if self.odd != Odd::IgnoresRates {
            self.inner.set_rates(rates);
        }
    }

    fn extend_state(&mut self) -> Result<()> {
        self.inner.extend_state()
    }

    fn state(&self) -> Result<State> {
        self.inner.state()
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        self.inner.load_state(state)
    }

    fn zero_grad(&mut self) -> Result<()> {
        match self.odd {
            Odd::KeepsGradients => Ok(()),
            Odd::MovesRates => {
                let rates = self.inner.rates().into_iter();
                let moved = rates.map(|rates| Rates { lr: rates.lr * 0.9, ..rates });
                self.inner.set_rates(&moved.collect::<Vec<_>>());
                self.inner.zero_grad()
            }
            _ => self.inner.zero_grad(),
        }
    }
}

impl BuildScheduler for Build {
    fn build(&self, base: Rates) -> Result<Box<dyn Scheduler>> {
        let inner = StepLr { step_size: 1, gamma: 0.99 }.build(base)?;
        Ok(Box::new(Schedule { odd: self.0, inner }))
    }
}

struct Schedule {
    odd: Odd,
    inner: Box<dyn Scheduler>,
}

impl Scheduler for Schedule {
    fn rates(&self) -> Rates {
        self.inner.rates()
    }

    fn advance(&mut self, monitored: Option<f64>) {
        let times = match self.odd {
            Odd::SchedulesTwice => 2,
            Odd::SchedulesNever => 0,
            _ => 1,
        };
        (0..times).for_each(|_| self.inner.advance(monitored));
    }

    fn state(&self) -> Result<State> {
        self.inner.state()
    }

    fn load_state(&mut self, state: &State) -> Result<()> {
        self.inner.load_state(state)
    }

    fn fork(&self) -> Box<dyn Scheduler> {
        Box::new(Self { odd: self.odd, inner: self.inner.fork() })
    }
}
