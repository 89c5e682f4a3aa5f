//! Tests of the rules about `#[forward]`.

use super::*;

#[track_caller]
fn forward(closure: &str, expected: &[(&str, &str)]) {
    attributes(&format!("{TRAINED} #[forward({closure})]"), expected);
}

#[test]
fn inputs_of_the_closure_have_names() {
    let text =
        "the inputs of `forward` need names, as in `|x| …` or `|x, mask: Option<&Tensor>| …`";
    forward("|| model(x)", &[("|", text)]);
    forward("|_| model(x)", &[("_", text)]);
    forward("|x, (a, b): (&Tensor, i64)| model(x)", &[("(a, b)", text)]);
    let text = "`#[forward(…)]` takes a closure, as in `#[forward(|x| head(&body(x)?))]`, or the \
                path of a function `fn(&Self, &Tensor, &Context) -> Result<Tensor>`";
    forward("model(x)", &[("forward", text)]);
    forward(
        "|a, b, c, d, e, f, g, h, i| model(a)",
        &[("i", "`forward` has at most 8 inputs: put some in a struct")],
    );
    forward(
        "|x: &'a Tensor, y| model(x)",
        &[("a", "inputs are borrowed for one call only: remove `'a`")],
    );
}

#[test]
fn a_closure_returns_a_result() {
    forward(
        "|x| -> Tensor { model(x) }",
        &[("Tensor", "`forward` must return a `Result`, as in `-> Result<(Tensor, Tensor)>`")],
    );
}

#[test]
fn an_input_with_the_name_of_a_layer_or_the_context_is_refused() {
    forward(
        "|model| model(model)",
        &[("model", "`model` hides the layer of this name: give the input another name")],
    );
    forward("|x, cx| model(x)", &[("cx", "`cx` hides the context: give the input another name")]);
}

#[test]
fn a_layer_that_forward_never_runs_is_refused() {
    let source = |forward| {
        format!(
            "{TRAINED} #[forward({forward})] struct Net {{ {LAYER}, #[layer(linear(10, 2))] head: Linear }}"
        )
    };
    refuses(
        &source("|x| model(x)"),
        Derive::LightningModule,
        &[("head", "`forward` never runs `head`: call it, as in `head(x)?`, or remove the field")],
    );
    refuses(
        &source("|x| haed(&model(x)?)"),
        Derive::LightningModule,
        &[("haed", "unknown layer `haed`: did you mean `head`?")],
    );
    for forward in
        ["|x| model(&head(x)?)", "|x| self.run(x)", "|x| model(self.head.weight())", "Self::run"]
    {
        refuses(&source(forward), Derive::LightningModule, &[]);
    }
}

#[test]
fn calls_with_different_numbers_of_inputs_are_refused() {
    forward(
        "|x| model(&model(x, None)?)",
        &[(
            "model",
            "number of inputs of `model`: 2 here, 1 above; give every call the same number, \
             with `None` for an absent input",
        )],
    );
}
