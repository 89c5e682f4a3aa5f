//! Tests of the rules about `#[parameter]` and `#[buffer]`.

use super::*;

#[track_caller]
fn parameter(arguments: &str, expected: &[(&str, &str)]) {
    let source = format!(
        "{TRAINED} #[forward(|x| Ok(model(x)?.f_add(&self.shift)?))]
        struct Net {{ {LAYER}, #[parameter{arguments}] shift: Tensor }}"
    );
    refuses(&source, Derive::LightningModule, expected);
}

#[test]
fn wrong_initial_values_are_refused() {
    for init in [
        "zeros",
        "normal(0.0, 0.02)",
        "uniform(low, 1.0)",
        "kaiming_uniform",
        "kaiming_normal(mode = fan_out, nonlinearity = relu)",
        "trunc_normal(0.0, std = 0.02, a = -0.04, b = 0.04)",
        "orthogonal(gain = nn::init::calculate_gain(Tanh, 0.0))",
    ] {
        parameter(&format!("(shape = [10], init = {init})"), &[]);
    }
    parameter("(init = self::drawn(10)?)", &[]);
    parameter(
        "",
        &[(
            "parameter",
            "`#[parameter]` needs initial values, as in `#[parameter(shape = [64, 10], init = \
             zeros)]`",
        )],
    );
    parameter(
        "(shape = [10], init = normall(0.0, 1.0))",
        &[("normall", "unknown init `normall`: did you mean `normal`?")],
    );
    parameter(
        "(shape = [10], init = sparse)",
        &[(
            "sparse",
            "unknown init `sparse`: call a function of your own by its path, \
             `self::sparse(…)`; the known initializers are `zeros`, `ones`, `full`, `uniform`, \
             `normal`, `trunc_normal`, `xavier_uniform`, `xavier_normal`, `kaiming_uniform`, \
             `kaiming_normal`, `orthogonal`, `eye`",
        )],
    );
    parameter(
        "(shape = [10], init = normal)",
        &[("normal", "`normal` takes `mean`, `std`; got none")],
    );
    parameter(
        "(shape = [10, 64], init = kaiming_uniform(64))",
        &[(
            "kaiming_uniform",
            "`kaiming_uniform` takes no arguments; got 1 argument; options are given by name, as in \
             `a = …`",
        )],
    );
    parameter(
        "(shape = [10, 64], init = kaiming_uniform(mode = fan_inn))",
        &[("fan_inn", "unknown mode `fan_inn`: did you mean `fan_in`?")],
    );
    parameter(
        "(init = ones)",
        &[("init", "`init` needs the tensor's shape, as in `shape = [64, 10]`")],
    );
    parameter(
        "(shape = [10], init = self::drawn(10)?)",
        &[("shape", "the expression of `init` has a shape already: remove `shape`")],
    );
    parameter(
        "(size = [10], init = ones)",
        &[("size", "`parameter` has no `size`: it takes `shape`, `init`")],
    );
}

#[test]
fn a_parameter_that_forward_never_uses_is_refused() {
    let expected = [(
        "shift",
        "`forward` never uses `shift`: use `self.shift` in `#[forward(|x| …)]`, or remove the field",
    )];
    let shift = "#[parameter(shape = [1], init = ones)] shift: Tensor";
    let or_loss = [(
        "shift",
        "`forward` never uses `shift`: use `self.shift` in `#[forward(|x| …)]` or in the closure of \
         `#[loss(with = …)]`, or remove the field",
    )];
    fields(&format!("{LAYER}, {shift}"), &or_loss);
    let source = format!("#[forward(|x| model(x))] struct Block {{ {LAYER}, {shift} }}");
    refuses(&source, Derive::Module, &expected);
    fields(&format!("{LAYER}, #[buffer(shape = [1], init = ones)] shift: Tensor"), &[]);
    let source = "#[forward(|x| Ok(x.f_add(&self.shift)?))] struct Block";
    refuses(&format!("{source} {{ {shift} }}"), Derive::Module, &[]);
}

/// Checks that a layer or a parameter that `forward` does not use is accepted if the loss uses it,
/// or if the user has written the training step.
#[test]
fn a_parameter_of_the_loss_is_used() {
    let source = |attrs: &str| {
        format!(
            "{attrs} #[optimizer(sgd, lr = 0.1)] #[forward(|x| model(x))] struct Net {{ {LAYER}, \
             #[layer(linear(10, 2))] own: Linear, #[parameter(shape = [1], init = ones)] weight: Tensor }}"
        )
    };
    for attrs in [
        "#[loss(with = |o, t| mine(o, t, &self.weight, self.own.weight()))]",
        "#[loss(with = |o, t| self.mine(o, t))]",
        "#[training_step(train)] #[loss(mse_loss)]",
        "#[manual_step(adversarial)]",
    ] {
        refuses(&source(attrs), Derive::LightningModule, &[]);
    }
    // Here `weight = …` is a key of the loss. This is not a use of the field `weight`.
    refuses(
        &source("#[loss(cross_entropy, weight = self.own.weight())]"),
        Derive::LightningModule,
        &[(
            "weight",
            "`forward` never uses `weight`: use `self.weight` in `#[forward(|x| …)]` or in the closure of \
             `#[loss(with = …)]`, or remove the field",
        )],
    );
}
