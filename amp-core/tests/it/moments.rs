//! Tests of optimizer state that is stored in bf16 or in 8 bits: its values, the weights after
//! steps with such state, and its memory.

use amp_core::{
    Result, TrainerConfig,
    memory::MemoryMeter,
    optim::{
        Adam, AdamW, BuildOptimizer, Lion, Moments, Optimizer, OptimizerConfig, RmsProp, Sgd,
        Storage, WeightUpdate,
    },
    precision::Precision,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::{bits, values},
    device,
    model::{Model, demo, digits, fit, same},
    parameter, seeded, set_gradients,
};

const SMALL: [Moments; 2] = [Moments::Bf16, Moments::EightBit];

fn build(
    options: &dyn BuildOptimizer,
    start: &Tensor,
    moments: Moments,
) -> Result<Box<dyn Optimizer>> {
    options.build_with(vec![parameter("weight", start)], moments.into())
}

/// Runs one step of the optimizer with the gradient `grad`.
fn step(optimizer: &mut dyn Optimizer, grad: &Tensor) -> Result<()> {
    set_gradients(optimizer, &[Some(grad.shallow_clone())]);
    optimizer.step()
}

fn zeros(count: i64, kind: Kind) -> Tensor {
    Tensor::zeros([count], (kind, device()))
}

fn draw(count: i64) -> Tensor {
    Tensor::randn([count], (Kind::Float, Device::Cpu)).to(device())
}

/// Returns the running average `name` of a parameter that has `count` elements. The state may have
/// any dtype. 8-bit codes are converted to values and multiplied by the scale of their block.
fn average(optimizer: &dyn Optimizer, name: &str, count: usize) -> Result<Vec<f64>> {
    let state = optimizer.state()?;
    let kept = state.tensor(&format!("{name}/weight"))?;
    let Ok(scales) = state.tensor(&format!("{name}_scale/weight")) else {
        return Ok(values(&kept.to_kind(Kind::Double)));
    };
    // The values of the 256 codes are those of bitsandbytes' dynamic map. For each d from 0 to 6,
    // 2^d of them are between 10^(d-7) and 10^(d-6), and 2^d are the negatives of these. The map
    // for squares has no negative values, and 2^(d+1) values in each interval.
    let signed = name != "exp_avg_sq";
    let mut code: Vec<f64> = (0..7)
        .flat_map(|decade| {
            let parts = if signed { 1 << decade } else { 2 << decade };
            let middle = move |part| 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts);
            (0..parts).map(move |part| 10_f64.powi(decade - 6) * middle(part))
        })
        .collect();
    if signed {
        code.extend(code.clone().iter().map(|value| -value));
    }
    code.extend([0.0, 1.0]);
    code.sort_by(f64::total_cmp);
    assert_eq!(code.len(), 256);
    let (codes, scales) =
        (values(&kept.to_kind(Kind::Double)), values(&scales.to_kind(Kind::Double)));
    let value = |at: usize| code[codes[at] as usize] * scales[at / 256];
    Ok((0..count).map(value).collect())
}

/// The running averages begin at zero, which every dtype represents exactly. The first step
/// therefore equals the step with f32 state. This also holds for a parameter that is updated in
/// several pieces.
#[rstest]
fn the_first_step_equals_the_one_in_f32(
    #[values(
        &AdamW::default(),
        &Adam { fused: false, weight_decay: 0.1, ..Default::default() },
        &Sgd { momentum: 0.9, ..Default::default() },
        &RmsProp { centered: true, momentum: 0.5, ..Default::default() },
        &Lion::default()
    )]
    options: &dyn BuildOptimizer,
    #[values(5, 1000, 2_200_000)] count: i64,
) -> Result<()> {
    let _generator = seeded(1);
    let (start, grad) = (draw(count), draw(count));
    let mut full = build(options, &start, Moments::Full)?;
    step(full.as_mut(), &grad)?;
    for moments in SMALL {
        let mut small = build(options, &start, moments)?;
        step(small.as_mut(), &grad)?;
        let off = (&small.parameters()[0].tensor - &full.parameters()[0].tensor).abs().max();
        // On CUDA, Adam's kernel for f32 state and its kernels for smaller state differ in the last
        // bit.
        let bound = if device().is_cuda() { 1e-6 } else { 0.0 };
        assert!(off.double_value(&[]) <= bound, "{moments}: {off}");
        let steps = small.state()?.tensor("step/weight").map(|steps| steps.double_value(&[]));
        assert!(steps.is_err() || steps? == 1.0, "the step is counted once");
    }
    Ok(())
}

