//! A libtorch that the user has chosen is checked and used, but never changed.

use crate::support::{Checkout, assert_refused, assert_succeeded, output, stderr, stdout};

#[test]
fn a_valid_libtorch_is_used_and_nothing_is_fetched() {
    let checkout = Checkout::new();
    let own = checkout.write_archive("mine/torch", "2.11.0+cpu\n");
    let run = output(checkout.cargo_amp(&["setup"]).env("LIBTORCH", &own));
    assert_succeeded(&run);
    assert!(stdout(&run).contains("mine/torch"), "{}", stdout(&run));
    assert_eq!(stderr(&run), "");
    let run = output(checkout.cargo_amp(&["setup", "--cuda"]).env("LIBTORCH", &own));
    assert_succeeded(&run);
    let note = "note: nothing is fetched, because LIBTORCH or LIBTORCH_USE_PYTORCH is set";
    assert!(stderr(&run).starts_with(note), "{}", stderr(&run));
    assert!(checkout.is_bare());
}

#[test]
fn an_invalid_libtorch_is_refused_with_the_reason() {
    let checkout = Checkout::new();
    checkout.write_archive("old", "2.10.0+cu128\n");
    checkout.write_archive("longer", "2.11.01\n");
    checkout.write("no-library/include/torch.h", "");
    checkout.write("no-headers/lib/libtorch.so", "");
    checkout.write("no-version/lib/libtorch_cpu.so", "");
    checkout.write("no-version/include/torch.h", "");
    for (folder, reason) in [
        ("absent", "not a folder"),
        ("old", "version 2.10.0+cu128, but 2.11.0 is needed"),
        ("longer", "version 2.11.01, but 2.11.0 is needed"),
        ("no-library", "no lib/libtorch.so"),
        ("no-headers", "no include folder"),
        ("no-version", "neither build-version nor version.py"),
    ] {
        let run = output(checkout.cargo_amp(&["verify"]).env("LIBTORCH", checkout.path(folder)));
        assert_refused(&run, &["LIBTORCH is ", folder, reason, "unset it"]);
    }
    assert!(checkout.is_bare());
}

#[test]
fn the_torch_of_python_is_used_when_asked_for() {
    let checkout = Checkout::new();
    checkout.write("site/torch/lib/libtorch.so", "");
    checkout.write("site/torch/include/torch.h", "");
    checkout.write("site/torch/version.py", "__all__ = []\n__version__ = '2.11.0+cu130'\n");
    let ask = |torch: &str| {
        let mut command = checkout.cargo_amp(&["setup"]);
        command.env("LIBTORCH_USE_PYTORCH", "1").env("FAKE_TORCH", torch);
        output(&mut command)
    };
    let folder = checkout.path("site/torch").display().to_string();
    let run = ask(&folder);
    assert_succeeded(&run);
    assert!(stdout(&run).contains("site/torch"), "{}", stdout(&run));

    checkout.write("site/torch/version.py", "__version__ = '2.9.1'\n");
    let parts = ["LIBTORCH_USE_PYTORCH", "python3", "2.9.1", "2.11.0", "pip install torch==2.11.0"];
    assert_refused(&ask(&folder), &parts);
    assert_refused(&ask(""), &["LIBTORCH_USE_PYTORCH", "python3 has no torch", "pip install"]);
    assert!(checkout.is_bare());
}

#[test]
fn in_a_virtual_environment_its_python_is_used() {
    let checkout = Checkout::new();
    // PATH contains no program, so the error names the program that was called: `python`.
    let run = output(
        checkout
            .cargo_amp(&["setup"])
            .env("PATH", checkout.path("empty"))
            .env("VIRTUAL_ENV", checkout.path("venv"))
            .env("LIBTORCH_USE_PYTORCH", "1"),
    );
    assert_refused(&run, &["but python cannot be run", "`python -m pip install"]);
}

#[test]
fn the_library_path_gets_the_wheels_folders_and_keeps_the_users() {
    let checkout = Checkout::new();
    let torch = checkout.write_archive("site/torch", "2.11.0");
    checkout.write("site/nvidia/cu13/lib/libcudart.so", "");
    checkout.write("site/nvidia/cudnn/part/lib/libcudnn.so", "");
    let run = output(
        checkout
            .cargo_amp(&["test"])
            .env("LIBTORCH", "site/torch")
            .env("LD_LIBRARY_PATH", "/users/own"),
    );
    let site = checkout.path("site").display().to_string();
    let path = format!(
        "LD_LIBRARY_PATH {site}/torch/lib:{site}/nvidia/cu13/lib:\
         {site}/nvidia/cudnn/part/lib:/users/own\n"
    );
    assert!(stdout(&run).contains(&path), "{}", stdout(&run));
    // cargo-amp turns a relative `LIBTORCH` into an absolute path.
    let libtorch = format!("LIBTORCH {}\n", torch.display());
    assert!(stdout(&run).contains(&libtorch), "{}", stdout(&run));
}
