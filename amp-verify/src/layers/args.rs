use std::{collections::BTreeMap, str::FromStr};

use amp_core::{
    LightningModule, Result, Trainer,
    nn::named_tensors,
    precision::Precision,
    tch::{Device, Tensor, no_grad},
};
use clap::Args;

use super::{Options, Report, Subject, measure};
use crate::{
    case::Case,
    exponents::WindowOptions,
    options::{Format, RunArgs},
};

/// Options of `layers`.
#[derive(Debug, Args)]
pub struct LayersArgs {
    /// The precision to measure
    #[arg(long, value_name = "NAME", value_parser = Precision::from_str,
          default_value_t = Precision::F16Mixed)]
    pub precision: Precision,
    /// Format of the report
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Measure with the weights after training in 32-true, in place of the initial weights
    #[arg(long)]
    pub trained: bool,
    /// The loss scale of 16-mixed, as an exponent of 2
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(i32).range(-126..=127))]
    pub log2_scale: i32,
    /// A loss scale counts as safe only if the largest gradient stays this many powers of 2 below
    /// overflow
    #[arg(long, value_name = "BITS", default_value_t = WindowOptions::default().headroom_bits)]
    pub headroom: i32,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the docs would become the command's help text")]
    pub run: RunArgs,
}

impl LayersArgs {
    /// Measures the rounding errors of the model's layers on the first training batch.
    ///
    /// # Errors
    /// When training or a step fails.
    pub fn measure(&self, case: &Case) -> Result<Report> {
        let window = WindowOptions { headroom_bits: self.headroom, ..WindowOptions::default() };
        let log2_scale = self.log2_scale;
        let options = Options { log2_scale, window, ..Options::new(self.precision) };
        let weights = if self.trained { Some(trained(case)?) } else { None };
        case_with(case, weights.as_ref(), options)
    }
}

/// Measures the rounding errors of the model's layers on the first training batch, with the initial
/// weights.
///
/// # Errors
/// When a step fails, or the model does not run the same layers under every precision.
pub fn measure_case(case: &Case, options: Options) -> Result<Report> {
    case_with(case, None, options)
}

fn case_with(
    case: &Case,
    weights: Option<&BTreeMap<String, Tensor>>,
    options: Options,
) -> Result<Report> {
    let _kernels = case.trainer.numerics.kernels.enter();
    let build = || build(case, weights);
    let batch = case.data.train.head(case.data.batch_size)?;
    measure(&Subject::new(case, &build, &batch), options)
}

/// Builds the model of `case`. If `weights` is given, copies these values into the model's tensors.
fn build(
    case: &Case,
    weights: Option<&BTreeMap<String, Tensor>>,
) -> Result<Box<dyn LightningModule>> {
    let model = case.build()?;
    for (name, mut tensor, _) in named_tensors(model.as_ref()) {
        if let Some(value) = weights.and_then(|weights| weights.get(&name)) {
            no_grad(|| tensor.f_copy_(value))?;
        }
    }
    Ok(model)
}

/// Trains the model under 32-true. Returns all tensors of the trained model, by name.
fn trained(case: &Case) -> Result<BTreeMap<String, Tensor>> {
    let mut model = case.build()?;
    let config = case.trainer(Precision::F32True)?;
    Trainer::new(config).fit(model.as_mut(), &case.data)?;
    let host = |tensor: Tensor| -> Result<Tensor> {
        Ok(tensor.f_detach()?.f_to_device_(Device::Cpu, tensor.kind(), false, true)?)
    };
    let tensors = named_tensors(model.as_ref()).into_iter();
    tensors.map(|(name, tensor, _)| Ok((name, host(tensor)?))).collect()
}
