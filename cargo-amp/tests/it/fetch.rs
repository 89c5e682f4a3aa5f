//! Tests of fetching libtorch into the user's cache, with a script that replaces pip.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{
    CPU_WHEELS, Checkout, Started, assert_refused, assert_succeeded, output, stderr, stdout,
    wait_until,
};

#[test]
fn an_empty_cache_is_filled_once() {
    let checkout = Checkout::new();
    let first = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&first);
    assert!(checkout.is_provisioned());
    let shown = stderr(&first);
    let into = format!("into {}, once for all projects", checkout.home().display());
    for part in [
        "for CPUs",
        "`cargo amp setup --cuda` adds CUDA",
        &into,
        "0.55 GB to download, 0.53 GB on the disk",
        "python3 -m pip download --only-binary=:all: --no-deps",
        "torch==2.11.0\n",
        "Successfully downloaded",
        "unpacking torch==2.11.0",
    ] {
        assert!(shown.contains(part), "`{part}` is missing: {shown}");
    }
    let asked = ["torch==2.11.0", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];
    let log = checkout.pip_log();
    assert_eq!(log.len(), CPU_WHEELS, "{log:?}");
    assert!(log.iter().zip(asked).all(|(run, wheel)| run.ends_with(wheel)), "{log:?}");

    let second = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&second);
    assert_eq!(stderr(&second), "");
    assert_eq!(checkout.pip_runs(), CPU_WHEELS);
}

#[test]
fn for_cpus_only_the_needed_files_are_unpacked() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cpu"])));
    let expected = [
        "amp-manifest",
        "nvidia/cu13/lib/libcudart.so.13",
        "nvidia/cu13/lib/libcupti.so.13",
        "torch/include/ATen/ATen.h",
        "torch/include/torch/csrc/api/include/torch/torch.h",
        "torch/lib/libc10.so",
        "torch/lib/libgomp.so.1",
        "torch/lib/libtorch.so",
        "torch/lib/libtorch_cpu.so",
        "torch/version.py",
    ];
    assert_eq!(checkout.files(), expected);
    // In a libtorch for CPUs, libtorch.so is a linker script (see `wheels.rs`).
    let script = fs::read_to_string(checkout.home().join("torch/lib/libtorch.so"));
    assert_eq!(script.expect("written"), "INPUT(libtorch_cpu.so)\n");
    // A second run prints nothing, because all files that the manifest lists exist. The wheel also
    // has a file whose path leads out of the folder; it is neither unpacked nor listed.
    assert_eq!(stderr(&output(&mut checkout.cargo_amp(&["setup"]))), "");
}

#[test]
fn a_fetch_writes_nothing_to_stdout() {
    let checkout = Checkout::new();
    let fetched = output(&mut checkout.cargo_amp(&["setup"]));
    assert_eq!(stdout(&fetched).lines().count(), 1, "{}", stdout(&fetched));
    assert!(stdout(&fetched).starts_with("libtorch 2.11.0 is ready in "));
}

#[test]
fn one_cache_serves_every_project() {
    let (one, other) = (Checkout::new(), Checkout::new());
    assert_succeeded(&output(&mut one.cargo_amp(&["setup"])));
    let run = output(other.cargo_amp(&["setup"]).env("XDG_CACHE_HOME", one.path("cache")));
    assert_succeeded(&run);
    assert_eq!(stderr(&run), "");
    assert_eq!(other.pip_runs(), 0);
    assert_eq!(fs::read_link(other.path(".libtorch")).expect("a link"), one.home());
    assert!(!other.home().exists());
}

#[test]
fn the_cache_is_in_the_home_folder_unless_xdg_says_otherwise() {
    let checkout = Checkout::new();
    let mut command = checkout.cargo_amp(&["setup"]);
    command.env_remove("XDG_CACHE_HOME").env("HOME", checkout.path("user"));
    assert_succeeded(&output(&mut command));
    let home = checkout.path("user/.cache/cargo-amp/libtorch-2.11.0");
    assert!(home.join("torch/lib/libtorch_cpu.so").is_file());
    assert_eq!(fs::read_link(checkout.path(".libtorch")).expect("a link"), home);
}

