//! A model that is built only once and stays on its device. Before each run, the model is reset to
//! the state of a newly built model.

use amp_core::{
    LightningModule, Result,
    nn::{Role, clear_gradients, named_tensors},
    random::RandomState,
    state::State,
    tch::{Device, Tensor, no_grad},
};

use crate::case::Case;

/// A model that can be reset to its initial values. A reset writes the initial values, which are
/// kept on the device, into the model's tensors. This is faster than building the model again,
/// because a build draws each weight on the host and copies it to the device.
pub(crate) struct ResetModel {
    model: Box<dyn LightningModule>,
    seed: u64,
    device: Device,
    /// Copies of the model's initial tensors on the device, in the order of [`named_tensors`].
    initial: Vec<Initial>,
    /// The state that the model itself adds to a checkpoint.
    state: State,
    /// The state of the random generators after the model was built.
    random: RandomState,
}

/// The key under which [`ResetModel::state`] contains the state that the model itself wrote.
const OWN: &str = "model";

struct Initial {
    values: Tensor,
    requires_grad: bool,
}

impl ResetModel {
    /// Builds the model of `case`.
    pub(crate) fn of(case: &Case) -> Result<Self> {
        Self::new(case.build()?, case.trainer.device, case.trainer.seed)
    }

    /// Wraps a model that was just built with this seed, and keeps its initial values.
    pub(crate) fn new(model: Box<dyn LightningModule>, device: Device, seed: u64) -> Result<Self> {
        let random = RandomState::read(device)?;
        let (mut own, mut state) = (State::default(), State::default());
        model.on_save_checkpoint(&mut own)?;
        state.put_part(OWN, own.copied()?);
        let initial = |(_, tensor, _): (String, Tensor, Role)| -> Result<Initial> {
            let values = no_grad(|| tensor.f_to_device_(device, tensor.kind(), false, true))?;
            Ok(Initial { values, requires_grad: tensor.requires_grad() })
        };
        let initial =
            named_tensors(model.as_ref()).into_iter().map(initial).collect::<Result<_>>()?;
        Ok(Self { model, seed, device, initial, state, random })
    }

    /// Builds the model again if the seed of `case` differs from the seed with which the model was
    /// built.
    pub(crate) fn follow(&mut self, case: &Case) -> Result<()> {
        if self.seed != case.trainer.seed {
            *self = Self::of(case)?;
        }
        Ok(())
    }

