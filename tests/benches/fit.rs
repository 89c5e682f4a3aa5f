//! What a whole run costs beyond its tensor work: `Trainer::fit` over an epoch of batches of 64,
//! and a bare loop that gives libtorch the same work (batches, forward, loss, the log's sums,
//! backward, the same fused optimizer), in turns.
//!
//! `cargo bench -p tests --bench fit` times both with criterion and then prints, for each model,
//! the loop's own overhead per step in µs over the bare tensor work, with the middle half of the
//! rounds. What a run costs once (placing, the probed first step, validation) is left out of it by
//! taking the difference of a long and a short run.

use std::time::Instant;

use amp_core::{
    data::{Batch, DataModule},
    nn::{named_tensors, parameters},
    optim::{Optimizer, TrainingPlan, WeightUpdate},
    prelude::*,
    tch::{Reduction, set_num_threads},
};
use criterion::Criterion;
use fixtures::models::{MixedPrecisionDemo, PrecisionTestModel};

const BATCH: i64 = 64;
const FEATURES: i64 = 64;
const STEPS: i64 = 220;
const WARM_UP: i64 = 20;
const ROUNDS: usize = 31;

/// A layer as the calls that libtorch gets of it.
enum Call {
    Linear { weight: Tensor, bias: Tensor },
    BatchNorm { weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, batches: Tensor },
    Relu,
    Dropout(f64),
}

impl Call {
    fn run(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Linear { weight, bias } => x.linear(weight, Some(bias)),
            Self::BatchNorm { weight, bias, mean, var, batches } => {
                let _ = batches.shallow_clone().g_add_scalar_(1);
                let (weight, bias) = (Some(weight), Some(bias));
                x.batch_norm(weight, bias, Some(mean), Some(var), true, 0.1, 1e-5, true)
            }
            Self::Relu => x.relu(),
            Self::Dropout(p) => x.dropout(*p, true),
        }
    }
}

/// The same training without the trainer.
struct Bare {
    calls: Vec<Call>,
    optimizer: Box<dyn Optimizer>,
    /// Whether the accuracy of training is logged as well.
    accuracy: bool,
}

impl Bare {
    /// Over the tensors of `model`: each layer by the sizes of what it has.
    fn new(model: &dyn LightningModule, dropout: Option<f64>) -> Result<Self> {
        let plan = TrainingPlan { max_epochs: 1, estimated_stepping_batches: STEPS };
        let optimizers = model.configure_optimizers(&plan)?;
        let mut built = optimizers.build(parameters(model), WeightUpdate::default())?;
        let optimizer = built.remove(0).optimizer;
        let mut calls = Vec::new();
        let mut tensors = named_tensors(model).into_iter().map(|(_, tensor, _)| tensor).peekable();
        let next = |tensors: &mut dyn Iterator<Item = Tensor>| tensors.next().expect("a tensor");
        while let Some(weight) = tensors.next() {
            let bias = next(&mut tensors);
            if weight.dim() == 1 {
                let (mean, var) = (next(&mut tensors), next(&mut tensors));
                let batches = next(&mut tensors);
                calls.push(Call::BatchNorm { weight, bias, mean, var, batches });
            } else {
                calls.push(Call::Linear { weight, bias });
            }
            // A ReLU, and perhaps a dropout, comes before every linear layer but the first.
            if tensors.peek().is_some_and(|next| next.dim() == 2) {
                calls.push(Call::Relu);
                calls.extend(dropout.map(Call::Dropout));
            }
        }
        Ok(Self { calls, optimizer, accuracy: dropout.is_some() })
    }

    fn epoch(&mut self, data: &Batch) -> Result<()> {
        let scalar = || Tensor::zeros([], (Kind::Double, Device::Cpu));
        let (mut losses, mut hits) = (scalar(), scalar());
        for start in (0..data.len()).step_by(BATCH as usize) {
            let input = data.input.narrow(0, start, BATCH);
            let target = data.target.narrow(0, start, BATCH);
            self.optimizer.zero_grad()?;
            let output = self.calls.iter().fold(input, |x, call| call.run(&x));
            let none = None::<Tensor>;
            let loss = output.cross_entropy_loss(&target, none, Reduction::Mean, -100, 0.0);
            losses += loss.detach().to_kind(Kind::Double) * BATCH as f64;
            if self.accuracy {
                let right = output.detach().argmax(1, false).eq_tensor(&target);
                hits += right.sum(Kind::Double);
            }
            loss.backward();
            self.optimizer.step()?;
        }
        Ok(())
    }
}

