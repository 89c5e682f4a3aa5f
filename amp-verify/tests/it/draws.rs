//! Tests of a model whose random numbers have another dtype, and therefore other values, under each
//! precision. Reports must say so, because the results then differ for a reason other than
//! rounding.

use amp_core::{event::Event, prelude::*};
use amp_verify::{
    DataSet, Registry,
    case::{Case, Choices},
    layers::{self, Options},
    matrix, model, project,
    view::table,
};

/// A model that adds noise. If `right` is true, it draws the noise through the context.
/// Otherwise it draws in the dtype of its layer's output.
#[derive(LightningModule)]
#[forward(|x| {
    let x = body(x)?;
    let noise = match self.right {
        true => cx.randn_like(&x)?,
        false => x.f_randn_like()?,
    };
    head(&x.f_add(&noise)?)
})]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Noisy {
    #[hparam(default = false)]
    right: bool,
    #[layer(linear(4, 8))]
    body: Linear,
    #[layer(linear(8, 1))]
    head: Linear,
}

/// A model that fails under 16-true, because it casts its input to f32.
#[derive(LightningModule)]
#[forward(|x| match x.kind() {
    Kind::Half => body(&x.f_to_kind(Kind::Float)?),
    _ => body(x),
})]
#[loss(mse_loss)]
#[optimizer(sgd, lr = 0.1)]
struct Failing {
    #[layer(linear(4, 1))]
    body: Linear,
}

fn sums(batch_size: i64) -> Result<DataModule> {
    let part = |first: i64| {
        let x = Tensor::f_arange_start(first, first + 64, (Kind::Float, Device::Cpu))?;
        let x = x.f_square()?.f_sin()?.f_view([16, 4])?;
        Batch::new(x.shallow_clone(), x.f_sum_dim_intlist([1].as_slice(), true, Kind::Float)?)
    };
    Ok(DataModule::new("sums", part(0)?, part(64)?, batch_size))
}

fn case(name: &str, right: bool) -> Result<Case> {
    let noisy = model!(Noisy).hyperparameters(serde_json::json!({ "right": right }));
    let models = [noisy, model!(Failing)].map(|one| one.judged_by_loss().epochs(1));
    let [noisy, failing] = models.map(|one| one.batch_size(8).margin(1.0));
    let registry = Registry::new(project!()).data_set(DataSet::new("sums", sums));
    let registry = registry.model(noisy).model(failing);
    Case::new(&registry, registry.find(Some(name))?, Choices::default(), Device::Cpu)
}

/// Checks that a run whose random numbers differ from those of the baseline has exactly one note
/// about this.
#[test]
fn runs_with_other_numbers_have_a_note() -> Result<()> {
    let notes = |right: bool| -> Result<Vec<Vec<String>>> {
        let precisions = [Precision::Bf16Mixed, Precision::F64True];
        let comparison = matrix::run(&case("Noisy", right)?, &precisions, &mut |_: &Event| Ok(()))?;
        let drawn = |note: &String| note.contains("randn_like");
        let runs = comparison.runs.into_iter();
        Ok(runs.map(|run| run.notes.into_iter().filter(drawn).collect()).collect())
    };
    assert_eq!(notes(true)?, vec![Vec::<String>::new(); 3]);
    let [base, narrow, wide] = &notes(false)?[..] else { panic!("three runs") };
    assert_eq!(base, &[""; 0]);
    assert_eq!(narrow.len(), 1);
    assert!(narrow[0].starts_with("`randn_like` in the model draws bfloat16 numbers"));
    let expected = "`randn_like` in the model draws float64 numbers, but float32 numbers under \
                    32-true. libtorch draws other values in another dtype: use `cx.randn_like`, \
                    which draws in float32 under every precision";
    assert_eq!(wide, &[expected]);
    Ok(())
}

