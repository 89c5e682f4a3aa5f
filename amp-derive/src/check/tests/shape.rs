//! Tests of the rules that a model is a struct with named fields and at least one layer, and that
//! each attribute is in its place.

use super::*;

#[test]
fn anything_but_a_struct_with_named_fields_is_refused() {
    let refuses = |source, expected| refuses(source, Derive::LightningModule, &[expected]);
    refuses(
        "enum Net { A }",
        (
            "enum",
            "LightningModule is derived for structs; put the variants' layers in a struct with `Option` fields",
        ),
    );
    refuses(
        "union Net { a: u8 }",
        ("union", "LightningModule is derived for structs, not for unions"),
    );
    refuses(
        "struct Net(Linear);",
        (
            "Linear",
            "name the fields, as in `{ model: Linear }`: parameters are named after them, `model.weight`",
        ),
    );
}

#[test]
fn a_model_without_a_layer_is_refused() {
    let text =
        "`Net` has no layers: give it a field such as `#[layer(linear(64, 10))] model: Linear`";
    fields("#[hparam] width: i64", &[("Net", text)]);
    fields("#[buffer(shape = [3], init = zeros)] table: Tensor", &[("Net", text)]);
}

/// A module without layers needs its own `forward`. It may have buffers alone, or no fields.
#[test]
fn a_module_without_layers_and_forward_is_refused() {
    let text = "`Net` has no layers: write `#[forward(|x| …)]`, or give it a field such as \
                `#[layer(linear(64, 10))] model: Linear`";
    let buffer = "struct Net { #[buffer(shape = [3], init = zeros)] table: Tensor }";
    for module in ["struct Net;", buffer] {
        refuses(module, Derive::Module, &[("Net", text)]);
        refuses(&format!("#[forward(|x| x.f_square())] {module}"), Derive::Module, &[]);
    }
}

#[test]
fn attributes_at_the_wrong_place_are_refused() {
    refuses(
        &format!(
            "{TRAINED} #[precision(fp32)] #[layer(relu)] struct Net {{ #[log(train_loss)] {LAYER} }}"
        ),
        Derive::LightningModule,
        &[
            ("precision", "`#[precision]` belongs on a layer field, not on the struct"),
            ("layer", "`#[layer]` belongs on a field, not on the struct"),
            ("log", "`#[log]` belongs on the struct, not on a field"),
        ],
    );
}

#[test]
fn attributes_of_training_are_refused_in_a_block() {
    refuses(
        &format!("#[loss(mse_loss)] #[forward(|x| model(x))] struct Net {{ {LAYER} }}"),
        Derive::Module,
        &[(
            "loss",
            "`#[loss]` is for training: derive `LightningModule` instead of `Module`, or move it to the model that this block is part of",
        )],
    );
}

#[test]
fn single_attributes_given_twice_are_refused() {
    attributes(
        "#[loss(mse_loss)] #[loss(l1_loss)] #[optimizer(sgd, lr = 0.1)]",
        &[("loss", "`#[loss]` is given twice: keep one")],
    );
}

#[test]
fn arguments_without_parentheses_are_refused() {
    attributes(
        "#[loss = \"mse_loss\"] #[optimizer(sgd, lr = 0.1)]",
        &[("loss = \"mse_loss\"", "write the argument in parentheses: `#[loss(…)]`")],
    );
}

#[test]
fn unreadable_arguments_are_reported_once() {
    attributes(
        "#[loss(mse_loss)] #[optimizer(sgd, lr = )]",
        &[(")", "unexpected end of input, expected an expression")],
    );
}