/// After one step of Adam, the running averages are 0.1·g and 0.001·g². The absolute values of the
/// gradients g range over six decades. In bf16, the error is less than a unit in the last place. In
/// 8 bits, each block of values is divided by its largest value. This value is stored without
/// error. For the other values, the error is less than half the distance between neighbouring codes
/// of the same decade.
#[test]
fn averages_are_as_precise_as_their_dtype() -> Result<()> {
    let _generator = seeded(2);
    let count = 1000;
    let decades = Tensor::rand([count], (Kind::Float, device())) * -6.0;
    let grad = draw(count).sign() * (decades * 10_f64.ln()).exp();
    let exact = values(&grad.to_kind(Kind::Double));
    for (moments, name, power) in [
        (Moments::Bf16, "exp_avg", 1),
        (Moments::Bf16, "exp_avg_sq", 2),
        (Moments::EightBit, "exp_avg", 1),
        (Moments::EightBit, "exp_avg_sq", 2),
    ] {
        let mut optimizer = build(&Adam::default(), &zeros(count, Kind::Float), moments)?;
        step(optimizer.as_mut(), &grad)?;
        let held = average(optimizer.as_ref(), name, count as usize)?;
        let exact: Vec<f64> = match power {
            1 => exact.iter().map(|g| 0.1 * g).collect(),
            _ => exact.iter().map(|g| 0.001 * g * g).collect(),
        };
        for (block, (held, exact)) in held.chunks(256).zip(exact.chunks(256)).enumerate() {
            let largest = exact.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
            for (held, exact) in held.iter().zip(exact) {
                let bound = match moments {
                    Moments::EightBit if *exact > largest * 0.9999 => 1e-5 * largest,
                    Moments::EightBit => {
                        let decade =
                            (exact.abs() / largest).log10().floor().clamp(-7.0, -1.0) + 7.0;
                        let parts = (power as f64) * decade.exp2();
                        1.4 * largest * 10_f64.powf(decade - 6.0) / parts
                    }
                    _ => exact.abs() * 2.0_f64.powi(-7) * 1.001,
                };
                assert!(
                    (held - exact).abs() <= bound,
                    "{moments} {name} {block}: {held}, expected {exact}"
                );
                assert!(power == 1 || *held > 0.0, "a positive square is stored as zero");
            }
        }
    }
    Ok(())
}

/// If all gradients are zero, Adam multiplies the running average of the squares by 0.999 in each
/// step. This changes it by far less than the distance between neighbouring bf16 numbers. With
/// stochastic rounding, the mean of all bf16 values nevertheless follows this decay, within five
/// standard errors. State in 8 bits follows the decay up to f32 rounding, because the scale of each
/// block is an f32.
#[rstest]
#[case(Moments::Bf16, 2e-3)]
#[case(Moments::EightBit, 1e-5)]
fn a_running_square_decays(#[case] moments: Moments, #[case] error: f64) -> Result<()> {
    let _generator = seeded(3);
    let count = 10_000;
    let options = Adam { lr: 0.0, ..Default::default() };
    let mut optimizer = build(&options, &zeros(count, Kind::Float), moments)?;
    let one = zeros(count, Kind::Float) + 1.0;
    step(optimizer.as_mut(), &one)?;
    for _ in 0..200 {
        step(optimizer.as_mut(), &zeros(count, Kind::Float))?;
    }
    let held = average(optimizer.as_ref(), "exp_avg_sq", count as usize)?;
    let mean = held.iter().sum::<f64>() / count as f64;
    let exact = 0.001 * 0.999_f64.powi(200);
    assert!((mean / exact - 1.0).abs() < error, "mean {mean}, expected {exact}");
    Ok(())
}

