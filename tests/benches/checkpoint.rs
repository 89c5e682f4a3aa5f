//! Measures how much time a run spends on saving a checkpoint, for a model with 126 million
//! parameters. A checkpoint contains the weights and AdamW's state, which are 1.5 GB together. Each
//! round consists of a run without a checkpoint and a run that saves one. The times of the steps of
//! the two runs are compared. Run the benchmark with `cargo bench --bench checkpoint -- [rounds]`.

use std::{path::PathBuf, time::Instant};

use amp_core::{
    Hook, LightningModule, Result, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::{Batch, DataModule},
    event::Event,
    hardware::parse_device,
    nn::{TransformerEncoderLayer, parameters},
    precision::{Precision, StepOutcome},
    random::seeded,
    tch::{Device, Kind, Tensor},
    trainer::{Loops, StepAccess, ValCheckInterval},
};

const WIDTH: i64 = 1024;

#[derive(LightningModule)]
#[forward(|x| blocks(x))]
#[loss(mse_loss)]
#[optimizer(adamw, lr = 1e-4)]
struct Encoder {
    #[hparam(default = 10)]
    layers: usize,
    #[layer(repeat(layers, |_| transformer_encoder_layer(WIDTH, 16, dim_feedforward = 4 * WIDTH)))]
    blocks: Vec<TransformerEncoderLayer>,
}

/// A callback that saves one checkpoint, after `after` steps, into the file `to`.
struct Saves {
    after: u64,
    to: PathBuf,
}

impl Callback for Saves {
    fn name(&self) -> String {
        "Saves".to_owned()
    }

    fn step_access(&self) -> StepAccess {
        StepAccess::Deferred
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        hook: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        match hook.global_step == self.after {
            true => Ok(vec![Action::Save { path: self.to.clone(), weights_only: false }]),
            false => Ok(Vec::new()),
        }
    }
}

/// Times in seconds since the start of the run: the end of each step, the moment when writing the
/// file began, and the moment when the run noticed that the file was written.
#[derive(Default)]
struct Times {
    steps: Vec<f64>,
    saving: Option<f64>,
    saved: Option<f64>,
}

/// Trains for this many steps. If `saves` is true, the run saves a checkpoint after a fifth of the
/// steps.
fn run(data: &DataModule, device: Device, steps: u64, saves: bool) -> Result<Times> {
    let _section = seeded(0)?;
    let folder = tempfile::tempdir().expect("a folder");
    let mut model = Encoder::builder().build()?;
    let config = TrainerConfig::new(Precision::Bf16Mixed, device).with(|config| {
        config.max_steps = Some(steps);
        config.loops = Loops { val_check_interval: ValCheckInterval::Never, ..Loops::default() };
    });
    let after = if saves { steps / 5 } else { u64::MAX };
    let callback = Saves { after, to: folder.path().join("run.safetensors") };
    let (start, mut times) = (Instant::now(), Times::default());
    let mut listen = |event: &Event| -> Result<()> {
        let now = start.elapsed().as_secs_f64();
        match event {
            Event::Batch { .. } => times.steps.push(now),
            Event::Saving { .. } => times.saving = Some(now),
            Event::Saved { .. } => times.saved = Some(now),
            _ => {}
        }
        Ok(())
    };
    Trainer::new(config).callback(callback).subscribe(&mut listen).fit(&mut model, data)?;
    Ok(times)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let rounds = std::env::args().filter_map(|text| text.parse().ok()).next().unwrap_or(3);
    let device = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "auto".to_owned());
    let device = parse_device(&device)?;
    let (rows, length, steps) = if device.is_cuda() { (512, 512, 500) } else { (4, 16, 20) };
    let noise = || Tensor::randn([rows, length, WIDTH], (Kind::Float, Device::Cpu));
    let data = DataModule::training("noise", Batch::new(noise(), noise())?, 16.min(rows));
    let weights = parameters(&Encoder::builder().build()?);
    let count: usize = weights.iter().map(|one| one.tensor.numel()).sum();
    println!("{count} parameters, {steps} steps of 16 × {length} tokens on {device:?}");
    for round in 1..=rounds {
        let (without, with) = (run(&data, device, steps, false)?, run(&data, device, steps, true)?);
        let first = steps as usize / 5;
        let seconds =
            |times: &Times, steps: usize| times.steps[first + steps - 1] - times.steps[first - 1];
        let (Some(saving), Some(saved)) = (with.saving, with.saved) else { continue };
        let last = with.steps[steps as usize - 1];
        let while_written = with.steps.iter().filter(|at| **at > saving && **at <= saved).count();
        let rest = steps as usize - first;
        let steps_without: Vec<f64> =
            without.steps.windows(2).skip(first).map(|pair| pair[1] - pair[0]).collect();
        println!(
            "round {round}: without a checkpoint, a step took {:.3} ms on average (median {:.3} ms); writing a checkpoint \
             took {:.2} s{}; {while_written} steps ran during the writing and took {:.3} ms each ({:+.2} % compared with \
             the run without a checkpoint); before the writing, training stopped for {:.1} ms; all {rest} steps from the \
             checkpoint on took {:+.2} % compared with the run without a checkpoint",
            1e3 * seconds(&without, rest) / rest as f64,
            1e3 * median(steps_without),
            saved - saving,
            if saved > last { " (longer than the training)" } else { "" },
            1e3 * seconds(&with, while_written) / while_written as f64,
            100.0 * (seconds(&with, while_written) / seconds(&without, while_written) - 1.0),
            1e3 * (saving - with.steps[first - 1]),
            100.0 * (seconds(&with, rest) / seconds(&without, rest) - 1.0),
        );
    }
    Ok(())
}
