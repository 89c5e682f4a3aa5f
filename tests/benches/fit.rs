//! What a whole run costs beyond its tensor work: `Trainer::fit` over an epoch of batches of 64,
//! and a bare loop that gives libtorch the same work (batches, forward, loss, the log's sums,
//! backward, the same fused optimizer), in turns.
//!
//! `cargo bench -p tests --bench fit` times both with criterion and then prints, for each model,
//! the loop's own overhead per step in µs over the bare tensor work. What a run costs once (placing,
//! the probed first step, validation) is left out of it by taking the difference of a long and a
//! short run. That figure is in time on the CPU, which other processes change little, and of each
//! kind a block of rounds counts the least; the spread is that of the blocks.

use amp_core::{
    data::{Batch, DataModule},
    hardware::seed_everything,
    nn::{named_tensors, parameters},
    optim::{Optimizer, TrainingPlan, WeightUpdate},
    prelude::*,
    tch::{Reduction, set_num_threads},
};
use criterion::Criterion;
use fixtures::models::{MixedPrecisionDemo, PrecisionTestModel};
use rustix::time::{ClockId, clock_gettime};

const BATCH: i64 = 64;
const FEATURES: i64 = 64;
const STEPS: i64 = 70;
const SHORT: i64 = 10;
const ROUNDS: usize = 40;
const BLOCKS: usize = 5;

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
        seed_everything(0)?;
        let (long, short) = (data(STEPS)?, data(SHORT)?);
        let mut trainer = Trainer::new(config);
        let seeded = || -> Result<Box<dyn LightningModule>> {
            seed_everything(1)?;
            build()
        };
        let mut model = seeded()?;
        fit(&mut trainer, model.as_mut(), &short.module)?;
        let other = seeded()?;
        let mut bare = Bare::new(other.as_ref(), dropout)?;
        bare.epoch(&short.train)?;
        let trained = named_tensors(model.as_ref()).into_iter().zip(named_tensors(other.as_ref()));
        for ((name, one, _), (_, other, _)) in trained {
            assert!(one.equal(&other), "`{name}`: the bare loop does other work than the trainer");
        }
        Ok(Self { model, bare, trainer, long, short })
    }

    /// µs a step of the loop beyond the bare work, and of the bare work, in one block of rounds.
    fn block(&mut self) -> (f64, f64) {
        let mut least = [f64::INFINITY; 4];
        for _ in 0..ROUNDS {
            let times = [
                micros(|| fit(&mut self.trainer, self.model.as_mut(), &self.long.module)),
                micros(|| self.bare.epoch(&self.long.train)),
                micros(|| fit(&mut self.trainer, self.model.as_mut(), &self.short.module)),
                micros(|| self.bare.epoch(&self.short.train)),
            ];
            least = std::array::from_fn(|kind| least[kind].min(times[kind]));
        }
        let steps = (STEPS - SHORT) as f64;
        let (fit, bare) = ((least[0] - least[2]) / steps, (least[1] - least[3]) / steps);
        (fit - bare, bare)
    }
}

fn fit(
    trainer: &mut Trainer<'_>,
    model: &mut dyn LightningModule,
    data: &DataModule,
) -> Result<()> {
    trainer.fit(model, data).map(drop)
}

/// This thread's time on the CPU in µs; libtorch works in it alone.
fn micros(run: impl FnOnce() -> Result<()>) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
    };
    let start = now();
    run().expect("a run");
    now() - start
}

fn main() {
    set_num_threads(1);
    let demo = || -> Result<Box<dyn LightningModule>> {
        let model = MixedPrecisionDemo::builder().input_size(FEATURES).hidden_size(64);
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
        group.bench_function("Trainer::fit", |bencher| {
            bencher.iter(|| {
                fit(&mut pair.trainer, pair.model.as_mut(), &pair.long.module).expect("a run")
            });
        });
        group.bench_function("bare", |bencher| {
            bencher.iter(|| pair.bare.epoch(&pair.long.train).expect("an epoch"));
        });
        group.finish();
    }
    criterion.final_summary();
    for (name, pair) in &mut pairs {
        let mut blocks: Vec<(f64, f64)> = (0..BLOCKS).map(|_| pair.block()).collect();
        blocks.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (median, bare) = blocks[BLOCKS / 2];
        let (low, high) = (blocks[0].0, blocks[BLOCKS - 1].0);
        println!(
            "{name}: loop overhead {median:.1} µs a step ({low:.1} to {high:.1}) over {bare:.1} µs \
             of bare tensor work ({:.1} %)",
            100.0 * median / bare
        );
    }
}
