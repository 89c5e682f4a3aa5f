//! Fetching libtorch into the checkout, with a stand-in for pip.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Checkout, assert_refused, assert_succeeded, output, stderr, stdout};

#[test]
fn a_fresh_checkout_is_provisioned_once() {
    let checkout = Checkout::new();
    let first = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&first);
    assert!(checkout.is_provisioned());
    let shown = stderr(&first);
    for part in [
        "4.6 GB",
        "about a minute",
        "python3 -m pip install",
        "torch==2.11.0 'nvidia-cuda-crt<13.1'\n",
        "Successfully installed",
    ] {
        assert!(shown.contains(part), "`{part}` is missing: {shown}");
    }
    let log = fs::read_to_string(checkout.path("pip.log")).expect("pip ran");
    assert!(log.contains("torch==2.11.0 nvidia-cuda-crt<13.1"), "{log}");

    let second = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&second);
    assert_eq!(stderr(&second), "");
    assert_eq!(checkout.pip_runs(), 1);
}

#[test]
fn stdout_is_left_to_the_program_that_is_handed_over_to() {
    let checkout = Checkout::new();
    let fetched = output(&mut checkout.cargo_amp(&["setup"]));
    assert_eq!(stdout(&fetched).lines().count(), 1, "{}", stdout(&fetched));
    assert!(stdout(&fetched).starts_with("libtorch 2.11.0 is ready in "));
}

#[test]
fn what_an_interruption_left_is_cleaned_away() {
    let checkout = Checkout::new();
    checkout.write(".libtorch.partial/libtorch/torch/stale", "half a file");
    let run = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&run);
    assert!(stderr(&run).contains("interrupted"), "{}", stderr(&run));
    assert!(checkout.is_provisioned());
    assert!(!checkout.path(".libtorch/torch/stale").exists());
}

#[test]
fn a_killed_fetch_frees_the_lock_and_the_next_run_recovers() {
    let checkout = Checkout::new();
    let mut first = Started(
        checkout
            .cargo_amp(&["setup"])
            .env("FAKE_GATE", checkout.path("never"))
            .stderr(Stdio::null())
            .spawn()
            .expect("cargo-amp runs"),
    );
    wait_until("the first pip runs", || checkout.path(".libtorch.partial/tmp/wheel").exists());
    first.0.kill().expect("still running");
    first.0.wait().expect("ended");
    let second = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&second);
    assert!(stderr(&second).contains("interrupted"), "{}", stderr(&second));
    assert!(checkout.is_provisioned());
}

#[test]
fn two_at_once_fetch_once() {
    let checkout = Checkout::new();
    let gate = checkout.path("gate");
    let start = || {
        let mut command = checkout.cargo_amp(&["setup"]);
        command.env("FAKE_GATE", &gate).stdout(Stdio::null()).stderr(Stdio::piped());
        Started(command.spawn().expect("cargo-amp runs"))
    };
    let mut first = start();
    wait_until("the first pip runs", || checkout.pip_runs() == 1);
    let mut second = start();
    let mut line = String::new();
    BufReader::new(second.0.stderr.as_mut().expect("piped")).read_line(&mut line).expect("text");
    assert!(line.contains("waiting for another process"), "{line}");
    checkout.write("gate", "");
    assert!(first.0.wait().expect("ended").success());
    assert!(second.0.wait().expect("ended").success());
    assert_eq!(checkout.pip_runs(), 1);
    assert!(checkout.is_provisioned());
}

#[test]
fn every_failure_of_pip_names_its_cause_and_leaves_nothing() {
    let cases: [(&str, &[&str]); 5] = [
        ("network", &["could not reach its package index", "check the network"]),
        ("no-wheel", &["no wheel", "Python 3.11", "pip config list"]),
        ("disk-full", &["the disk is full", "make room"]),
        ("odd", &["exit status: 1", "the moon is in the wrong phase"]),
        ("empty", &["pip reported success, but torch is missing"]),
    ];
    for (failure, parts) in cases {
        let checkout = Checkout::new();
        let run = output(checkout.cargo_amp(&["verify"]).env("FAKE_PIP", failure));
        assert_refused(&run, parts);
        let pip_is_seen = failure == "empty" || stderr(&run).contains("\nERROR: ");
        assert!(pip_is_seen, "{failure}: {}", stderr(&run));
        assert!(checkout.is_bare(), "{failure} left something");
    }
}

