//! `#[forward]`.

use super::*;

#[track_caller]
fn forward(closure: &str, expected: &[(&str, &str)]) {
    attributes(&format!("{TRAINED} #[forward({closure})]"), expected);
}

#[test]
fn a_closure_of_one_input() {
    forward("|x, y| model(x)", &[("x, y", "`forward` has one input, with a name: `|x| …`")]);
    forward("|| model(x)", &[("|", "`forward` has one input, with a name: `|x| …`")]);
    forward("|_| model(x)", &[("_", "`forward` has one input, with a name: `|x| …`")]);
    let text = "`#[forward(…)]` takes a closure, as in `#[forward(|x| head(&body(x)?))]`, or the \
                path of a function `fn(&Self, &Tensor, &Context) -> Result<Tensor>`";
    forward("model(x)", &[("forward", text)]);
}

#[test]
fn the_input_hides_nothing() {
    forward(
        "|model| model(model)",
        &[("model", "`model` hides the layer of this name: call the input `x`")],
    );
    forward("|cx| model(cx)", &[("cx", "`cx` hides the context: call the input `x`")]);
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
