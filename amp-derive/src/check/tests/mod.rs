//! Tests of the rules. Each case violates one rule, and checks the error message and the underlined
//! source text.

mod advice;
mod field;
mod forward;
mod layers;
mod names;
mod optimizer;
mod shape;
mod tensors;
mod training;

use syn::{DeriveInput, parse_str};

use crate::{
    check, derive,
    diag::{Diagnostics, Warning},
    manifest::Manifest,
    parse,
    spec::Derive,
};

/// Attributes that a struct needs to be a valid model.
const TRAINED: &str = "#[loss(cross_entropy)] #[optimizer(adamw, lr = 1e-3)]";
/// A layer field. A struct without a layer is not a valid model.
const LAYER: &str = "#[layer(linear(64, 10))] model: Linear";

/// Returns the manifest of a user's crate that depends on amp-core under the name `amp_core`.
pub(crate) fn manifest() -> Manifest {
    Manifest::Named("amp_core".to_owned())
}

/// Parses and checks `source`. If there are errors, returns each as a pair of the underlined source
/// text and the message.
fn run(source: &str, which: Derive) -> Result<Vec<Warning>, Vec<(String, String)>> {
    let input: DeriveInput = parse_str(source).expect("an item");
    let diag = Diagnostics::new();
    check::amp_core::alias_is_free(&input, &diag);
    let attrs = parse::attributes(&input, &diag);
    let amp_core = check::amp_core::path(&attrs, manifest, &diag);
    let spec = parse::parse(&input, attrs, which, &diag);
    let model = spec.as_ref().and_then(|spec| check::check(spec, &diag));
    let text =
        |error: syn::Error| (error.span().source_text().unwrap_or_default(), error.to_string());
    match diag.finish(model.zip(amp_core)) {
        Ok((_, warnings)) => Ok(warnings),
        Err(errors) => Err(errors.into_iter().map(text).collect()),
    }
}

#[track_caller]
fn refuses(source: &str, which: Derive, expected: &[(&str, &str)]) {
    let found = run(source, which).err().unwrap_or_default();
    let found: Vec<(&str, &str)> = found.iter().map(|(at, text)| (&**at, &**text)).collect();
    assert_eq!(found, expected, "{source}");
    // The code that `fallback` generates for a struct with errors must be valid Rust.
    let input = parse_str(source).expect("tokens");
    syn::parse2::<syn::File>(derive(input, which, manifest)).expect("items");
}

/// Checks which errors are reported for a struct that has these attributes and one valid layer.
#[track_caller]
fn attributes(attributes: &str, expected: &[(&str, &str)]) {
    refuses(&format!("{attributes} struct Net {{ {LAYER} }}"), Derive::LightningModule, expected);
}

/// Checks which errors are reported for a struct that has these fields and valid attributes for
/// training.
#[track_caller]
fn fields(fields: &str, expected: &[(&str, &str)]) {
    refuses(&format!("{TRAINED} struct Net {{ {fields} }}"), Derive::LightningModule, expected);
}

/// Checks which errors are reported for a struct whose layer field is built by the expression
/// `build`.
#[track_caller]
fn layer(build: &str, expected: &[(&str, &str)]) {
    fields(&format!("#[layer({build})] model: Model"), expected);
}

#[track_caller]
fn advises(source: &str, rules: &[(&str, &str)]) {
    let warnings = run(source, Derive::LightningModule).expect("no errors");
    let found: Vec<(String, &str)> = warnings
        .iter()
        .map(|warning| (warning.at.source_text().unwrap_or_default(), warning.rule))
        .collect();
    let found: Vec<(&str, &str)> = found.iter().map(|(at, rule)| (&**at, *rule)).collect();
    assert_eq!(found, rules, "{source}");
}

#[test]
fn every_mistake_is_reported_at_once() {
    refuses(
        "#[loss(cros_entropy)]
        #[metric(acuracy)]
        #[optimizer(adamw, lr = 1e-3, momentum = 0.9)]
        #[scheduler(cosine_annealing, interval = epoc)]
        #[log(train_acc, on_stp)]
        struct Net {
            #[hparam(defualt = 64)] width: i64,
            #[layer(liner(width, 10))] #[precision(float16)] model: Linear,
            extra: u64,
        }",
        Derive::LightningModule,
        &[
            ("defualt", "`hparam` has no `defualt`: did you mean `default`?"),
            ("float16", "unknown precision `float16`: did you mean `fp16`?"),
            ("liner", "unknown layer `liner`: did you mean `linear`?"),
            (
                "extra",
                "field `extra` needs an attribute: `#[layer(…)]` for a module, `#[parameter(…)]` or \
                 `#[buffer(…)]` for a tensor, `#[hparam]` for a hyperparameter or `#[state]` for \
                 anything else",
            ),
            ("cros_entropy", "unknown loss `cros_entropy`: did you mean `cross_entropy`?"),
            ("acuracy", "unknown metric `acuracy`: did you mean `accuracy`?"),
            (
                "momentum",
                "`adamw` has no `momentum`: it takes `lr`, `betas`, `eps`, `weight_decay`, `fused`, \
                 `params`, `except`, `ndim`",
            ),
            ("epoc", "unknown interval `epoc`: did you mean `epoch`?"),
            ("cosine_annealing", "`cosine_annealing` needs `t_max`: add `t_max = …`"),
            ("on_stp", "`log` has no `on_stp`: did you mean `on_step`?"),
        ],
    );
}

/// Checks that the attributes which `lib.rs` registers with rustc are exactly the attributes that
/// the derive macros read.
#[test]
fn both_derives_register_every_attribute() {
    let source: syn::File = parse_str(include_str!("../../lib.rs")).expect("a Rust file");
    let known = [crate::symbol::ON_STRUCT, crate::symbol::ON_FIELD].concat();
    let mut derives = 0;
    for item in source.items {
        let syn::Item::Fn(function) = item else { continue };
        for attr in function.attrs.iter().filter(|a| a.path().is_ident("proc_macro_derive")) {
            let syn::Meta::List(list) = &attr.meta else { continue };
            let text = list.tokens.to_string();
            let names = text.split_once('(').map(|(_, names)| names.trim_end_matches(')'));
            let names: Vec<&str> = names.unwrap_or_default().split(',').map(str::trim).collect();
            if function.sig.ident == "batch" {
                assert_eq!(names, [crate::symbol::AMP, crate::symbol::BATCH]);
                continue;
            }
            assert_eq!(names, known, "{}", function.sig.ident);
            derives += 1;
        }
    }
    assert_eq!(derives, 2);
}
