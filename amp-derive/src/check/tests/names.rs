//! Tests of the rules about the path of amp-core.

use quote::ToTokens;

use super::*;

const BESIDE: &str = "#[layer(linear(64, 10))] model: Linear";

/// Returns the code that `derive(Module)` generates for a block with these attributes.
fn expanded(attributes: &str, manifest: fn() -> Manifest) -> String {
    let source = format!("{attributes} struct Block {{ {BESIDE} }}");
    derive(parse_str(&source).expect("tokens"), Derive::Module, manifest).to_string()
}

fn renamed() -> Manifest {
    Manifest::Named("amp".to_owned())
}

fn missing() -> Manifest {
    Manifest::Missing
}

/// Returns the import of amp-core, as generated code contains it if the code is printed with spaces
/// between the tokens.
fn import(path: &str) -> String {
    let path: syn::Path = parse_str(path).expect("a path");
    format!("use {} :: __private as __amp", path.to_token_stream())
}

#[test]
fn the_path_of_amp_core_is_the_attributes_or_the_manifests() {
    for (attributes, manifest, path) in [
        ("", manifest as fn() -> Manifest, "::amp_core"),
        ("", renamed, "::amp"),
        ("#[amp(crate = \"kit::engine\")]", renamed, "kit::engine"),
        ("#[amp(crate = kit::engine)]", missing, "kit::engine"),
        ("#[amp(crate = \"::kit\")]", missing, "::kit"),
        ("#[amp(crate = crate)]", missing, "crate"),
        ("#[amp(crate = self::engine)]", missing, "self::engine"),
    ] {
        let code = expanded(attributes, manifest);
        assert!(code.contains(&import(path)), "{attributes} {path}: {code}");
    }
}

#[test]
fn without_amp_core_there_is_one_error_and_no_stub() {
    let code = expanded("", missing);
    assert!(code.contains("compile_error") && code.contains("amp-core is not a dependency"));
    assert_eq!(code.matches("compile_error").count(), 1);
    assert!(!code.contains("impl"), "{code}");
}

#[test]
fn stubs_use_the_same_path_of_amp_core_as_the_code() {
    let code = expanded("#[amp(crate = kit::engine)] #[forward(|_| model(x))]", missing);
    assert!(code.contains("compile_error") && code.contains(&import("kit::engine")), "{code}");
    let code = expanded("#[amp(crate = 3)]", renamed);
    assert!(code.contains("compile_error") && code.contains(&import("::amp")), "{code}");
}

#[test]
fn a_crate_that_is_not_a_path_is_refused() {
    let text =
        "`crate` takes the path of amp-core, as in `#[amp(crate = \"my_prelude::amp_core\")]`";
    for value in ["3", "\"a b\"", "\"\"", "\"::\"", "kit::Engine::<u8>", "engine()", "[kit]"] {
        attributes(&format!("{TRAINED} #[amp(crate = {value})]"), &[(value, text)]);
    }
}

#[test]
fn a_use_of_the_alias_amp_is_refused() {
    let text =
        "generated code imports amp-core as `__amp`: write `self::__amp`, or rename your `__amp`";
    attributes(&format!("{TRAINED} #[amp(crate = __amp)]"), &[("__amp", text)]);
    attributes(&format!("{TRAINED} #[amp(crate = \"__amp\")]"), &[("\"__amp\"", text)]);
    fields(&format!("{LAYER}, #[layer(relu)] act: __amp::nn::Relu"), &[("__amp", text)]);
    for path in ["self::__amp", "::__amp"] {
        attributes(&format!("{TRAINED} #[amp(crate = {path})]"), &[]);
    }
}

#[test]
fn amp_takes_only_crate() {
    let refuses = |attribute: &str, expected| {
        attributes(&format!("{TRAINED} {attribute}"), &[expected]);
    };
    let text = "give the path of amp-core: `#[amp(crate = \"my_prelude::amp_core\")]`";
    refuses("#[amp]", ("amp", text));
    refuses("#[amp()]", ("amp", text));
    refuses("#[amp(crate)]", ("crate", "`crate` needs a value: `crate = …`"));
    refuses("#[amp(krate = kit)]", ("krate", "`amp` has no `krate`: did you mean `crate`?"));
    refuses("#[amp(crate = kit, crate = kit)]", ("crate", "`crate` is given twice: keep one"));
    refuses("#[amp(\"kit\")]", ("\"kit\"", "expected `key = value`, as in `crate = …`"));
    refuses(
        "#[amp(crate = kit)] #[amp(crate = kit)]",
        ("amp", "`#[amp]` is given twice: keep one"),
    );
    refuses(
        "#[amp = \"kit\"]",
        ("amp = \"kit\"", "write the argument in parentheses: `#[amp(…)]`"),
    );
    fields(
        &format!("#[amp(crate = kit)] {LAYER}"),
        &[("amp", "`#[amp]` belongs on the struct, not on a field")],
    );
}
