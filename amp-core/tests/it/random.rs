//! Tests of sections (`random::seeded`). In a section, one thread has exclusive use of libtorch's
//! random generators. Other threads that train or build layers at the same time must not disturb
//! it.

use std::{
    env,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use amp_core::{
    Hook, Result, Trainer, TrainerConfig,
    callback::{Action, Callback},
    data::{Batch, DataModule, Dataset, Loading, SharedDataset},
    hardware::{Fingerprint, seed_everything, set_numerics},
    nn::{Embedding, EmbeddingConfig, parameters},
    optim::{OptimizerConfig, Sgd},
    precision::{AutocastGuard, Precision, StepOutcome},
    random::{self, RandomState},
    tch::{Device, Kind, Tensor},
};
use rstest::rstest;

use crate::support::{
    bits::bits,
    device, message,
    model::{Model, constant, demo, digits, linear, same},
};

fn sgd() -> OptimizerConfig {
    OptimizerConfig::new(Sgd { lr: 1e-2, ..Default::default() })
}

fn config() -> TrainerConfig {
    TrainerConfig { max_epochs: 1, ..TrainerConfig::new(Precision::F32True, Device::Cpu) }
}

/// Trains a few steps of a model with dropout, and returns the final weights.
fn trained() -> Result<Vec<String>> {
    let data = same(digits(96)?, 16)?;
    let mut model = Model::regression(demo(0.2)?, |_| sgd());
    model.loss = amp_core::loss::cross_entropy;
    Trainer::new(config()).fit(&mut model, &data)?;
    Ok(parameters(&model).iter().map(|parameter| bits(&parameter.tensor)).collect())
}

/// Six runs train in sections with the same seed. At the same time, another thread builds layers,
/// seeds the random generators and trains. All six runs end with the same weights.
#[test]
fn sections_are_not_disturbed() {
    let section = || -> Result<Vec<String>> {
        let _section = random::seeded(7)?;
        trained()
    };
    let done = AtomicBool::new(false);
    let found: Vec<Vec<String>> = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                linear(3, 3).expect("a layer");
                seed_everything(1).expect("a seed");
                trained().expect("a run");
            }
        });
        let runs: Vec<_> =
            (0..3).map(|_| scope.spawn(|| [section(), section()].map(Result::ok))).collect();
        let found: Vec<_> =
            runs.into_iter().flat_map(|run| run.join().expect("a thread that trains")).collect();
        done.store(true, Ordering::Relaxed);
        found.into_iter().map(|run| run.expect("a run")).collect()
    });
    assert_eq!(found.len(), 6);
    assert!(found.iter().all(|weights| *weights == found[0]), "one seed gave different weights");
}

/// While one thread is in a section, another thread must wait before it uses random numbers, seeds
/// the generators, sets TF32 or deterministic algorithms, begins a section, or ends an autocast
/// region.
#[rstest]
#[case::uniform(|| linear(3, 3).map(drop))]
#[case::normal(|| Embedding::new(EmbeddingConfig::new(3, 3)).map(drop))]
#[case::seeding(|| seed_everything(1))]
#[case::switches(|| {
    let now = Fingerprint::of(Device::Cpu)?;
    set_numerics(now.tf32, now.deterministic)
})]
#[case::section(|| random::seeded(2).map(drop))]
// When this autocast region ends, it would clear the cache of cast weights. All threads share this
// cache, so the thread must wait.
#[case::autocast(|| AutocastGuard::enter(Device::Cpu, Kind::BFloat16).map(drop))]
fn other_threads_wait_until_a_section_ends(#[case] draws: fn() -> Result<()>) -> Result<()> {
    let section = random::seeded(1)?;
    let done = AtomicBool::new(false);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            draws().expect("the call succeeds after the section");
            assert!(
                ended.load(Ordering::Relaxed),
                "the thread did not wait for the end of the section"
            );
            done.store(true, Ordering::Relaxed);
        });
        thread::sleep(Duration::from_millis(100));
        ended.store(true, Ordering::Relaxed);
        drop(section);
    });
    assert!(done.into_inner());
    Ok(())
}

/// A section inside another section seeds the random generators again. When the inner section ends,
/// the outer section still has exclusive use of the generators.
#[test]
fn an_inner_section_seeds_again() -> Result<()> {
    let draw = || Vec::<f32>::try_from(Tensor::rand([4], (Kind::Float, Device::Cpu)));
    let outer = random::seeded(1)?;
    let first = draw()?;
    {
        let _inner = random::seeded(1)?;
        assert_eq!(draw()?, first);
    }
    // If the inner section had ended the outer one, another thread's section would begin now.
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let section = random::seeded(2);
            begun.store(section.is_ok(), Ordering::Relaxed);
        });
        for _ in 0..100 {
            thread::yield_now();
        }
        assert!(!begun.load(Ordering::Relaxed), "two threads were in a section at the same time");
        drop(outer);
    });
    assert!(begun.into_inner());
    Ok(())
}