/// Checks that the report on layers says which operation draws other random numbers than under
/// 64-true. The difference increases the measured errors of the layers.
#[test]
fn the_errors_of_layers_name_other_numbers() -> Result<()> {
    let measured =
        |right| layers::measure_case(&case("Noisy", right)?, Options::new(Precision::Bf16Mixed));
    let (wrong, right) = (measured(false)?, measured(true)?);
    assert_eq!(right.draws, None);
    let text = wrong.draws.as_deref().unwrap_or_default();
    let start =
        "`randn_like` in the model draws bfloat16 numbers, but float64 numbers under 64-true";
    assert!(text.starts_with(start), "{text}");
    let error = |report: &layers::Report| {
        let head = report.layers.iter().find(|layer| layer.path == "head");
        head.map_or(0.0, |head| {
            head.forward.error.zip(head.forward.rms).map_or(0.0, |(e, rms)| e / rms)
        })
    };
    assert!(error(&right) < 0.02 && error(&wrong) > 0.2);
    Ok(())
}

/// Checks that the message of an error which ends one of several runs begins with the model and the
/// precision of that run.
#[test]
fn an_error_names_its_run() -> Result<()> {
    let precisions = [Precision::F16True];
    let ran = matrix::run(&case("Failing", false)?, &precisions, &mut |_: &Event| Ok(()));
    let error = ran.expect_err("f32 does not fit f16").to_string();
    assert!(error.starts_with("in `Failing under 16-true`: in `body`: libtorch: "), "{error}");
    Ok(())
}

/// Checks that the table has each note once, with the precisions whose runs have it.
#[test]
fn a_note_of_several_runs_is_printed_once() -> Result<()> {
    let precisions = [Precision::F16Mixed, Precision::Bf16Mixed];
    let mut comparison = matrix::run(&case("Noisy", true)?, &precisions, &mut |_: &Event| Ok(()))?;
    for run in &mut comparison.runs {
        run.notes = vec!["of all".to_owned()];
    }
    comparison.runs[1].notes.push("of two".to_owned());
    comparison.runs[2].notes.push("of two".to_owned());
    comparison.runs[2].notes.push("of one".to_owned());
    let printed = table(&comparison);
    let end = "\nall precisions: of all\n16-mixed, bf16-mixed: of two\nbf16-mixed: of one\n";
    assert!(printed.ends_with(end), "{printed}");
    Ok(())
}

/// Checks that a precision that the model does not compute in takes no results from the other
/// precisions, and that each format of the comparison gives the error.
#[test]
fn a_failed_precision_leaves_the_results_of_the_others() -> Result<()> {
    let precisions = [Precision::F16True, Precision::Bf16Mixed];
    let case = case("Failing", false)?;
    let comparison = matrix::over_seeds(&case, &precisions, 2, &mut |_: &Event| Ok(()))?;
    let ran: Vec<_> = comparison.runs.iter().map(|run| run.precision).collect();
    assert_eq!(ran, [Precision::F32True, Precision::Bf16Mixed]);
    for (at, run) in comparison.runs.iter().enumerate() {
        let seeds = run.over_seeds.as_ref().expect("two seeds");
        assert_eq!((seeds.loss.values.len(), seeds.loss_delta.is_some()), (2, at == 1));
    }
    let [failed] = &comparison.failed[..] else { panic!("{:?}", comparison.failed) };
    assert_eq!((failed.precision, failed.seed), (Precision::F16True, case.trainer.seed));
    assert!(failed.reason.starts_with("in `body`: libtorch: "), "{}", failed.reason);
    let printed = table(&comparison);
    let line = format!("16-true: failed with seed {}: {}\n", failed.seed, failed.reason);
    assert!(printed.ends_with(&line), "{printed}");
    let row = printed.lines().find(|line| line.contains("16-true")).expect("a row");
    assert!(row.starts_with('│') && row.contains(" failed "), "{printed}");
    let said = comparison.is_sound().expect_err("a run failed").to_string();
    assert_eq!(said, "no results under 16-true: the report gives the reason");
    Ok(())
}
