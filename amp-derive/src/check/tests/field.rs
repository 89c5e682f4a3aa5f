//! Tests of the rules about kinds of fields.

use super::*;

#[test]
fn a_field_has_one_kind() {
    fields(
        &format!("{LAYER}, #[hparam] #[state] width: i64"),
        &[("state", "field `width` is `#[hparam]` already: remove `#[hparam]` or `#[state]`")],
    );
    fields(
        &format!("{LAYER}, #[layr(relu)] act: Relu"),
        &[("layr", "field `act`: did you mean `#[layer]`?")],
    );
}

#[test]
fn names_of_the_builder_and_the_context_are_refused() {
    fields(
        &format!(
            "{LAYER}, #[hparam] build: i64, #[hparam] hyperparameters: i64, #[layer(relu)] cx: Relu"
        ),
        &[
            ("build", "`build` is a method of the builder: give the hyperparameter another name"),
            (
                "hyperparameters",
                "`hyperparameters` is a method of the builder: give the hyperparameter another name",
            ),
            ("cx", "`cx` is the context in `forward`: give the layer another name"),
        ],
    );
}

#[test]
fn wrong_defaults_of_hyperparameters_are_refused() {
    fields(
        &format!(
            "{LAYER}, #[hparam(64)] width: i64, #[hparam(default = 1, default = 2)] depth: i64"
        ),
        &[
            ("64", "write `#[hparam(default = 64)]`"),
            ("default", "`default` is given twice: keep one"),
        ],
    );
}

#[test]
fn wrong_initial_states_are_refused() {
    fields(
        &format!("{LAYER}, #[state(default = 3)] seen: i64, #[state(1, 2)] last: (i64, i64)"),
        &[
            ("default = 3", "write the value alone: `#[state(3)]`"),
            ("2", "`#[state]` takes one value: put several into a tuple"),
        ],
    );
}

#[test]
fn unknown_precisions_are_refused() {
    let precision = |args: &str, at: &str, text: &str| {
        fields(&format!("#[layer(relu)] #[precision({args})] act: Relu"), &[(at, text)]);
    };
    let all = "`fp32`, `fp16`, `bf16`, `fp64` or `autocast = off`";
    precision("bfloat16", "bfloat16", "unknown precision `bfloat16`: did you mean `bf16`?");
    precision("int8", "int8", &format!("unknown precision `int8`: expected {all}"));
    precision("\"fp32\"", "\"fp32\"", "write it without quotes: `#[precision(fp32)]`");
    precision("\"int8\"", "\"int8\"", &format!("expected {all}"));
    precision("", "precision", &format!("name the precision: {all}"));
    precision("fp32, fp16", "fp16", "a layer runs in one precision: keep one");
    precision("autocast = on", "on", "unknown autocast `on`: expected `off`");
    precision("autocast = false", "false", "`autocast` must be `off`");
}

#[test]
fn precision_is_refused_on_other_fields() {
    fields(
        &format!(
            "{LAYER}, #[hparam] #[precision(fp32)] width: i64, #[state] #[precision(fp32)] seen: i64"
        ),
        &[
            (
                "precision",
                "`#[precision]` is allowed only on a `#[layer]` field, but `width` is `#[hparam]`",
            ),
            (
                "precision",
                "`#[precision]` is allowed only on a `#[layer]` field, but `seen` is `#[state]`",
            ),
        ],
    );
}