/// A callback that begins a section in the middle of a run.
struct Late {
    said: Option<String>,
}

impl Callback for Late {
    fn name(&self) -> String {
        "Late".to_owned()
    }

    fn on_train_batch_end(
        &mut self,
        _: Option<&StepOutcome>,
        _: &mut Hook<'_>,
    ) -> Result<Vec<Action>> {
        self.said = random::seeded(1).err().map(|error| error.to_string());
        Ok(Vec::new())
    }
}

/// If a run began outside of a section, it cannot begin a section later. Other threads may already
/// have changed its random numbers, so the run would not be reproducible. A run inside a section
/// can begin an inner section.
#[test]
fn a_run_outside_of_a_section_cannot_begin_one() -> Result<()> {
    let train = || -> Result<Option<String>> {
        let mut model = Model::regression(linear(3, 3)?, |_| sgd());
        let mut late = Late { said: None };
        Trainer::new(config())
            .callback(&mut late)
            .fit(&mut model, &same(constant(4, 3, 1.0)?, 2)?)?;
        Ok(late.said)
    };
    let said = train()?.expect("an error");
    assert!(said.contains("call random::seeded before Trainer::fit"), "{said}");
    let _section = random::seeded(0)?;
    assert_eq!(train()?, None);
    Ok(())
}

/// A data set that builds a layer for each batch. The initial weights of the layer use random
/// numbers.
struct Drawn;

impl Dataset for Drawn {
    type Batch = Batch;

    fn len(&self) -> i64 {
        8
    }

    fn gather(&mut self, indices: &[i64]) -> Result<Batch> {
        let layer = linear(3, 3)?;
        let input = parameters(&layer)[0].tensor.detach().narrow(0, 0, 1);
        let input = input.repeat([indices.len() as i64, 1]);
        Batch::new(input.copy(), input)
    }
}

/// Runs `loads_within_a_section` in a child process with a time limit. If the data loader's thread
/// had to wait for the end of the section, this test would never finish.
#[test]
fn a_data_loader_belongs_to_the_section() {
    let mut child = Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", "random::loads_within_a_section", "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break Some(status),
            None if begun.elapsed() > Duration::from_secs(60) => break None,
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    if status.is_none() {
        child.kill().expect("a child");
        child.wait().expect("a child");
    }
    assert!(status.is_some_and(|status| status.success()), "{status:?}; None: no exit in 60 s");
}

/// The training thread has exclusive use of the random generators, and the data loader's thread
/// shares this use. The data loader's thread can therefore use random numbers without waiting for
/// the training thread.
#[test]
#[ignore = "is run by the test above, in a process of its own"]
fn loads_within_a_section() -> Result<()> {
    struct Begins;
    impl Dataset for Begins {
        type Batch = Batch;

        fn len(&self) -> i64 {
            8
        }

        fn gather(&mut self, _: &[i64]) -> Result<Batch> {
            random::seeded(1).and(constant(2, 3, 1.0))
        }
    }
    let data = |set: SharedDataset| {
        let loading = Loading { prefetch: Some(2), ..Loading::default() };
        DataModule { loading, ..DataModule::new("drawn", set.clone(), set, 2) }
    };
    let mut model = Model::regression(linear(3, 3)?, |_| sgd());
    let _section = random::seeded(0)?;
    let config = config().with(|config| config.checks.shared_examples = true);
    Trainer::new(config.clone()).fit(&mut model, &data(Drawn.into()))?;
    let refused = Trainer::new(config).fit(&mut model, &data(Begins.into()));
    assert!(message(refused).contains("call random::seeded before Trainer::fit"));
    Ok(())
}

/// If the state of the random generators is read twice, the two states differ if a random number
/// was drawn in between, and are equal otherwise.
#[test]
fn states_differ_if_something_was_drawn() -> Result<()> {
    let _section = random::seeded(3)?;
    let before = RandomState::read(device())?;
    assert!(before.is_same(&RandomState::read(device())?)?);
    let _ = Tensor::rand([1], (Kind::Float, device()));
    assert!(!before.is_same(&RandomState::read(device())?)?);
    before.restore(device())?;
    assert!(before.is_same(&RandomState::read(device())?)?);
    Ok(())
}
