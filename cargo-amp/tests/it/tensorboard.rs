//! Fetching TensorBoard's reader, with a stand-in for pip: only for the tests, and once.

use std::fs;

use crate::support::{
    CPU_WHEELS, Checkout, assert_refused, assert_succeeded, output, stderr, stdout,
};

/// What pip was asked for each time it was to fetch tensorboard.
fn fetches(checkout: &Checkout) -> Vec<String> {
    let log = fs::read_to_string(checkout.path("pip.log.tensorboard")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

fn is_whole(checkout: &Checkout) -> bool {
    checkout.path(".tensorboard/tensorboard").is_dir()
        && checkout.path(".tensorboard/amp-stamp").is_file()
        && !checkout.path(".tensorboard.partial").exists()
}

#[test]
fn the_tests_fetch_it_once_and_nothing_else_does() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
    output(&mut checkout.cargo_amp(&["verify"]));
    assert_eq!(fetches(&checkout), Vec::<String>::new());

    // The stand-in for cargo ends with 7.
    let first = output(&mut checkout.cargo_amp(&["test"]));
    assert_eq!(first.status.code(), Some(7), "{}", stderr(&first));
    assert!(is_whole(&checkout));
    assert!(stderr(&first).contains("fetching tensorboard"), "{}", stderr(&first));
    assert!(stdout(&first).starts_with("cargo test"), "{}", stdout(&first));
    let [asked] = &fetches(&checkout)[..] else { panic!("{:?}", fetches(&checkout)) };
    assert!(asked.ends_with("tensorboard==2.20.0 numpy<3 protobuf<8"), "{asked}");

    let second = output(&mut checkout.cargo_amp(&["test"]));
    assert_eq!(stderr(&second), "");
    assert_eq!(fetches(&checkout).len(), 1);
    assert_eq!(checkout.pip_runs(), CPU_WHEELS, "libtorch was fetched once, by setup");
}

#[test]
fn what_is_not_whole_is_fetched_again() {
    let checkout = Checkout::new();
    checkout.write(".tensorboard.partial/packages/half", "a file");
    checkout.write(".tensorboard/tensorboard/old", "a file");
    checkout.write(".tensorboard/amp-stamp", "tensorboard==2.19.0\n");
    output(&mut checkout.cargo_amp(&["test"]));
    assert!(is_whole(&checkout));
    assert!(!checkout.path(".tensorboard/tensorboard/old").exists());
}

#[test]
fn a_failed_fetch_is_one_line_and_leaves_what_was_there() {
    let checkout = Checkout::new();
    checkout.write(".tensorboard/tensorboard/old", "a file");
    let run = output(checkout.cargo_amp(&["test"]).env("FAKE_TENSORBOARD", "network"));
    let parts = ["tensorboard 2.20.0 could not be fetched", "check the network", "cargo test"];
    assert_refused(&run, &parts);
    assert!(checkout.path(".tensorboard/tensorboard/old").exists());
    assert!(!checkout.path(".tensorboard.partial").exists());
}
