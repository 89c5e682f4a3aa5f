//! Tests of parameter groups, and of several optimizers whose gradients come from one backward
//! pass.

use amp_core::{
    nn::Role,
    optim::{
        Adam, AdamW, BuildOptimizer, GroupRates, Lion, Optimizers, ParamGroups, Rates, RmsProp,
        Scheduled, Sgd, WeightUpdate,
    },
    precision::GradScalerConfig,
    prelude::*,
    state::State,
};
use rstest::rstest;

use crate::support::{bits::values, device, message, oracle::Lcg, parameter, set_gradients};

const NAMES: [&str; 4] = ["body.0.weight", "body.0.bias", "norm.weight", "head.bias"];

fn parameters() -> Vec<amp_core::nn::Parameter> {
    let mut lcg = Lcg(5);
    NAMES.iter().map(|name| parameter(name, &lcg.tensor(&[7], 64.0).to_device(device()))).collect()
}

fn train(optimizer: &mut dyn amp_core::optim::Optimizer, from: &[&str]) -> Result<()> {
    for step in 0..20 {
        let mut lcg = Lcg(step);
        let grads = NAMES.map(|_| lcg.tensor(&[7], 32.0).to_device(device()));
        let grads = NAMES.iter().zip(grads).filter(|(name, _)| from.contains(name));
        let grads: Vec<Option<Tensor>> = grads.map(|(_, grad)| Some(grad)).collect();
        set_gradients(optimizer, &grads);
        optimizer.step()?;
    }
    Ok(())
}