/// If one gradient of a block is 1 and all others are 10⁻⁵, the squares of the others are far below
/// the smallest 8-bit code of the block. They must not be stored as 0, because Adam would then
/// divide the updates of these weights by eps alone.
#[test]
fn small_squares_in_a_block_with_a_large_one_do_no_harm() -> Result<()> {
    let grad = zeros(256, Kind::Float) + 1e-5;
    let _ = grad.narrow(0, 7, 1).fill_(1.0);
    let options = Adam { lr: 1e-3, ..Default::default() };
    let mut optimizer = build(&options, &zeros(256, Kind::Float), Moments::EightBit)?;
    for count in 1..=50 {
        step(optimizer.as_mut(), &grad)?;
        let most = optimizer.parameters()[0].tensor.abs().max().double_value(&[]);
        assert!(most <= 1.001e-3 * f64::from(count), "step {count}: {most}");
    }
    Ok(())
}

/// For each weight, the state of AdamW needs 8 bytes in f32, 4 bytes in bf16, and little more than
/// 2 bytes in 8 bits.
#[rstest]
#[case(Moments::Full, 8.0)]
#[case(Moments::Bf16, 4.0)]
#[case(Moments::EightBit, 2.0 + 2.0 * 4.0 / 256.0)]
fn state_has_the_stated_size(#[case] moments: Moments, #[case] bytes: f64) -> Result<()> {
    let count = 1 << 20;
    let start = zeros(count, Kind::Float);
    let weights = vec![parameter("weight", &start)];
    let meter = MemoryMeter::start(device())?;
    let optimizer = AdamW::default().build_with(weights, moments.into())?;
    let state = optimizer.state()?;
    let held: usize =
        state.tensors().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum();
    assert!((held as f64 / count as f64 - bytes).abs() < 1e-3, "{held}");
    assert!(meter.read()?.peak_allocated as usize >= held);
    Ok(())
}

/// The option `moments` does not change state in f64, because f64 runs serve as a reference.
#[test]
fn averages_of_f64_stay_f64() -> Result<()> {
    let _generator = seeded(4);
    let (start, grad) = (draw(300).to_kind(Kind::Double), draw(300).to_kind(Kind::Double));
    let run = |moments| -> Result<Vec<String>> {
        let mut optimizer = build(&AdamW::default(), &start, moments)?;
        (0..5).try_for_each(|_| step(optimizer.as_mut(), &grad))?;
        let state = optimizer.state()?;
        Ok(state.tensors().map(|(name, tensor)| format!("{name} {:?}", bits(tensor))).collect())
    };
    assert_eq!(run(Moments::EightBit)?, run(Moments::Full)?);
    Ok(())
}

/// With the option `moments`, the model `MixedPrecisionDemo` learns as well as with f32 state, in
/// 32-true and in bf16-mixed. For each of two seeds, the final loss is divided by that with f32
/// state. The mean of the two ratios is below 1.1. The final loss varies between seeds with a
/// standard deviation of 2 % (measured with 24 seeds), so that of a ratio of two losses is 2·√2 %,
/// and that of the mean of two ratios is 2 %. Chance does not explain a mean of 1.1.
#[rstest]
fn a_model_learns_as_well_as_with_f32_state(
    #[values(Precision::F32True, Precision::Bf16Mixed)] precision: Precision,
) -> Result<()> {
    const SEEDS: [u64; 2] = [1, 2];
    let losses = |moments| -> Result<Vec<f64>> {
        SEEDS.into_iter().map(|seed| final_loss(precision, moments, seed)).collect()
    };
    let full = losses(Moments::Full)?;
    for moments in [Moments::Bf16, Moments::EightBit] {
        let ratios: Vec<f64> =
            losses(moments)?.iter().zip(&full).map(|(small, full)| small / full).collect();
        assert!(ratios.iter().all(|ratio| *ratio != 1.0), "the option has an effect");
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        assert!(mean < 1.1, "{moments:?}: {ratios:?}");
    }
    Ok(())
}

