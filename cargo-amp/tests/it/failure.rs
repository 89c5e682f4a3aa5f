//! Tests that a failed download ends with one line that names the cause and the fix, and leaves no
//! partial files.

use std::fs;

use crate::support::{Checkout, assert_refused, assert_succeeded, output, stderr};

#[test]
fn every_failure_of_pip_names_its_cause_and_leaves_no_files() {
    let cases: [(&str, &[&str]); 6] = [
        ("network", &["could not reach its package index", "check the network"]),
        ("no-wheel", &["no wheel", "Python 3.11", "pip config list"]),
        ("disk-full", &["the disk is full", "make room in ", "/cache/cargo-amp"]),
        ("odd", &["exit status: 1", "the moon is in the wrong phase"]),
        ("empty", &["pip reported success, but torch==2.11.0 is missing"]),
        ("other", &["pip reported success, but torch==2.11.0 is missing"]),
    ];
    for (failure, parts) in cases {
        let checkout = Checkout::new();
        let run = output(checkout.cargo_amp(&["verify"]).env("FAKE_PIP", failure));
        assert_refused(&run, parts);
        let pip_is_seen =
            ["empty", "other"].contains(&failure) || stderr(&run).contains("\nERROR: ");
        assert!(pip_is_seen, "{failure}: {}", stderr(&run));
        assert!(checkout.is_bare(), "{failure} left something");
    }
}

#[test]
fn a_wheel_that_cannot_be_unpacked_is_not_installed() {
    let cases: [(&str, &[&str]); 2] = [
        ("disk-full", &["could not be unpacked", "the disk is full", "make room in "]),
        ("odd", &["could not be unpacked", "exit status: 1", "no module named zlib"]),
    ];
    for (failure, parts) in cases {
        let checkout = Checkout::new();
        let run = output(checkout.cargo_amp(&["verify"]).env("FAKE_UNPACK", failure));
        assert_refused(&run, parts);
        assert!(!checkout.home().exists() && !checkout.partial().join("new").exists());
        // All wheels were downloaded before unpacking failed, so this run needs no network.
        let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_PIP", "network"));
        assert_succeeded(&run);
        assert!(checkout.is_provisioned(), "{failure}");
    }
}

#[test]
fn a_wheel_that_is_damaged_on_the_disk_is_fetched_again() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 2] = [
        ("one bit", |wheel| {
            let content = b"torch/lib/libtorch_cpu.so\n";
            let at = wheel.windows(content.len()).position(|part| part == content);
            wheel[at.expect("stored as it is")] ^= 1;
        }),
        ("cut short", |wheel| wheel.truncate(wheel.len() / 2)),
    ];
    for (what, damage) in cases {
        let checkout = Checkout::new();
        let mut command = checkout.cargo_amp(&["setup"]);
        let run = output(command.env("FAKE_PIP", "network").env("FAKE_AT", "nvidia-cuda-cupti"));
        assert_refused(&run, &["could not reach"]);
        let wheel = checkout.partial().join("wheels/torch-2.11.0-py3-none-any.whl");
        let mut bytes = fs::read(&wheel).expect("fetched");
        damage(&mut bytes);
        fs::write(&wheel, bytes).expect("writable");

        let run = output(&mut checkout.cargo_amp(&["setup"]));
        let parts = ["torch-2.11.0-py3-none-any.whl was damaged", "run the command again"];
        assert_refused(&run, &parts);
        assert!(!checkout.home().exists() && !wheel.exists(), "{what}");
        let before = checkout.pip_runs();
        assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
        assert_eq!(checkout.pip_runs(), before + 1, "{what}: torch alone");
        assert!(checkout.is_provisioned(), "{what}");
    }
}

#[test]
fn missing_python_and_missing_pip_are_reported() {
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
    let setup = |arguments: &[&str], free: &str| {
        output(checkout.cargo_amp(arguments).env("FAKE_FREE", free))
    };
    // `df` reports sizes in blocks of 1024 bytes.
    let run = setup(&["setup", "--cpu"], "900000");
    assert_refused(&run, &["for CPUs needs 1.08 GB", "has 0.92 GB free", "make room"]);
    let run = setup(&["setup", "--cuda"], "5500000");
    assert_refused(&run, &["with CUDA needs 6.13 GB", "has 5.63 GB free", "XDG_CACHE_HOME"]);
    assert_eq!(checkout.pip_runs(), 0);
    assert!(checkout.is_bare());
    assert_succeeded(&setup(&["setup", "--cpu"], "1200000"));
    // Less space is needed than above, because the libtorch for CPUs already has some of the files.
    assert_refused(&setup(&["setup", "--cuda"], "5400000"), &["with CUDA needs 5.60 GB"]);
    assert_succeeded(&setup(&["setup", "--cuda"], "5500000"));
}

#[test]
fn a_cache_that_cannot_be_written_is_refused() {
    let checkout = Checkout::new();
    // Not even root can create a folder inside a file.
    checkout.write("file", "");
    let mut command = checkout.cargo_amp(&["setup"]);
    let run = output(command.env("XDG_CACHE_HOME", checkout.path("file")));
    assert_refused(&run, &["could not be put into", "/file/cargo-amp", "make it writable"]);
    // A folder at the path of the lock file prevents its creation.
    let lock = checkout.path("cache/cargo-amp/libtorch-2.11.0.lock");
    fs::create_dir_all(&lock).expect("writable");
    let run = output(&mut checkout.cargo_amp(&["setup"]));
    assert_refused(&run, &["libtorch-2.11.0.lock cannot be locked", "make it writable"]);
    assert_eq!(checkout.pip_runs(), 0);
    assert!(checkout.is_bare());
}
