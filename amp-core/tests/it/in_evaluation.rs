//! Tests of `Context::in_evaluation`, which runs a part of a model in evaluation mode.

use amp_core::{
    Error, Trainer, TrainerConfig,
    nn::{self, Context, Forward as _},
    precision::Policy,
    prelude::*,
    tch,
    trainer::Freeze,
};

use crate::support::{bits::values, message, seeded};

/// A student that learns the logits of a frozen teacher. The teacher has a batch norm and a
/// dropout, which behave differently in training and in evaluation.
#[derive(LightningModule)]
#[forward(|x| -> Result<(Tensor, Tensor)> {
    let wise = tch::no_grad(|| cx.in_evaluation(|| teacher(x)))?;
    Ok((student(x)?, wise))
})]
#[loss(with = |output, _| loss::mse_loss(&output.0, &output.1), of = examples)]
#[optimizer(sgd, lr = 0.1)]
struct Distilled {
    #[layer(sequential(linear(4, 8), batch_norm1d(8), relu, dropout(0.5), linear(8, 3)))]
    teacher: Sequential,
    #[layer(sequential(linear(4, 3), dropout(0.5)))]
    student: Sequential,
}

fn model() -> Result<Distilled> {
    let _section = seeded(8);
    Distilled::builder().build()
}

fn input() -> Result<Tensor> {
    let _section = seeded(9);
    Ok(Tensor::f_randn([6, 4], (Kind::Float, Device::Cpu))?.f_add_scalar(3.0)?)
}

fn context(training: bool) -> Context {
    Context::new(Policy::new(Precision::F32True, Device::Cpu), training)
}

#[test]
fn dropout_and_batch_statistics_are_those_of_evaluation() -> Result<()> {
    let (model, x) = (model()?, input()?);
    let _section = seeded(10);
    let (student, wise) = model.forward_with((&x,), &context(false))?;
    let (trained, of_teacher) = model.forward_with((&x,), &context(true))?;
    assert_eq!(of_teacher, wise);
    // The student is outside of `in_evaluation`, so it runs in training mode.
    assert_ne!(trained, student);
    Ok(())
}

#[test]
fn a_run_leaves_a_frozen_teacher_unchanged() -> Result<()> {
    let mut model = model()?;
    let tensors = |model: &Distilled, name: &str| -> Vec<Vec<f64>> {
        let all = nn::named_tensors(model).into_iter();
        all.filter(|(path, ..)| path.starts_with(name))
            .map(|(_, tensor, _)| values(&tensor))
            .collect()
    };
    let (teacher, student) = (tensors(&model, "teacher"), tensors(&model, "student"));
    assert_eq!((teacher.len(), student.len()), (9, 2));
    let zeros = Tensor::f_zeros([6], (Kind::Float, Device::Cpu))?;
    let data = DataModule::training("six", Batch::new(input()?, zeros)?, 3);
    let config = TrainerConfig::new(Precision::F32True, Device::Cpu).with(|config| {
        config.max_epochs = 2;
        config.optimization.freeze = vec![Freeze::new("teacher.*")];
    });
    Trainer::new(config).fit(&mut model, &data)?;
    assert_eq!(tensors(&model, "teacher"), teacher);
    assert_ne!(tensors(&model, "student"), student);
    Ok(())
}

#[test]
fn the_mode_returns_after_nesting_and_errors() -> Result<()> {
    let modes = |cx: &Context| (cx.is_training(), cx.drops_out());
    let cx = context(true);
    cx.in_evaluation(|| {
        assert_eq!(modes(&cx), (false, false));
        cx.in_evaluation(|| Ok(()))?;
        assert_eq!(modes(&cx), (false, false));
        Ok(())
    })?;
    assert_eq!(modes(&cx), (true, true));
    let failed: Result<()> = cx.in_evaluation(|| Err(Error::config("no teacher")));
    assert!(message(failed).contains("no teacher"));
    assert_eq!(modes(&cx), (true, true));
    let cx = context(true).without_dropout();
    cx.in_evaluation(|| Ok(()))?;
    assert_eq!(modes(&cx), (true, false));
    Ok(())
}