/// Trains the model `MixedPrecisionDemo` on the digits and returns the final loss.
fn final_loss(precision: Precision, moments: Moments, seed: u64) -> Result<f64> {
    let _generator = seeded(seed);
    let optimizer = OptimizerConfig::new(AdamW { lr: 3e-3, ..Default::default() });
    let optimizer = std::cell::Cell::new(Some(optimizer));
    let mut model = Model {
        model: Box::new(demo(0.0)?),
        loss: amp_core::loss::cross_entropy,
        optimizer: Box::new(move |_| optimizer.take().expect("asked once")),
    };
    let mut config = TrainerConfig::new(precision, device());
    (config.max_epochs, config.numerics.moments) = (8, moments);
    let record = fit(&config, &mut model, &same(digits(640)?, 32)?).1?;
    Ok(record.epochs.last().and_then(|epoch| epoch.value("val_loss")).expect("a loss"))
}

/// bf16 weights with f32 master weights can be combined with optimizer state in 8 bits.
#[test]
fn masters_work_with_state_in_fewer_bits() -> Result<()> {
    let _generator = seeded(6);
    let storage = Storage { weights: WeightUpdate::MasterWeights, moments: Moments::EightBit };
    let start = draw(700).to_kind(Kind::BFloat16);
    let mut both = AdamW::default().build_with(vec![parameter("weight", &start)], storage)?;
    let mut small = build(&AdamW::default(), &start.to_kind(Kind::Float), Moments::EightBit)?;
    for _ in 0..20 {
        let grad = draw(700).to_kind(Kind::BFloat16);
        step(both.as_mut(), &grad)?;
        step(small.as_mut(), &grad.to_kind(Kind::Float))?;
    }
    let weight = &small.parameters()[0].tensor;
    let state = both.state()?;
    let master = state.tensor("master/weight")?;
    // On CUDA, the two runs use different kernels for 8-bit state, which round differently. The
    // bound is 2 % of the largest change that twenty steps can make (20 times the learning rate).
    let bound = if device().is_cuda() { 0.02 * 20.0 * 1e-3 } else { 0.0 };
    let off = (master - weight).abs().max().double_value(&[]);
    assert!(off <= bound, "{off}");
    assert_eq!(bits(&both.parameters()[0].tensor), bits(&master.to_kind(Kind::BFloat16)));
    Ok(())
}

/// A run says if the optimizer has nothing to which the option `moments` applies. libtorch computes
/// SGD's step of 16-bit weights in f32, which is the subject of another note.
#[rstest]
#[case::plain_sgd(&Sgd::default(), Kind::Float, Moments::EightBit, "moments = 8-bit has no effect: SGD stores")]
#[case::two_notes(&Sgd::default(), Kind::BFloat16, Moments::Bf16, "SGD computes in float32: ")]
#[case::with_momentum(&Sgd { momentum: 0.9, ..Sgd::default() }, Kind::Float, Moments::EightBit, "")]
#[case::adam(&Adam::default(), Kind::Float, Moments::EightBit, "")]
#[case::not_asked(&Sgd::default(), Kind::Float, Moments::Full, "")]
fn an_optimizer_without_averages_notes_the_option(
    #[case] options: &dyn BuildOptimizer,
    #[case] kind: Kind,
    #[case] moments: Moments,
    #[case] expected: &str,
) -> Result<()> {
    let said = build(options, &zeros(8, kind), moments)?.note().unwrap_or_default();
    assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
    assert!(said.starts_with(expected), "{said}");
    let asked = !expected.is_empty();
    assert_eq!(said.contains("has no effect"), asked, "{said}");
    Ok(())
}
