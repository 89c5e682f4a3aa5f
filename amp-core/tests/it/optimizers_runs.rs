//! Tests of whole training runs with each of these optimizers: Muon (for matrices, together with
//! AdamW for other parameters), Adafactor, LAMB and a user-defined optimizer.

use amp_core::{
    callback::{Mode, ModelCheckpoint},
    nn::named_tensors,
    optim::{
        Adafactor, Algorithm, BuildOptimizer, Lamb, Muon, Optimizers, Rates, Slot, StepTensors,
    },
    precision::{AutocastGuard, Clip, GradScalerConfig},
    prelude::*,
    record::RunRecord,
    trainer::Graph,
};
use rstest::rstest;

use crate::support::{
    bits::sha256,
    device,
    model::{digits, same},
    needs_cuda,
    oracle::Lcg,
    parameter, seeded, set_gradient,
};

/// A user-defined optimizer: sign descent with momentum.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signum {
    lr: f64,
    /// Whether a CUDA graph may contain the steps of this optimizer.
    captured: bool,
}

impl Algorithm for Signum {
    const NAME: &'static str = "Signum";
    const ELEMENTWISE: bool = true;

    fn slots(&self, _: &amp_core::nn::Parameter) -> Result<Vec<Slot>> {
        Ok(vec![Slot::like_parameter("momentum_buffer")])
    }

    fn rates(&self) -> Rates {
        Rates { lr: self.lr, momentum: None }
    }

    fn set_rates(&mut self, rates: Rates) {
        self.lr = rates.lr;
    }

    fn captures(&self) -> bool {
        self.captured
    }

    fn step(&self, tensors: &StepTensors<'_>) -> Result<()> {
        tensors.each(self, |_, one| {
            let mut m = one.slot("momentum_buffer")?.shallow_clone();
            let _ = m.f_lerp_(one.grad(), 0.1)?;
            one.lr().times(-1.0)?.add(one.param(), &m.f_sign()?)
        })
    }
}

macro_rules! nets {
    ($($net:ident: $(#[$attribute:meta])+)+) => {
        $(
            #[derive(LightningModule)]
            #[loss(cross_entropy)]
            #[metric(accuracy, name = acc)]
            $(#[$attribute])+
            struct $net {
                #[layer(linear(64, 32))]
                inlet: Linear,
                #[layer(sequential(batch_norm1d(32), relu, linear(32, 32), relu))]
                body: Sequential,
                #[layer(linear(32, 10))]
                head: Linear,
            }
        )+
    };
}

nets! {
    MuonNet:
        #[optimizer(muon, lr = 2e-2, ndim = 2, except = ["head.*", "inlet.*"])]
        #[scheduler(one_cycle, max_lr = 2e-2, total_steps = 120)]
        #[optimizer(adamw, lr = 3e-3, group(ndim = 1, weight_decay = 0.0))]
    AdafactorNet:
        #[optimizer(adafactor, lr = 3e-2, weight_decay = 1e-3)]
        #[scheduler(wsd, warmup_steps = 4, decay_steps = 40, total_steps = 120)]
    LambNet:
        #[optimizer(lamb, lr = 2e-2)]
        #[scheduler(lambda_lr, lr_lambda = |epoch| 0.9_f64.powf(epoch as f64))]
    SignumNet:
        #[optimizer(Signum, lr = 4e-3, captured = true, group(params = ["head.*"], lr = 2e-3))]
        #[scheduler(exponential_lr, gamma = 0.8)]
    UncapturedNet:
        #[optimizer(Signum, lr = 4e-3)]
}

/// The results of a run: the SHA-256 digests of all parameters and buffers, and the run record.
type Outcome = (Vec<String>, RunRecord);

type Change<'a> = &'a dyn Fn(Trainer<'static>) -> Trainer<'static>;

fn fit<M: LightningModule>(
    build: impl Fn() -> Result<M>,
    config: &TrainerConfig,
    change: Change<'_>,
) -> Result<Outcome> {
    let _generator = seeded(3);
    let mut net = build()?;
    let data = same(digits(320)?, 32)?;
    let record = change(Trainer::new(config.clone())).fit(&mut net, &data)?;
    Ok((named_tensors(&net).iter().map(|(_, tensor, _)| sha256(tensor)).collect(), record))
}

fn train(net: &str, config: &TrainerConfig, change: Change<'_>) -> Result<Outcome> {
    match net {
        "muon" => fit(|| MuonNet::builder().build(), config, change),
        "adafactor" => fit(|| AdafactorNet::builder().build(), config, change),
        "lamb" => fit(|| LambNet::builder().build(), config, change),
        "signum" => fit(|| SignumNet::builder().build(), config, change),
        _ => fit(|| UncapturedNet::builder().build(), config, change),
    }
}

fn config(precision: Precision, epochs: i64) -> TrainerConfig {
    let mut config = TrainerConfig::new(precision, device());
    config.max_epochs = epochs;
    config.optimization.gradient_clip = Some(Clip::Norm(1.0));
    config.recovery.provenance = false;
    config
}

/// In every precision, training with clipped gradients reduces the loss by a third, also with two
/// accumulated batches per step.
#[rstest]
fn every_precision_reduces_the_loss(
    #[values("muon", "adafactor", "lamb", "signum")] net: &str,
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F64True,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values(1, 2)] window: i64,
) -> Result<()> {
    let mut config = config(precision, 8);
    config.optimization.accumulate_grad_batches = window;
    config.numerics.scaler.init_scale = 256.0;
    let (_, record) = train(net, &config, &|trainer| trainer)?;
    let loss = |at: usize| {
        let val = &record.epochs[at].val;
        let logged = val.iter().find(|logged| logged.name == "val_loss");
        logged.expect("the loss is logged").value
    };
    let (first, last) = (loss(0), loss(record.epochs.len() - 1));
    assert!(last < first / 1.5, "{net} in {precision}: the loss went from {first} to {last}");
    assert_eq!(record.end.global_step, 80 / window.cast_unsigned());
    Ok(())
}

/// A run is stopped in its third epoch and resumed. It has the same bits as a run without
/// interruption. In 16-mixed, steps are skipped before and after the stop.
#[rstest]
fn a_resumed_run_equals_an_uninterrupted_one(
    #[values("muon", "adafactor", "lamb", "signum")] net: &str,
    #[values(Precision::F32True, Precision::F16Mixed, Precision::Bf16True)] precision: Precision,
) -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_owned();
    let config = |epochs| {
        let mut config = config(precision, epochs);
        config.numerics.scaler = GradScalerConfig {
            init_scale: 2.0_f64.powi(24),
            growth_interval: 7,
            ..Default::default()
        };
        config
    };
    let last = path.join("last.safetensors");
    let saving = |trainer: Trainer<'static>| {
        let saving = ModelCheckpoint::new(&path, "val_loss", Mode::Min).expect("a folder");
        trainer.callback(saving.save_last(true))
    };
    let straight = train(net, &config(4), &|trainer| trainer)?;
    train(net, &config(4).with(|config| config.max_steps = Some(20)), &saving)?;
    let resumed = train(net, &config(4), &|trainer| trainer.resume_from(last.clone()))?;
    assert_eq!(straight.0, resumed.0);
    assert!(precision != Precision::F16Mixed || straight.1.end.skipped > 0, "{:?}", straight.1.end);
    Ok(())
}

/// Every optimizer that can run inside CUDA graphs does so, with the same results as in a run
/// without CUDA graphs. The cases include overflows, clipping and changing learning rates.
#[rstest]
#[ignore = "needs a CUDA device: AMP_DEVICE=cuda and --include-ignored"]
fn a_graph_runs_the_rule(
    #[values("muon", "adafactor", "lamb", "signum", "uncaptured")] net: &str,
    #[values(
        Precision::F32True,
        Precision::F16Mixed,
        Precision::Bf16Mixed,
        Precision::F64True,
        Precision::F16True,
        Precision::Bf16True
    )]
    precision: Precision,
    #[values(1, 2)] window: i64,
) -> Result<()> {
    needs_cuda();
    let run = |graph| {
        let mut config = config(precision, 12);
        config.graph = graph;
        config.optimization.accumulate_grad_batches = window;
        config.numerics.scaler = GradScalerConfig {
            init_scale: 2.0_f64.powi(26),
            growth_interval: 5,
            ..Default::default()
        };
        train(net, &config, &|trainer| trainer)
    };
    let (eager, graphed) = (run(Graph::Off)?, run(Graph::On)?);
    assert_eq!(eager.0, graphed.0);
    assert_eq!(eager.1.end.skipped, graphed.1.end.skipped);
    assert!(graphed.1.end.replayed > 20, "{:?}", graphed.1.end);
    assert!(precision != Precision::F16Mixed || graphed.1.end.skipped > 0, "{:?}", graphed.1.end);
    Ok(())
}

