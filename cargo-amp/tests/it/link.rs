//! The link from a project to the user's libtorch.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::{CPU_WHEELS, Checkout, assert_refused, assert_succeeded, output, stderr};

#[test]
fn every_command_makes_or_repairs_the_link() {
    let checkout = Checkout::new();
    let link = checkout.path(".libtorch");
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
    let elsewhere = checkout.write_archive("elsewhere/torch", "2.11.0");
    for (target, command) in
        [("/nonexistent".into(), "verify"), (elsewhere, "test"), (checkout.path("cache"), "setup")]
    {
        fs::remove_file(&link).expect("a link");
        symlink(&target, &link).expect("writable");
        let run = output(&mut checkout.cargo_amp(&[command]));
        assert!(!stderr(&run).contains("error"), "{}", stderr(&run));
        assert!(checkout.is_provisioned(), "{command} repairs a link to {}", target.display());
    }
    fs::remove_file(&link).expect("a link");
    output(&mut checkout.cargo_amp(&["verify"]));
    assert!(checkout.is_provisioned());
    assert_eq!(checkout.pip_runs(), CPU_WHEELS);
    let unfinished = fs::read_dir(checkout.path("."))
        .expect("readable")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".libtorch."));
    assert_eq!(unfinished.count(), 0);
}

#[test]
fn a_folder_instead_of_the_link_is_refused_before_the_fetch() {
    let checkout = Checkout::new();
    checkout.write(".libtorch/torch/version.py", "__version__ = '2.11.0+cu130'\n");
    for command in ["setup", "verify"] {
        let run = output(&mut checkout.cargo_amp(&[command]));
        let cache = checkout.home().display().to_string();
        assert_refused(&run, &["/.libtorch is not a link", "once per user", &cache, "remove it"]);
    }
    assert_eq!(checkout.pip_runs(), 0);
    assert!(checkout.path(".libtorch/torch/version.py").is_file());
    // A project that uses another libtorch gets no link.
    let own = checkout.write_archive("mine/torch", "2.11.0");
    assert_succeeded(&output(checkout.cargo_amp(&["setup"]).env("LIBTORCH", own)));
}