/// A model, the bare loop over a second one like it, and data for a long and a short epoch.
struct Pair {
    model: Box<dyn LightningModule>,
    bare: Bare,
    trainer: Trainer<'static>,
    long: Data,
    short: Data,
}

/// Examples for the trainer, and the same for the bare loop.
struct Data {
    module: DataModule,
    train: Batch,
}

fn examples(batches: i64) -> Result<Batch> {
    let x = Tensor::f_randn([batches * BATCH, FEATURES], (Kind::Float, Device::Cpu))?;
    let y = Tensor::f_randint(10, [batches * BATCH], (Kind::Int64, Device::Cpu))?;
    Batch::new(x, y)
}

fn data(batches: i64) -> Result<Data> {
    let train = examples(batches)?;
    let same = Batch::new(train.input.shallow_clone(), train.target.shallow_clone())?;
    Ok(Data { module: DataModule::new("noise", same, examples(1)?, BATCH), train })
}

impl Pair {
    fn new(
        build: impl Fn() -> Result<Box<dyn LightningModule>>,
        dropout: Option<f64>,
    ) -> Result<Self> {
        let config = TrainerConfig {
            max_epochs: 1,
            shuffle: false,
            ..TrainerConfig::new(Precision::F32True, Device::Cpu)
        };
        Ok(Self {
            model: build()?,
            bare: Bare::new(build()?.as_ref(), dropout)?,
            trainer: Trainer::new(config),
            long: data(STEPS)?,
            short: data(WARM_UP)?,
        })
    }

    fn fit(&mut self) {
        self.trainer.fit(self.model.as_mut(), &self.long.module).expect("a run");
    }

    fn bare(&mut self) {
        self.bare.epoch(&self.long.train).expect("an epoch");
    }

    /// µs a step of the loop beyond the bare work, and of the bare work, in one round.
    fn round(&mut self) -> (f64, f64) {
        let timed = |run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e6
        };
        let long = timed(&mut || self.fit());
        let bare_long = timed(&mut || self.bare());
        let short = timed(&mut || {
            self.trainer.fit(self.model.as_mut(), &self.short.module).expect("a run");
        });
        let bare_short = timed(&mut || {
            self.bare.epoch(&self.short.train).expect("an epoch");
        });
        let steps = (STEPS - WARM_UP) as f64;
        let bare = (bare_long - bare_short) / steps;
        ((long - short) / steps - bare, bare)
    }
}

/// The quartiles.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[quarter * (values.len() - 1) / 4])
}

fn main() {
    set_num_threads(1);
    let demo = || -> Result<Box<dyn LightningModule>> {
        let model = MixedPrecisionDemo::builder().input_size(FEATURES).hidden_size(256);
        Ok(Box::new(model.build()?))
    };
    let test = || -> Result<Box<dyn LightningModule>> {
        Ok(Box::new(PrecisionTestModel::builder().input_size(FEATURES).build()?))
    };
    let mut pairs = [
        ("MixedPrecisionDemo", Pair::new(demo, Some(0.2)).expect("a model")),
        ("PrecisionTestModel", Pair::new(test, None).expect("a model")),
    ];
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for (name, pair) in &mut pairs {
        let mut group = criterion.benchmark_group(format!("{name}, {STEPS} steps"));
        group.bench_function("Trainer::fit", |bencher| bencher.iter(|| pair.fit()));
        group.bench_function("bare", |bencher| bencher.iter(|| pair.bare()));
        group.finish();
    }
    criterion.final_summary();
    for (name, pair) in &mut pairs {
        let (overhead, bare): (Vec<f64>, Vec<f64>) = (0..ROUNDS).map(|_| pair.round()).unzip();
        let ([low, median, high], [_, bare, _]) = (quartiles(overhead), quartiles(bare));
        println!(
            "{name}: loop overhead {median:.1} µs a step ({low:.1} to {high:.1}) over {bare:.1} µs \
             of bare tensor work ({:.1} %)",
            100.0 * median / bare
        );
    }
}
