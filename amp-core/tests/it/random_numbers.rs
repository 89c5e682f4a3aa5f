//! Tests of random numbers that a model draws in its forward pass. If the model draws them with the
//! functions of `Context`, the numbers are the same under every precision. If it draws 16-bit
//! numbers with libtorch's functions, a note reports this.

use amp_core::{nn::Context, precision::Policy, prelude::*, probe::Drawn, record::RunRecord};
use rstest::rstest;

use crate::support::{device, message, needs_cuda, seeded};

fn context(precision: Precision, device: Device) -> Context {
    Context::new(Policy::new(precision, device), true)
}

/// Random numbers that are drawn through the context equal those that libtorch draws in f32,
/// rounded to the requested dtype.
#[rstest]
fn numbers_are_f32s_rounded(
    #[values(Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double)] kind: Kind,
) -> Result<()> {
    let device = device();
    let cx = context(Precision::F16Mixed, device);
    let like = Tensor::f_zeros([7, 9], (kind, device))?;
    let options = (Kind::Float, device);
    let drawn = {
        let _generator = seeded(5);
        [cx.randn_like(&like)?, cx.rand_like(&like)?, cx.randn(&[7, 9])?, cx.rand(&[7, 9])?]
    };
    let _generator = seeded(5);
    let expected = [
        Tensor::f_randn([7, 9], options)?,
        Tensor::f_rand([7, 9], options)?,
        Tensor::f_randn([7, 9], options)?,
        Tensor::f_rand([7, 9], options)?,
    ];
    for (at, (drawn, expected)) in drawn.iter().zip(&expected).enumerate() {
        let kind = if at < 2 { kind } else { Kind::Float };
        assert_eq!((drawn.kind(), drawn.size(), drawn.device()), (kind, vec![7, 9], device));
        assert!(drawn.f_equal(&expected.f_to_kind(kind)?)?, "draw {at} in {kind:?}");
    }
    Ok(())
}

/// A uniform random number is below 1 in 16 bits, too. Rounding to nearest would give 1 for one f32
/// number in 512 (bf16) or 4096 (f16). Only these numbers are rounded down, and all others to
/// nearest.
#[rstest]
#[case::bf16(Kind::BFloat16, 512.0)]
#[case::f16(Kind::Half, 4096.0)]
fn uniform_numbers_are_below_one(#[case] kind: Kind, #[case] one_in: f64) -> Result<()> {
    const COUNT: i64 = 1 << 20;
    let cx = context(Precision::F32True, Device::Cpu);
    let like = Tensor::f_zeros([COUNT], (kind, Device::Cpu))?;
    let drawn = {
        let _generator = seeded(1);
        cx.rand_like(&like)?
    };
    let _generator = seeded(1);
    let nearest = Tensor::f_rand([COUNT], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
    let ones = nearest.f_eq(1.0)?;
    let share = ones.f_sum(Kind::Double)?.f_double_value(&[])? / COUNT as f64;
    assert!((share * one_in - 1.0).abs() < 0.3, "{share}");
    assert!(drawn.f_max()?.f_double_value(&[])? < 1.0);
    assert!(drawn.f_eq_tensor(&nearest)?.f_logical_or(&ones)?.f_all()?.f_int64_value(&[])? == 1);
    Ok(())
}

#[test]
fn integers_have_no_random_numbers() -> Result<()> {
    let like = Tensor::f_zeros([2], (Kind::Int64, Device::Cpu))?;
    let cx = context(Precision::F32True, Device::Cpu);
    let next = || Tensor::f_rand([3], (Kind::Float, Device::Cpu));
    let expected = {
        let _generator = seeded(2);
        next()?
    };
    let _generator = seeded(2);
    for error in [message(cx.rand_like(&like)), message(cx.randn_like(&like))] {
        assert_eq!(
            error,
            "random numbers of dtype int64 cannot be drawn: `like` must be a floating-point tensor"
        );
    }
    assert_eq!(next()?, expected, "a refused draw changes the numbers that follow");
    Ok(())
}

/// Which function a block of the model calls to draw random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
enum How {
    Like,
    Context,
    Explicit,
    Bernoulli,
}

#[derive(Module)]
#[forward(|x| {
    let x = inner(x)?;
    match self.how {
        How::Like => Ok(x.f_add(&x.f_randn_like()?)?),
        How::Context => Ok(x.f_add(&cx.randn_like(&x)?)?),
        How::Explicit => {
            let drawn = Tensor::f_rand(x.size(), (Kind::Float, x.device()))?;
            Ok(x.f_add(&drawn.f_to_kind(x.kind())?)?)
        }
        How::Bernoulli => Ok(x.f_mul(&x.f_empty_like()?.f_bernoulli_float_(0.5)?)?),
    }
})]
struct Noise {
    #[hparam]
    how: How,
    #[layer(linear(4, 4))]
    inner: Linear,
}

#[derive(LightningModule)]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Noisy {
    #[hparam]
    how: How,
    #[layer(sequential(linear(4, 4), dropout(0.5)))]
    body: Sequential,
    #[layer(Noise::builder(how).build()?)]
    noise: Noise,
    #[layer(linear(4, 1))]
    head: Linear,
}

fn data(device: Device) -> Result<DataModule> {
    let part = |count: i64| {
        let input = Tensor::f_randn([count, 4], (Kind::Float, device))?;
        Batch::new(
            input.shallow_clone(),
            input.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?,
        )
    };
    Ok(DataModule::new("sums", part(16)?, part(8)?, 8))
}