#[test]
fn without_a_home_folder_there_is_no_cache() {
    let checkout = Checkout::new();
    let mut command = checkout.cargo_amp(&["verify"]);
    let run = output(command.env_remove("XDG_CACHE_HOME"));
    assert_refused(&run, &["neither HOME nor XDG_CACHE_HOME", "set one of them", "LIBTORCH"]);
    assert!(checkout.is_bare());
    // No home folder is needed if the user has a libtorch.
    let own = checkout.write_archive("mine/torch", "2.11.0");
    let mut command = checkout.cargo_amp(&["setup"]);
    assert_succeeded(&output(command.env_remove("XDG_CACHE_HOME").env("LIBTORCH", own)));
}

#[test]
fn an_interrupted_download_continues_with_the_complete_wheels() {
    let checkout = Checkout::new();
    let mut command = checkout.cargo_amp(&["setup"]);
    command.env("FAKE_PIP", "network").env("FAKE_AT", "nvidia-cuda-cupti");
    let run = output(&mut command);
    assert_refused(&run, &["could not reach its package index", "run the command again"]);
    assert!(stderr(&run).contains("the complete wheels (2, "), "{}", stderr(&run));
    assert!(!checkout.home().exists());
    let left: Vec<_> = fs::read_dir(checkout.partial()).expect("kept").flatten().collect();
    assert_eq!(left.len(), 1, "only the wheels are kept: {left:?}");

    let run = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&run);
    assert!(stderr(&run).contains("2 of 3 wheels are complete"), "{}", stderr(&run));
    assert!(checkout.is_provisioned());
    assert_eq!(checkout.pip_runs(), CPU_WHEELS + 1, "only the last is fetched twice");
}

#[test]
fn partial_files_of_an_interruption_are_removed() {
    let checkout = Checkout::new();
    checkout.write("cache/cargo-amp/libtorch-2.11.0.partial/new/torch/lib/stale.so", "half a file");
    checkout
        .write("cache/cargo-amp/libtorch-2.11.0.partial/work.1/wheel/torch.whl", "half a wheel");
    checkout.write("cache/cargo-amp/libtorch-2.11.0.partial/new.list", "7 stale\n");
    let run = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&run);
    assert!(checkout.is_provisioned());
    assert!(!checkout.files().iter().any(|file| file.contains("stale")), "{:?}", checkout.files());
}

#[test]
fn an_interruption_just_before_the_end_needs_no_second_fetch() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
    fs::create_dir(checkout.partial()).expect("writable");
    fs::rename(checkout.home(), checkout.partial().join("new")).expect("writable");
    let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_PIP", "network"));
    assert_succeeded(&run);
    assert!(checkout.is_provisioned());
    assert_eq!(checkout.pip_runs(), CPU_WHEELS);
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
    wait_until("the first pip runs", || checkout.pip_runs() == 1);
    first.0.kill().expect("still running");
    first.0.wait().expect("ended");
    let second = output(&mut checkout.cargo_amp(&["setup"]));
    assert_succeeded(&second);
    assert!(checkout.is_provisioned());
}

#[test]
fn two_processes_at_once_fetch_once() {
    let (one, other) = (Checkout::new(), Checkout::new());
    let gate = one.path("gate");
    let start = |checkout: &Checkout| {
        let mut command = checkout.cargo_amp(&["setup"]);
        command.env("XDG_CACHE_HOME", one.path("cache")).env("FAKE_GATE", &gate);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Started(command.spawn().expect("cargo-amp runs"))
    };
    let mut first = start(&one);
    wait_until("the first pip runs", || one.pip_runs() == 1);
    let mut second = start(&other);
    let mut line = String::new();
    BufReader::new(second.0.stderr.as_mut().expect("piped")).read_line(&mut line).expect("text");
    assert!(line.contains("waiting for another process that is fetching libtorch"), "{line}");
    one.write("gate", "");
    assert!(first.0.wait().expect("ended").success());
    assert!(second.0.wait().expect("ended").success());
    assert_eq!((one.pip_runs(), other.pip_runs()), (CPU_WHEELS, 0));
    assert!(one.is_provisioned());
    assert_eq!(fs::read_link(other.path(".libtorch")).expect("a link"), one.home());
}
