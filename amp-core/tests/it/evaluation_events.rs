//! Tests of the events of evaluations that are run without training, and of what loggers write for
//! these events.

use amp_core::{
    Hook, Hyperparameters, LightningModule, Module, Result, Step, Trainer, TrainerConfig,
    data::{AnyBatch, Batch, BatchType, DataModule, FieldRole},
    event::{Event, Stage, Subscriber},
    log::{LogOptions, Logged, Media},
    logger::{
        CsvLogger, JsonLinesLogger, MemoryLogger, MlflowLogger, TensorBoardLogger, WandbLogger,
    },
    loss::mse_loss,
    nn::{Context, Linear, Visit, Visitor},
    optim::{OptimizerConfig, Optimizers, Sgd, TrainingPlan},
    precision::Precision,
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{model::linear, seeded, tfevents};

/// A model that logs a loss, an image, a text and a histogram in each evaluation, and in the hook
/// after a validation.
struct Looking {
    linear: Linear,
}

impl Looking {
    fn look(&self, name: &str, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let batch = Batch::from_any(batch)?;
        let output = self.forward(&batch.input, step.context())?;
        let loss = mse_loss(&output, &batch.target)?;
        step.log(&format!("{name}_loss"), &loss, batch.len(), LogOptions::ON_EPOCH)?;
        if step.at_logging_interval() {
            step.log_image(&format!("{name}_image"), &batch.input)?;
            step.log_text(&format!("{name}_text"), format!("batch {}", step.batch_idx()))?;
            step.log_histogram(&format!("{name}_values"), &output)?;
        }
        Ok(output)
    }
}

impl Visit for Looking {
    fn visit(&self, visitor: &mut dyn Visitor) {
        amp_core::nn::visit_child(visitor, "linear", None, &self.linear);
    }
}

impl Module for Looking {
    fn forward(&self, input: &Tensor, cx: &Context) -> Result<Tensor> {
        cx.call("linear", None, &self.linear, input)
    }
}

impl LightningModule for Looking {
    fn name(&self) -> &'static str {
        "Looking"
    }

    fn hyperparameters(&self) -> Hyperparameters {
        Hyperparameters::from_iter([("width".to_owned(), 3.into())])
    }

    fn training_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<Tensor> {
        let batch = Batch::from_any(batch)?;
        mse_loss(&self.forward(&batch.input, step.context())?, &batch.target)
    }

    fn validation_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.look("val", batch, step).map(drop)
    }

    fn test_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<()> {
        self.look("test", batch, step).map(drop)
    }

    fn predict_step(&mut self, batch: &AnyBatch, step: &mut Step<'_>) -> Result<AnyBatch> {
        let output = self.look("predict", batch, step)?;
        let mut predictions = AnyBatch::new("Looking");
        predictions.push("output", &output, FieldRole::Value)?;
        Ok(predictions)
    }

    fn configure_optimizers(&self, _: &TrainingPlan) -> Result<Optimizers> {
        Ok(OptimizerConfig::new(Sgd { lr: 0.1, ..Default::default() }).into())
    }

    fn on_validation_epoch_end(&mut self, hook: &mut Hook<'_>) -> Result<()> {
        hook.log_number("val_hook", 0.25, LogOptions::ON_EPOCH)?;
        hook.log_text("val_end", "done")
    }
}

fn model() -> Result<Looking> {
    Ok(Looking { linear: linear(3, 3)? })
}

/// Returns two batches for each set, with inputs from 0 to 1. A second validation set is called
/// `far`.
fn data() -> Result<DataModule> {
    let rows = |first: f64| -> Result<Batch> {
        let all = Tensor::f_arange(12, (Kind::Float, Device::Cpu))?;
        let input = all.f_reshape([4, 3])?.f_div_scalar(12.0)?;
        Batch::new(input.shallow_clone(), input.f_mul_scalar(first)?)
    };
    Ok(DataModule::new("rows", rows(1.0)?, rows(2.0)?, 2)
        .with_val("far", rows(30.0)?)
        .with_test(rows(3.0)?)
        .with_predict(rows(4.0)?))
}

fn config() -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) }
        .with(|config| config.loops.num_sanity_val_steps = 0)
}

/// Runs one evaluation. Returns the logged values, or no values for a prediction.
fn evaluate(trainer: &mut Trainer<'_>, stage: Stage, model: &mut Looking) -> Result<Vec<Logged>> {
    match stage {
        Stage::Validate => trainer.validate(model, &data()?),
        Stage::Test => trainer.test(model, &data()?),
        Stage::Predict => {
            trainer.predict(model, &data()?, &mut |_, _, _| Ok(()))?;
            Ok(Vec::new())
        }
    }
}

/// Runs one evaluation. Returns its events and the logged values.
fn events(stage: Stage, model: &mut Looking) -> Result<(Vec<Event>, Vec<Logged>)> {
    let mut events = Vec::new();
    let mut keep = |event: &Event| -> Result<()> {
        events.push(event.clone());
        Ok(())
    };
    let values = evaluate(&mut Trainer::new(config()).subscribe(&mut keep), stage, model)?;
    Ok((events, values))
}

fn media(events: &[Event]) -> Vec<(&str, &Media)> {
    let seen = events.iter().filter_map(|event| match event {
        Event::Media { name, media, .. } => Some((name.as_str(), media)),
        _ => None,
    });
    seen.collect()
}

