//! Tests with an incomplete libtorch in the cache, and with a libtorch that the user installed there.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::{
    CPU_WHEELS, CUDA_WHEELS, Checkout, assert_refused, assert_succeeded, output, stderr, stdout,
};

/// Creates the files that `pip install --target` would create: for each package, its files and a
/// list of them.
fn install_by_hand(checkout: &Checkout) {
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    fs::remove_file(checkout.home().join("amp-manifest")).expect("there");
    let in_home = |path: &str| format!("cache/cargo-amp/libtorch-2.11.0/{path}");
    checkout.write(&in_home("sympy/core.py"), "python");
    let mut record = String::from(
        "../../bin/torchrun,sha256=x,268\n\
         torch/__pycache__/version.cpython-311.pyc,,\n\
         torch-2.11.0.dist-info/RECORD,,\n\
         sympy/core.py,sha256=x,6\n",
    );
    for file in checkout.files().iter().filter(|file| !file.starts_with("sympy")) {
        let size = fs::metadata(checkout.home().join(file)).expect("there").len();
        record += &format!("{file},sha256=x,{size}\n");
    }
    checkout.write(&in_home("torch-2.11.0.dist-info/RECORD"), &record);
}

#[test]
fn a_complete_folder_without_a_manifest_is_accepted() {
    let checkout = Checkout::new();
    install_by_hand(&checkout);
    let run = output(&mut checkout.cargo_amp(&["setup", "--cuda"]));
    assert_succeeded(&run);
    assert!(stderr(&run).contains("taking over"), "{}", stderr(&run));
    assert!(stdout(&run).ends_with("(with CUDA)\n"), "{}", stdout(&run));
    assert!(checkout.is_provisioned());
    assert_eq!(checkout.pip_runs(), CUDA_WHEELS);
    // The new manifest lists libtorch's libraries, but no Python packages such as sympy.
    fs::remove_dir_all(checkout.home().join("sympy")).expect("there");
    assert_eq!(stderr(&output(&mut checkout.cargo_amp(&["setup"]))), "");
}

#[test]
fn an_incomplete_folder_is_replaced() {
    type Damage = fn(&Checkout);
    let in_home = |path: &str| format!("cache/cargo-amp/libtorch-2.11.0/{path}");
    let cases: [(&str, &str, Damage); 8] = [
        ("verify", "libtorch_cpu.so is missing or cut short", |c| {
            fs::write(c.home().join("torch/lib/libtorch_cpu.so"), "torch/lib").expect("there");
        }),
        ("verify", "libgomp.so.1 is missing or cut short", |c| {
            fs::remove_file(c.home().join("torch/lib/libgomp.so.1")).expect("there");
        }),
        // Of all commands, only `setup` checks the headers.
        ("setup", "torch.h is missing or cut short", |c| {
            let header = "torch/include/torch/csrc/api/include/torch/torch.h";
            fs::write(c.home().join(header), "torch").expect("there");
        }),
        ("verify", "libcudart.so.13 is missing", |c| {
            fs::remove_file(c.home().join("nvidia/cu13/lib/libcudart.so.13")).expect("there");
        }),
        ("verify", "torch is version 2.10.0", |c| {
            fs::write(c.home().join("torch/version.py"), "__version__ = '2.10.0'\n")
                .expect("there");
        }),
        ("verify", "torch is missing", |c| {
            fs::remove_dir_all(c.home().join("torch")).expect("there");
        }),
        ("verify", "made by another version of cargo-amp", |c| {
            fs::write(c.home().join("amp-manifest"), "torch==2.10.0\n").expect("there");
        }),
        ("verify", "list of torch's files", |c| {
            fs::remove_file(c.home().join("amp-manifest")).expect("there");
        }),
    ];
    for (command, problem, damage) in cases {
        let checkout = Checkout::new();
        assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
        checkout.write(&in_home("torch/lib/stale.so"), "");
        damage(&checkout);
        let run = output(&mut checkout.cargo_amp(&[command]));
        let shown = stderr(&run);
        assert!(shown.contains(problem) && shown.contains("it is replaced"), "{problem}: {shown}");
        assert_eq!(checkout.pip_runs(), 2 * CPU_WHEELS, "{problem}");
        assert!(checkout.is_provisioned(), "{problem}");
        assert!(!checkout.home().join("torch/lib/stale.so").exists(), "{problem}");
        assert_eq!(stderr(&output(&mut checkout.cargo_amp(&["setup"]))), "", "{problem}");
    }
}

#[test]
fn an_installation_by_hand_with_a_file_cut_short_is_replaced() {
    for file in ["torch/lib/libc10.so", "sympy/core.py"] {
        let checkout = Checkout::new();
        install_by_hand(&checkout);
        fs::write(checkout.home().join(file), "py").expect("there");
        let run = output(&mut checkout.cargo_amp(&["setup"]));
        assert_succeeded(&run);
        let problem = format!("{file} is missing or cut short");
        assert!(stderr(&run).contains(&problem), "{}", stderr(&run));
        assert_eq!(checkout.pip_runs(), CUDA_WHEELS + CPU_WHEELS);
        assert!(checkout.is_provisioned());
    }
}

#[test]
fn a_damaged_libtorch_with_cuda_is_replaced_with_cuda() {
    let checkout = Checkout::new();
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup", "--cuda"])));
    fs::remove_file(checkout.home().join("torch/lib/libc10.so")).expect("there");
    // On a machine without a driver, such as the login node of a cluster, the default is a libtorch
    // for CPUs. CUDA is fetched again because the damaged libtorch had CUDA.
    output(&mut checkout.cargo_amp(&["verify"]));
    assert!(checkout.home().join("torch/lib/libtorch_cuda.so").is_file());
    assert!(checkout.is_provisioned());
}

#[test]
fn a_failed_replacement_leaves_the_old_folder() {
    let checkout = Checkout::new();
    let version = "cache/cargo-amp/libtorch-2.11.0/torch/version.py";
    checkout.write(version, "__version__ = '2.10.0+cu128'\n");
    let run = output(checkout.cargo_amp(&["setup"]).env("FAKE_PIP", "network"));
    assert_refused(&run, &["could not reach"]);
    assert!(checkout.path(version).is_file());
    assert!(!checkout.partial().exists());
}

#[test]
fn a_file_in_place_of_the_folder_is_replaced() {
    let checkout = Checkout::new();
    fs::create_dir_all(checkout.path("cache/cargo-amp")).expect("writable");
    symlink("/nonexistent", checkout.home()).expect("writable");
    assert_succeeded(&output(&mut checkout.cargo_amp(&["setup"])));
    assert!(checkout.is_provisioned());
}