/// A step inside an autocast region equals a step outside.
#[rstest]
fn autocast_does_not_affect_rules(
    #[values(
        &Muon::default() as &dyn BuildOptimizer,
        &Adafactor::default(),
        &Lamb::default()
    )]
    options: &dyn BuildOptimizer,
) -> Result<()> {
    let mut lcg = Lcg(4);
    let value = lcg.tensor(&[6, 4], 128.0).to_device(device());
    let grad = lcg.tensor(&[6, 4], 61.0).to_device(device());
    let step = |autocast: bool| -> Result<Tensor> {
        let mut optimizer = options.build(vec![parameter("w", &value)])?;
        set_gradient(&optimizer.parameters()[0], &grad);
        let region =
            autocast.then(|| AutocastGuard::enter(device(), Kind::BFloat16)).transpose()?;
        optimizer.step()?;
        drop(region);
        Ok(optimizer.parameters()[0].tensor.detach())
    };
    assert_eq!(step(true)?, step(false)?);
    Ok(())
}

/// Each optimizer declares whether a CUDA graph can contain its step.
#[test]
fn each_rule_declares_whether_a_graph_can_run_it() -> Result<()> {
    for (net, captures) in [
        (configured(&MuonNet::builder().build()?)?, [true, true].as_slice()),
        (configured(&AdafactorNet::builder().build()?)?, &[true]),
        (configured(&LambNet::builder().build()?)?, &[true]),
        (configured(&SignumNet::builder().build()?)?, &[true]),
        (configured(&UncapturedNet::builder().build()?)?, &[false]),
    ] {
        let built = net.0.build(net.1, amp_core::optim::Storage::default())?;
        let seen: Vec<bool> =
            built.iter().map(|one| one.optimizer.capabilities().captures).collect();
        let on_cuda = device().is_cuda();
        assert_eq!(seen, captures.iter().map(|captures| *captures && on_cuda).collect::<Vec<_>>());
    }
    Ok(())
}

fn configured(net: &dyn LightningModule) -> Result<(Optimizers, Vec<amp_core::nn::Parameter>)> {
    let plan = TrainingPlan { max_epochs: 2, estimated_stepping_batches: 20 };
    let parameters = amp_core::nn::parameters(net);
    let moved = parameters.into_iter().map(|parameter| amp_core::nn::Parameter {
        tensor: parameter.tensor.detach().to_device(device()).set_requires_grad(true),
        name: parameter.name,
    });
    Ok((net.configure_optimizers(&plan)?, moved.collect()))
}