#[test]
fn a_failed_replacement_leaves_what_was_there() {
    let checkout = Checkout::new();
    checkout.write(".libtorch/torch/version.py", "__version__ = '2.10.0+cu128'\n");
    let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_PIP", "network"));
    assert_refused(&run, &["could not reach"]);
    assert!(checkout.path(".libtorch/torch/version.py").is_file());
    assert!(!checkout.path(".libtorch.partial").exists());
}

#[test]
fn python_and_pip_are_asked_for_by_name() {
    let checkout = Checkout::new();
    let nowhere = checkout.path("empty");
    let run = output(checkout.cargo_amp(&["setup"]).env("PATH", nowhere));
    assert_refused(&run, &["python3", "cannot be run", "install Python 3.10 to 3.14"]);
    let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_PYTHON", "no-pip"));
    assert_refused(&run, &["Python 3.11", "has no pip", "python3-pip", "python3 -m venv"]);
    for unfit in ["3.9", "3.15", "4.10"] {
        let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_VERSION", unfit));
        let found = format!("python3 is Python {unfit}, for which there is no torch 2.11.0");
        assert_refused(&run, &[&found, "3.10 to 3.14 first on PATH"]);
    }
    let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_PYTHON", "broken"));
    assert_refused(&run, &["does not work", "no module named encodings"]);
    assert_eq!(checkout.pip_runs(), 0);
    assert!(checkout.is_bare());
}

#[test]
fn a_disk_without_room_is_refused_before_the_download() {
    let checkout = Checkout::new();
    let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_FREE", "3000000"));
    assert_refused(&run, &["3 GB free", "make room"]);
    assert_eq!(checkout.pip_runs(), 0);
    assert!(checkout.is_bare());
}

#[test]
fn a_whole_folder_without_a_stamp_is_taken_over() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
    fs::remove_file(checkout.path(".libtorch/amp-stamp")).expect("stamped");
    let run = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&run);
    assert!(stderr(&run).contains("taking over"), "{}", stderr(&run));
    assert!(checkout.is_provisioned());
    assert_eq!(checkout.pip_runs(), 1);
}

#[test]
fn a_folder_that_is_not_whole_is_replaced() {
    type Damage = fn(&Checkout);
    let cases: [(&str, Damage); 5] = [
        ("cut short", |c| {
            fs::remove_file(c.path(".libtorch/amp-stamp")).expect("stamped");
            c.write(".libtorch/torch/lib/libtorch.so", "libr");
        }),
        ("list of torch's files", |c| {
            fs::remove_file(c.path(".libtorch/amp-stamp")).expect("stamped");
            fs::remove_dir_all(c.path(".libtorch/torch-2.11.0.dist-info")).expect("there");
        }),
        ("host_config.h is missing", |c| {
            fs::remove_file(c.path(".libtorch/nvidia/cu13/include/crt/host_config.h"))
                .expect("there");
        }),
        ("torch is version 2.10.0", |c| {
            c.write(".libtorch/torch/version.py", "__version__ = '2.10.0'\n");
        }),
        ("made for other packages", |c| c.write(".libtorch/amp-stamp", "torch==2.10.0\n")),
    ];
    for (problem, damage) in cases {
        let checkout = Checkout::new();
        assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
        damage(&checkout);
        let run = output(&mut checkout.cargo_amp(&["setup"]));
        assert_succeeded(&run);
        assert!(stderr(&run).contains(problem), "{problem}: {}", stderr(&run));
        assert_eq!(checkout.pip_runs(), 2, "{problem}");
        assert!(checkout.is_provisioned(), "{problem}");
    }
}

#[test]
fn a_link_that_leads_nowhere_is_replaced() {
    let checkout = Checkout::new();
    symlink("/nonexistent", checkout.path(".libtorch")).expect("writable");
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
    assert!(checkout.is_provisioned());
}

/// A process that does not outlive its test, also when that fails.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