/// If a trained model is validated again, its images, texts, histograms and values equal those of
/// the last validation during its training.
#[test]
fn a_validation_reports_the_same_within_training_and_without() -> Result<()> {
    let _generator = seeded(1);
    let mut model = model()?;
    let mut within = Vec::new();
    let mut keep = |event: &Event| -> Result<()> {
        within.push(event.clone());
        Ok(())
    };
    let record = Trainer::new(config()).subscribe(&mut keep).fit(&mut model, &data()?)?;
    let (without, values) = events(Stage::Validate, &mut model)?;
    let names: Vec<&str> = media(&without).into_iter().map(|(name, _)| name).collect();
    let of_a_set = ["val_image", "val_text", "val_values"];
    let far = of_a_set.map(|name| format!("{name}/far"));
    let expected = of_a_set.into_iter().chain(far.iter().map(String::as_str)).chain(["val_end"]);
    assert_eq!(names, expected.collect::<Vec<_>>());
    assert_eq!(media(&without), media(&within));
    assert_eq!(values, record.epochs[0].val);
    assert!(values.iter().any(|logged| logged.name == "val_hook" && logged.value == 0.25));
    let Some(Event::Validated(seen)) = without.iter().rev().nth(1) else { panic!("{without:?}") };
    assert_eq!((&seen.val, seen.global_step), (&values, 0));
    Ok(())
}

/// Each evaluation sends an event at its start and an event at its end. The events name the stage
/// and the data set.
#[rstest]
#[case(Stage::Validate, "val", 7)]
#[case(Stage::Test, "test", 3)]
#[case(Stage::Predict, "predict", 3)]
fn each_evaluation_has_a_start_and_an_end(
    #[case] stage: Stage,
    #[case] name: &str,
    #[case] shown: usize,
) -> Result<()> {
    let _generator = seeded(1);
    let (events, values) = events(stage, &mut model()?)?;
    let Some(Event::EvaluationStart(start)) = events.first() else { panic!("{events:?}") };
    assert_eq!(
        (start.stage, start.run.model.as_str(), start.run.data.as_str()),
        (stage, "Looking", "rows")
    );
    assert_eq!((start.run.parameters, &start.run.hyperparameters["width"]), (12, &3.into()));
    assert!(matches!(events.last(), Some(Event::EvaluationEnd { .. })));
    assert_eq!(media(&events).len(), shown);
    assert!(media(&events).contains(&(&format!("{name}_text"), &Media::Text("batch 0".into()))));
    let [Event::Validated(seen)] = &events[shown + 1..events.len() - 1] else {
        panic!("{events:?}")
    };
    assert_eq!(seen.val[0].name, format!("{name}_loss"));
    assert!(stage == Stage::Predict || seen.val == values);
    // Converting an event to JSON and back does not change it.
    for event in &events {
        let text = serde_json::to_string(event).expect("an event as JSON");
        assert_eq!(&serde_json::from_str::<Event>(&text).expect("an event"), event);
    }
    Ok(())
}

/// Every logger writes the events of an evaluation as it writes those of a training run.
#[test]
fn loggers_keep_evaluations() -> Result<()> {
    let _generator = seeded(1);
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = |name: &str| folder.path().join(name);
    let mut memory = MemoryLogger::default();
    let mut csv = CsvLogger::create(path("log.csv"))?;
    let mut json = JsonLinesLogger::create(path("log.jsonl"))?;
    let mut tensorboard = TensorBoardLogger::create(path("runs"))?;
    let mut mlflow = MlflowLogger::create(path("mlruns"))?;
    let mut wandb = WandbLogger::create(folder.path())?;
    let loggers: [&mut dyn Subscriber; 6] =
        [&mut memory, &mut csv, &mut json, &mut tensorboard, &mut mlflow, &mut wandb];
    let mut trainer = Trainer::new(config());
    for logger in loggers {
        trainer = trainer.subscribe(logger);
    }
    let values = evaluate(&mut trainer, Stage::Test, &mut model()?)?;
    drop(trainer);
    let loss = values[0].value;
    assert_eq!(memory.get("test_loss"), [(0, loss)]);
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("a file");
    let rows = read("log.csv");
    assert_eq!(rows.lines().nth(1), Some(&*format!("Looking,32-true,0,0,test_loss,{loss}")));
    let names: Vec<String> = read("log.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an event"))
        .map(|event| event["event"].as_str().expect("a name").to_owned())
        .collect();
    assert_eq!(names, ["evaluation_start", "validated", "evaluation_end"]);

    let only = |folder: &std::path::Path| {
        let entries = folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry"));
        let entries: Vec<_> = entries.map(|entry| entry.path()).collect();
        entries
    };
    let version = path("runs/Looking/32-true/version_0");
    let [file] = only(&version).try_into().expect("one event file");
    let records = tfevents::records(&std::fs::read(file).expect("the event file"));
    for tag in ["test_loss", "test_image", "test_text", "test_values", "session_end_info"] {
        let has = |record: &Vec<u8>| record.windows(tag.len()).any(|at| at == tag.as_bytes());
        assert_eq!(records.iter().filter(|record| has(record)).count(), 1, "{tag}");
    }

    let mut runs = only(&path("mlruns")).into_iter().flat_map(|experiment| only(&experiment));
    let run = runs.find(|path| path.is_dir()).expect("a run");
    let meta = std::fs::read_to_string(run.join("meta.yaml")).expect("the run's description");
    assert!(meta.contains("status: 3"), "{meta}");
    assert!(run.join("artifacts/test_image/step_000000.png").is_file());
    let losses = std::fs::read_to_string(run.join("metrics/test_loss")).expect("the loss");
    assert!(losses.trim_end().ends_with(&format!("{loss} 0")), "{losses}");

    let [run] = only(&path("wandb")).try_into().expect("one offline run");
    let images = only(&run.join("files/media/images"));
    assert_eq!(images.len(), 1, "{images:?}");
    Ok(())
}