/// The parameters of a group change exactly as if a separate optimizer with the group's options
/// trained them.
#[rstest]
#[case::adamw(AdamW::default(), AdamW { lr: 0.1, weight_decay: 0.0, betas: (0.5, 0.9), ..Default::default() })]
#[case::adam(Adam { fused: false, ..Default::default() }, Adam { weight_decay: 0.1, eps: 1e-3, fused: false, ..Default::default() })]
#[case::sgd(Sgd { lr: 0.1, ..Default::default() }, Sgd { lr: 0.1, momentum: 0.9, dampening: 0.1, ..Default::default() })]
#[case::rmsprop(RmsProp::default(), RmsProp { momentum: 0.9, centered: true, ..Default::default() })]
#[case::lion(Lion::default(), Lion { betas: (0.5, 0.5), ..Default::default() })]
fn a_group_moves_like_an_optimizer_of_its_own<O>(#[case] base: O, #[case] other: O) -> Result<()>
where
    O: BuildOptimizer + Copy,
    ParamGroups<O>: BuildOptimizer,
{
    let grouped = ParamGroups::new(base).group(["*.bias", "norm.*"], other);
    let mut grouped = grouped.build(parameters())?;
    train(grouped.as_mut(), &NAMES)?;
    for (options, names) in [(base, &NAMES[..1]), (other, &NAMES[1..])] {
        let own = parameters().into_iter().filter(|p| names.contains(&p.name.as_ref()));
        let mut alone = options.build(own.collect())?;
        train(alone.as_mut(), names)?;
        for parameter in alone.parameters().iter() {
            let same = grouped.parameters().iter().find(|p| p.name == parameter.name);
            assert_eq!(
                same.expect("the same names").tensor,
                parameter.tensor,
                "{}",
                parameter.name
            );
        }
    }
    Ok(())
}

/// Learning rates are reported by optimizer and group. The first group has the options of the
/// optimizer, and contains the parameters that are in no declared group. If every parameter is in a
/// declared group, the first group does not exist.
#[test]
fn rates_are_reported_by_optimizer_and_group() -> Result<()> {
    let adamw = AdamW::default();
    let config = |groups: ParamGroups<AdamW>| OptimizerConfig::new(groups);
    let configs = vec![
        config(ParamGroups::new(adamw).group(["*.weight"], AdamW { lr: 0.5, ..adamw }))
            .params(["body.*"]),
        config(
            ParamGroups::new(adamw).group(["*"], AdamW { lr: 0.25, betas: (0.5, 0.9), ..adamw }),
        )
        .params(["head.*"]),
        OptimizerConfig::new(Sgd::default()),
    ];
    let built = Optimizers::from(configs).build(parameters(), WeightUpdate::default())?;
    let rates: Vec<GroupRates> = built.iter().flat_map(Scheduled::rates).collect();
    let told = |optimizer: &str, group, lr, momentum| GroupRates {
        optimizer: optimizer.to_owned(),
        group,
        rates: Rates { lr, momentum },
    };
    assert_eq!(
        rates,
        [
            told("AdamW", 0, 1e-3, Some(0.9)),
            told("AdamW", 1, 0.5, Some(0.9)),
            told("AdamW-1", 0, 0.25, Some(0.5)),
            told("SGD", 0, 1e-3, None),
        ]
    );
    let names: Vec<Vec<&str>> = built
        .iter()
        .map(|one| one.optimizer.parameters().iter().map(|p| p.name.as_ref()).collect())
        .collect();
    assert_eq!(
        names,
        [vec!["body.0.weight", "body.0.bias"], vec!["head.bias"], vec!["norm.weight"]]
    );
    Ok(())
}

/// An invalid assignment of parameters to optimizers is refused, and the error names the
/// parameters.
#[rstest]
#[case(&[Some("tail.*"), None], "no parameter matches `tail.*`: the parameters are called `body.0.weight`, ")]
#[case(&[Some("body.*"), Some("*.bias"), None], "`body.0.bias` would be trained by two optimizers")]
#[case(&[Some("body.*"), Some("head.*")], "`norm.weight` would be trained by no optimizer")]
#[case(&[None, None], "two optimizers would train all parameters")]
#[case(&[Some("*"), None], "no parameter is left for the optimizer without patterns")]
#[case(&[], "`body.0.weight` would be trained by no optimizer")]
#[case(&[], "or freeze it with the option `freeze`")]
fn each_parameter_has_one_optimizer(#[case] params: &[Option<&str>], #[case] says: &str) {
    let config = |params: &Option<&str>| {
        let config = OptimizerConfig::new(Sgd::default());
        match params {
            Some(pattern) => config.params([*pattern]),
            None => config,
        }
    };
    let configs: Vec<OptimizerConfig> = params.iter().map(config).collect();
    let said = message(Optimizers::from(configs).build(parameters(), WeightUpdate::default()));
    assert!(said.contains(says), "{said}");
}

#[rstest]
#[case(&["norm.bias"], &["*.bias"], "no parameter matches `norm.bias`")]
#[case(&["body.*"], &["*.bias"], "`body.0.bias` is in two parameter groups")]
#[case(&[], &["*.bias"], "the list of patterns is empty")]
fn each_parameter_has_one_group(#[case] one: &[&str], #[case] other: &[&str], #[case] says: &str) {
    let patterns = |patterns: &[&str]| patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let groups = ParamGroups::new(Sgd::default())
        .group(patterns(one), Sgd::default())
        .group(patterns(other), Sgd::default());
    let said = message(groups.build(parameters()));
    assert!(said.contains(says), "{said}");
}

/// Optimizer state that was saved with fewer groups than the optimizer has is refused.
#[test]
fn another_number_of_groups_is_refused() -> Result<()> {
    let saved: State = Sgd::default().build(parameters())?.state()?;
    let groups = ParamGroups::new(Sgd::default()).group(["*.bias"], Sgd::default());
    let said = message(groups.build(parameters())?.load_state(&saved));
    assert!(said.contains("has no `param_groups/1/lr`"), "{said}");
    Ok(())
}

/// A layer that multiplies by one number.
struct Factor(Tensor);

impl Factor {
    fn new() -> Self {
        Self(Tensor::from_slice(&[1.0_f32]).set_requires_grad(true))
    }
}

impl amp_core::Visit for Factor {
    fn visit(&self, visitor: &mut dyn amp_core::nn::Visitor) {
        visitor.tensor("weight", &self.0, Role::Parameter);
    }
}

impl Module for Factor {
    fn forward(&self, input: &Tensor, _: &Context) -> Result<Tensor> {
        Ok(input.f_mul(&self.0)?)
    }
}

/// A model with two factors. The gradient of each factor is the mean of one column of the input.
#[derive(LightningModule)]
#[forward(|x| Ok(first(&x.f_narrow(1, 0, 1)?)?.f_add(&second(&x.f_narrow(1, 1, 1)?)?)?))]
#[loss(with = |output, _| Ok(output.f_mean(None)?))]
#[optimizer(sgd, lr = 0.25, params = ["first.*"])]
#[scheduler(step_lr, step_size = 1, gamma = 0.5, interval = step)]
#[optimizer(sgd, lr = 0.25, group(params = ["second.*"], lr = 0.5))]
#[scheduler(step_lr, step_size = 1, gamma = 0.5, interval = step)]
struct TwoFactors {
    #[layer(Factor::new())]
    first: Factor,
    #[layer(Factor::new())]
    second: Factor,
}

/// Rules 2, 5 and 6 of docs/SEMANTICS.md: two optimizers use the gradients of one backward pass and
/// one update of the scaler. The scaler's growth tracker counts steps, not optimizers. If gradients
/// of one optimizer overflow, the scale is halved once, no optimizer makes a step, and no schedule
/// advances.
#[test]
fn optimizers_share_one_update() -> Result<()> {
    let columns = [[1.0_f32, 1.0], [1.0, 1.0], [1.0, 3e38], [1.0, 1.0]];
    let input = Tensor::from_slice2(&columns);
    let batch =
        || Batch::new(input.shallow_clone(), Tensor::zeros([4], (Kind::Float, Device::Cpu)));
    let data = DataModule::new("columns", batch()?, batch()?, 1).in_order();
    let mut config = TrainerConfig::new(Precision::F16Mixed, device());
    config.max_epochs = 1;
    config.numerics.scaler =
        GradScalerConfig { init_scale: 8.0, growth_interval: 2, ..Default::default() };
    let mut model = TwoFactors::builder().build()?;
    let record = Trainer::new(config).fit(&mut model, &data)?;
    assert_eq!(record.scales, [(2, 16.0), (3, 8.0)]);
    assert_eq!((record.end.global_step, record.end.skipped), (3, 1));
    let culprits: Vec<Option<&str>> =
        record.skips.iter().map(|skip| skip.culprit.as_deref()).collect();
    assert_eq!(culprits, [Some("second.weight")]);
    let first = 1.0 - 0.25 * (1.0 + 0.5 + 0.25);
    assert_eq!(values(&model.first.0), [first]);
    let second = 1.0 - 0.5 * (1.0 + 0.5 + 0.25);
    assert_eq!(values(&model.second.0), [second]);
    Ok(())
}

/// A model for testing a plateau schedule in the trainer. The schedule monitors the validation
/// loss, which never improves, and has a patience of 1. It therefore halves the learning rate after
/// the third epoch, and then after every second epoch.
#[derive(LightningModule)]
#[loss(with = |output, _| Ok(output.f_mean(None)?.f_mul_scalar(0.0)?))]
#[optimizer(sgd, lr = 1.0)]
#[scheduler(reduce_lr_on_plateau, monitor = val_loss, patience = 1, factor = 0.5)]
struct Flat {
    #[layer(Factor::new())]
    factor: Factor,
}

#[test]
fn a_plateau_follows_the_validation() -> Result<()> {
    let batch = || {
        Batch::new(
            Tensor::ones([2, 1], (Kind::Float, Device::Cpu)),
            Tensor::zeros([2], (Kind::Float, Device::Cpu)),
        )
    };
    let data = DataModule::new("ones", batch()?, batch()?, 1);
    let mut config = TrainerConfig::new(Precision::F32True, device());
    config.max_epochs = 6;
    let record = Trainer::new(config).fit(&mut Flat::builder().build()?, &data)?;
    let rates: Vec<f64> = record.epochs.iter().map(|epoch| epoch.lr).collect();
    assert_eq!(rates, [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]);
    Ok(())
}
