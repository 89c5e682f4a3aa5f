//! `#[forward]`.

use super::*;

#[track_caller]
fn forward(closure: &str, expected: &[(&str, &str)]) {
    attributes(&format!("{TRAINED} #[forward({closure})]"), expected);
}

#[test]
fn a_closure_of_named_inputs() {
    let text = "`forward` has inputs with names, as in `|x| …` or `|x, mask: Option<&Tensor>| …`";
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
        &[("a", "inputs live as long as the call: take `'a` away")],
    );
}

#[test]
fn a_closure_returns_a_result() {
    forward(
        "|x| -> Tensor { model(x) }",
        &[("Tensor", "`forward` returns a `Result`, as in `-> Result<(Tensor, Tensor)>`")],
    );
}

#[test]
fn inputs_hide_nothing() {
    forward(
        "|model| model(model)",
        &[("model", "`model` hides the layer of this name: give the input another name")],
    );
    forward("|x, cx| model(x)", &[("cx", "`cx` hides the context: give the input another name")]);
}

#[test]
fn every_layer_runs() {
    let source = |forward| {
        format!(
            "{TRAINED} #[forward({forward})] struct Net {{ {LAYER}, #[layer(linear(10, 2))] head: Linear }}"
        )
    };
    refuses(
        &source("|x| model(x)"),
        Derive::LightningModule,
        &[(
            "head",
            "`forward` never runs `head`: call it, as in `head(x)?`, or take the field away",
        )],
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
fn calls_of_a_layer_agree() {
    forward(
        "|x| model(&model(x, None)?)",
        &[(
            "model",
            "`model` is called with 2 here and with 1 further up: a layer has one number of \
             inputs, and `None` for one that is absent",
        )],
    );
}
