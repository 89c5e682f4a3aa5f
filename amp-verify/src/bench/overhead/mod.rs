//! What a run costs beyond its tensor work: [`Trainer::fit`] over an epoch of batches of 64, and a
//! bare loop that gives libtorch the same work (batches, forward, loss, the log's sums, backward,
//! the same fused optimizer), in turns.
//!
//! What a run costs once (placing, the probed first step, validation) is left out by the difference
//! of a long and a short run. Times are the thread's on the CPU, which other processes change
//! little, with libtorch in this thread alone, and of each kind a block of rounds counts the least.

mod bare;

pub use bare::Bare;

use amp_core::{
    Error, LightningModule, Result, Trainer, TrainerConfig,
    data::{Batch, DataModule},
    hardware::seed_everything,
    nn::named_tensors,
    precision::Precision,
    tch::{self, Device, Kind, Tensor},
};
use fixtures::models::{MixedPrecisionDemo, PrecisionTestModel};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const BATCH: i64 = 64;
const FEATURES: i64 = 64;
/// Steps of a long epoch.
pub const STEPS: i64 = 70;
const SHORT: i64 = 10;
const ROUNDS: usize = 40;
const BLOCKS: usize = 5;

/// The loop's cost beyond its tensor work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// The model.
    pub model: String,
    /// Microseconds a step beyond the bare work, in each block, the least first.
    pub microseconds: Vec<f64>,
    /// Microseconds a step of the bare work.
    pub bare_microseconds: f64,
}

impl Overhead {
    /// The median block's.
    pub fn median(&self) -> f64 {
        self.microseconds.get(self.microseconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// The models that are measured, each beside its bare loop.
///
/// # Errors
/// When the two do not do the same work.
pub fn pairs() -> Result<Vec<(&'static str, Pair)>> {
    let demo = || -> Result<Box<dyn LightningModule>> {
        let model = MixedPrecisionDemo::builder().input_size(FEATURES).hidden_size(64);
        Ok(Box::new(model.build()?))
    };
    let test = || -> Result<Box<dyn LightningModule>> {
        Ok(Box::new(PrecisionTestModel::builder().input_size(FEATURES).build()?))
    };
    Ok(vec![
        ("MixedPrecisionDemo", Pair::new(demo, Some(0.2))?),
        ("PrecisionTestModel", Pair::new(test, None)?),
    ])
}

/// Measures all of them, on the CPU with one thread.
///
/// # Errors
/// When a run fails.
pub fn measure() -> Result<Vec<Overhead>> {
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let measured = pairs().and_then(|pairs| {
        pairs.into_iter().map(|(name, mut pair)| pair.measure(name)).collect::<Result<_>>()
    });
    tch::set_num_threads(threads);
    measured
}

/// A model, the bare loop over a second one like it, and data for a long and a short epoch.
pub struct Pair {
    /// The trainer's.
    pub model: Box<dyn LightningModule>,
    /// The bare loop.
    pub bare: Bare,
    /// The trainer.
    pub trainer: Trainer<'static>,
    /// For a long epoch.
    pub long: Data,
    short: Data,
}

/// Examples for the trainer, and the same for the bare loop.
pub struct Data {
    /// The trainer's.
    pub module: DataModule,
    /// The bare loop's.
    pub train: Batch,
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
            if !one.equal(&other) {
                return Err(Error::config(format!(
                    "`{name}`: the bare loop does other work than the trainer"
                )));
            }
        }
        Ok(Self { model, bare, trainer, long, short })
    }

    /// Measures some blocks of rounds.
    ///
    /// # Errors
    /// When a run fails.
    pub fn measure(&mut self, model: &str) -> Result<Overhead> {
        let mut blocks = (0..BLOCKS).map(|_| self.block()).collect::<Result<Vec<_>>>()?;
        blocks.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Overhead {
            model: model.to_owned(),
            microseconds: blocks.iter().map(|block| block.0).collect(),
            bare_microseconds: blocks[BLOCKS / 2].1,
        })
    }

    /// µs a step of the loop beyond the bare work, and of the bare work, in one block of rounds.
    fn block(&mut self) -> Result<(f64, f64)> {
        let mut least = [f64::INFINITY; 4];
        for _ in 0..ROUNDS {
            let times = [
                micros(|| fit(&mut self.trainer, self.model.as_mut(), &self.long.module))?,
                micros(|| self.bare.epoch(&self.long.train))?,
                micros(|| fit(&mut self.trainer, self.model.as_mut(), &self.short.module))?,
                micros(|| self.bare.epoch(&self.short.train))?,
            ];
            least = std::array::from_fn(|kind| least[kind].min(times[kind]));
        }
        let steps = (STEPS - SHORT) as f64;
        let (fit, bare) = ((least[0] - least[2]) / steps, (least[1] - least[3]) / steps);
        Ok((fit - bare, bare))
    }
}

/// One run.
///
/// # Errors
/// When it fails.
pub fn fit(
    trainer: &mut Trainer<'_>,
    model: &mut dyn LightningModule,
    data: &DataModule,
) -> Result<()> {
    trainer.fit(model, data).map(drop)
}

/// This thread's time on the CPU in µs; libtorch works in it alone.
fn micros(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
    };
    let start = now();
    run()?;
    Ok(now() - start)
}