fn train(how: How, precision: Precision, device: Device) -> Result<RunRecord> {
    let _generator = seeded(0);
    let data = data(Device::Cpu)?;
    let mut model = Noisy::builder(how).build()?;
    let config = TrainerConfig { max_epochs: 1, ..TrainerConfig::new(precision, device) };
    Trainer::new(config).fit(&mut model, &data)
}

/// If a module draws random numbers in 16 bits, a note names the module and the function to use
/// instead. Draws in f32 and the masks of dropout are not reported.
#[rstest]
#[case::like(How::Like, Precision::Bf16Mixed, Some("bfloat16"))]
#[case::like_f16(How::Like, Precision::F16True, Some("float16"))]
#[case::like_f32(How::Like, Precision::F32True, None)]
#[case::context(How::Context, Precision::Bf16Mixed, None)]
#[case::explicit(How::Explicit, Precision::Bf16True, None)]
#[case::bernoulli(How::Bernoulli, Precision::Bf16Mixed, None)]
fn draws_in_16_bits_are_reported(
    #[case] how: How,
    #[case] precision: Precision,
    #[case] dtype: Option<&str>,
) -> Result<()> {
    let record = train(how, precision, Device::Cpu)?;
    let found: Vec<&String> = record.notes.iter().filter(|note| note.contains("cx.")).collect();
    let expected: Vec<String> = dtype
        .map(|dtype| {
            format!(
                "`randn_like` in `noise` draws {dtype} numbers, which are coarser than the float32 \
                 numbers from the same seed and differ from them; draw with `cx.randn_like`, which \
                 draws in float32 under every precision"
            )
        })
        .into_iter()
        .collect();
    assert_eq!(found, expected.iter().collect::<Vec<_>>());
    Ok(())
}

/// The record of the run lists the module, the operator and the dtype of each draw of random
/// numbers, except for masks of dropout.
#[rstest]
#[case::like(How::Like, Precision::F64True, &[("randn_like", "float64")])]
#[case::context(How::Context, Precision::F64True, &[("randn", "float32")])]
#[case::explicit(How::Explicit, Precision::Bf16Mixed, &[("rand", "float32")])]
#[case::bernoulli(How::Bernoulli, Precision::Bf16Mixed, &[])]
fn draws_are_recorded(
    #[case] how: How,
    #[case] precision: Precision,
    #[case] expected: &[(&str, &str)],
) -> Result<()> {
    let record = train(how, precision, Device::Cpu)?;
    let drawn = |(operator, dtype): &(&str, &str)| Drawn {
        module: "noise".into(),
        operator: (*operator).into(),
        dtype: (*dtype).into(),
    };
    assert_eq!(record.observed.draws, expected.iter().map(drawn).collect());
    Ok(())
}

/// On CUDA, libtorch draws 16-bit random numbers in f32 and rounds them, so nothing is reported.
#[test]
#[ignore = "needs CUDA"]
fn cuda_draws_16_bits_in_f32() -> Result<()> {
    needs_cuda();
    let record = train(How::Like, Precision::Bf16Mixed, device())?;
    assert!(record.notes.iter().all(|note| !note.contains("cx.")), "{:?}", record.notes);
    let dtypes: Vec<&str> = record.observed.draws.iter().map(|one| one.dtype.as_str()).collect();
    assert_eq!(dtypes, ["float32"]);
    let like = Tensor::f_zeros([1 << 16], (Kind::BFloat16, device()))?;
    let narrow = {
        let _generator = seeded(2);
        like.f_randn_like()?
    };
    let _generator = seeded(2);
    let wide = Tensor::f_randn([1 << 16], (Kind::Float, device()))?;
    assert!(narrow.f_equal(&wide.f_to_kind(Kind::BFloat16)?)?);
    Ok(())
}

/// A model whose forward pass multiplies the input by random numbers, in training and in
/// validation.
#[derive(LightningModule)]
#[forward(|x| model(&x.f_mul(&cx.rand(&x.size())?)?))]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.0)]
struct Masked {
    #[layer(linear(4, 1))]
    model: Linear,
}

fn masked_run(validates: i64) -> Result<(RunRecord, Vec<f64>, f64)> {
    let _generator = seeded(0);
    let data = data(Device::Cpu)?;
    let mut model = Masked::builder().build()?;
    let mut config = TrainerConfig::new(Precision::F32True, Device::Cpu);
    config.max_epochs = 4;
    config.loops.check_val_every_n_epoch = validates;
    config.logging.log_every_n_steps = 1;
    let mut losses = Vec::new();
    let mut listen = |event: &amp_core::event::Event| -> Result<()> {
        if let amp_core::event::Event::Logged { values, .. } = event {
            losses.push(values[0].value);
        }
        Ok(())
    };
    let record = Trainer::new(config.clone()).subscribe(&mut listen).fit(&mut model, &data)?;
    let again = Trainer::new(config).validate(&mut model, &data)?[0].value;
    Ok((record, losses, again))
}

/// Each validation draws the same random numbers, and validations do not change the random numbers
/// of training.
#[test]
fn validations_have_their_own_numbers() -> Result<()> {
    let (record, losses, again) = masked_run(1)?;
    let validated: Vec<f64> =
        record.epochs.iter().filter_map(|epoch| epoch.value("val_loss")).collect();
    assert_eq!(validated.len(), 4);
    assert!(validated.iter().all(|value| value.to_bits() == again.to_bits()), "{validated:?}");
    let (_, others, _) = masked_run(4)?;
    assert_eq!(losses.len(), 8);
    assert_eq!(losses, others);
    assert!(losses.windows(2).any(|pair| pair[0] != pair[1]));
    Ok(())
}
