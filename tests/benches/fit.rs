//! Measures how much time the trainer adds to the tensor operations of a training run: see
//! [`fixtures::bench::overhead`].
//!
//! `cargo bench -p tests --bench fit` first measures `Trainer::fit` and the bare loop with
//! criterion. The bare loop calls the same operations of libtorch without the trainer. Then the
//! benchmark prints for each model how many µs per step the trainer adds to the bare loop.

use amp_core::tch::set_num_threads;
use criterion::Criterion;
use fixtures::bench::overhead::{self, STEPS};

fn main() {
    set_num_threads(1);
    let mut pairs = overhead::pairs().expect("models");
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for (name, pair) in &mut pairs {
        let mut group = criterion.benchmark_group(format!("{name}, {STEPS} steps"));
        group.bench_function("Trainer::fit", |bencher| {
            bencher.iter(|| {
                let (trainer, model) = (&mut pair.trainer, pair.model.as_mut());
                overhead::fit(trainer, model, &pair.long.module).expect("a run")
            });
        });
        group.bench_function("bare", |bencher| {
            bencher.iter(|| pair.bare.epoch(&pair.long.train).expect("an epoch"));
        });
        group.finish();
    }
    criterion.final_summary();
    for (name, pair) in &mut pairs {
        let overhead = pair.measure(name).expect("runs");
        let (median, bare) = (overhead.median(), overhead.bare_microseconds);
        let blocks = &overhead.microseconds;
        println!(
            "{name}: the trainer adds {median:.1} µs ({:.1} to {:.1}) to a step with {bare:.1} µs of \
             tensor operations ({:.1} %)",
            blocks[0],
            blocks[blocks.len() - 1],
            100.0 * median / bare
        );
    }
}