    /// Returns the name of the model.
    pub(crate) fn name(&self) -> &'static str {
        self.model.name()
    }

    /// Resets the model to the state of a new build, and the random generators to their state after
    /// a build.
    pub(crate) fn reset(&mut self) -> Result<&mut dyn LightningModule> {
        clear_gradients(self.model.as_ref())?;
        let tensors = named_tensors(self.model.as_ref());
        for ((_, mut tensor, _), initial) in tensors.into_iter().zip(&self.initial) {
            let Initial { values, requires_grad, .. } = initial;
            if tensor.kind() == values.kind() && tensor.device() == self.device {
                no_grad(|| tensor.f_copy_(values))?;
            } else {
                tensor.f_set_data(&values.f_detach_copy()?)?;
            }
            if tensor.requires_grad() != *requires_grad {
                let _ = tensor.f_set_requires_grad(*requires_grad)?;
            }
        }
        self.model.on_load_checkpoint(&self.state.part(OWN).copied()?)?;
        self.random.restore(self.device)?;
        Ok(self.model.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use amp_core::{
        Trainer, TrainerConfig,
        data::{Batch, DataModule},
        nn::{LinearConfig, Visit, Visitor, visit_child},
        precision::Precision,
        prelude::*,
        random,
        trainer::Freeze,
    };
    use rstest::rstest;

    use super::*;
    use crate::{DataSet, Registry, case::Choices, model, project};

    /// A model that applies one layer twice. The layer has two names.
    struct Twice(Linear);

    impl Visit for Twice {
        fn visit(&self, visitor: &mut dyn Visitor) {
            visit_child(visitor, "first", None, &self.0);
            visit_child(visitor, "second", None, &self.0);
        }
    }

    impl Module for Twice {
        fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
            let between = cx.call("first", None, &self.0, input)?.f_relu()?;
            cx.call("second", None, &self.0, &between)
        }
    }

    /// A model with everything that a reset must restore: buffers, dropout, tied weights, state
    /// that the model adds to a checkpoint, and random noise.
    #[derive(LightningModule)]
    #[forward(|x| {
        let noisy = x.f_add(&x.f_randn_like()?.f_mul_scalar(0.1)?)?;
        head(&dropped(&norm(&tied(&noisy)?)?)?)
    })]
    #[loss(mse_loss)]
    #[optimizer(adamw, lr = 1e-2)]
    #[on_train_batch_end(Self::count)]
    struct Net {
        #[layer(Twice(Linear::new(LinearConfig::new(4, 4))?))]
        tied: Twice,
        #[layer(batch_norm1d(4))]
        norm: BatchNorm,
        #[layer(dropout(0.5))]
        dropped: Dropout,
        #[layer(linear(4, 1))]
        head: Linear,
        #[state]
        batches: i64,
    }

    impl Net {
        fn count(&mut self, _: &Tensor, _: Option<&StepOutcome>, _: &mut Hook<'_>) -> Result<()> {
            self.batches += 1;
            Ok(())
        }
    }

    fn noise(batch_size: i64) -> Result<DataModule> {
        let part = |first: i64| {
            let x = Tensor::f_arange_start(first, first + 64, (Kind::Float, Device::Cpu))?;
            let x = x.f_square()?.f_sin()?.f_view([16, 4])?;
            let y = x.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Float)?;
            Batch::new(x, y)
        };
        Ok(DataModule::new("noise", part(0)?, part(64)?, batch_size))
    }

    fn case() -> Result<Case> {
        let model = model!(Net).judged_by_loss().margin(1.0).batch_size(8);
        let registry =
            Registry::new(project!()).data_set(DataSet::new("noise", noise)).model(model);
        let model = registry.find(None)?;
        Case::new(&registry, model, Choices { seed: 7, ..Choices::default() }, Device::Cpu)
    }

    /// Returns everything that a reset must restore: the bits of every tensor and of the random
    /// generators, which tensors have gradients and which require gradients, and the state that the
    /// model adds to a checkpoint.
    fn bits(model: &dyn LightningModule) -> Result<Vec<(String, Tensor)>> {
        let mut all: Vec<(String, Tensor)> = Vec::new();
        for (name, tensor, _) in named_tensors(model) {
            let (gradient, trained) = (tensor.grad().defined(), tensor.requires_grad());
            all.push((
                format!("{name} {:?} {gradient} {trained}", tensor.kind()),
                tensor.f_detach_copy()?,
            ));
        }
        let mut state = State::default();
        model.on_save_checkpoint(&mut state)?;
        all.push((format!("{:?}", state.values()), Tensor::from(0.0)));
        let random = Tensor::f_rand([8], (Kind::Double, Device::Cpu))?;
        all.push(("random numbers".to_owned(), random));
        Ok(all)
    }

    fn assert_same(found: &[(String, Tensor)], expected: &[(String, Tensor)]) {
        assert_eq!(found.len(), expected.len());
        for ((own, found), (name, expected)) in found.iter().zip(expected) {
            assert_eq!(own, name);
            assert!(found.size() == expected.size() && found.equal(expected), "{name}");
        }
    }

    fn trained(
        case: &Case,
        model: &mut dyn LightningModule,
        precision: Precision,
        freezes: bool,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut config = TrainerConfig { precision, max_epochs: 2, ..case.trainer.clone() };
        if freezes {
            config.optimization.freeze = vec![Freeze::new("tied.*")];
        }
        Trainer::new(config).fit(model, &case.data)?;
        bits(model)
    }

    /// Checks that a model that is reset after a run under any precision has the same bits as a
    /// newly built model, and that its next run ends with the same bits as a run of a newly built
    /// model.
    #[rstest]
    fn a_reset_model_is_a_new_build(
        #[values(Precision::F16Mixed, Precision::F64True, Precision::Bf16True)] before: Precision,
        #[values(Precision::F32True, Precision::F16True, Precision::Bf16Mixed)]
        precision: Precision,
        #[values(false, true)] freezes: bool,
    ) -> Result<()> {
        let _section = random::seeded(1)?;
        let case = case()?;
        let built = bits(case.build()?.as_ref())?;
        let expected = trained(&case, case.build()?.as_mut(), precision, false)?;
        let mut model = ResetModel::of(&case)?;
        let moved = trained(&case, model.reset()?, before, freezes)?;
        let first = moved[4].1.to_kind(built[4].1.kind());
        assert!(!first.equal(&built[4].1), "{} did not train", moved[4].0);
        let (_, tensor, _) = named_tensors(model.model.as_ref()).swap_remove(0);
        let _ = tensor.set_requires_grad(false);
        assert_same(&bits(model.reset()?)?, &built);
        assert_same(&trained(&case, model.reset()?, precision, false)?, &expected);
        Ok(())
    }

    /// Checks that `follow` builds the model again if the case has another seed than the model. The
    /// weights must be those of the new seed.
    #[test]
    fn a_model_follows_the_seed() -> Result<()> {
        let _section = random::seeded(1)?;
        let mut case = case()?;
        let mut model = ResetModel::of(&case)?;
        let first = bits(model.reset()?)?;
        case.trainer.seed += 1;
        model.follow(&case)?;
        let expected = bits(case.build()?.as_ref())?;
        assert!(!first[0].1.equal(&expected[0].1));
        assert_same(&bits(model.reset()?)?, &expected);
        Ok(())
    }
}
