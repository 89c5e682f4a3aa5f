//! Every rule, broken once: what is underlined and what is said.

use syn::{DeriveInput, parse_str};

use crate::{
    check, derive,
    diag::{Diagnostics, Warning},
    parse,
    spec::Derive,
};

/// Attributes of a struct that lacks nothing.
const TRAINED: &str = "#[loss(cross_entropy)] #[optimizer(adamw, lr = 1e-3)]";
/// A field that lacks nothing.
const LAYER: &str = "#[layer(linear(64, 10))] model: Linear";

/// Parses and checks; the errors are pairs of underlined source and message.
fn run(source: &str, which: Derive) -> Result<Vec<Warning>, Vec<(String, String)>> {
    let input: DeriveInput = parse_str(source).expect("an item");
    let diag = Diagnostics::new();
    let spec = parse::parse(&input, which, &diag);
    let model = spec.as_ref().and_then(|spec| check::check(spec, &diag));
    let text =
        |error: syn::Error| (error.span().source_text().unwrap_or_default(), error.to_string());
    match diag.finish(model) {
        Ok((_, warnings)) => Ok(warnings),
        Err(errors) => Err(errors.into_iter().map(text).collect()),
    }
}

#[track_caller]
fn refuses(source: &str, which: Derive, expected: &[(&str, &str)]) {
    let found = run(source, which).err().unwrap_or_default();
    let found: Vec<(&str, &str)> = found.iter().map(|(at, text)| (&**at, &**text)).collect();
    assert_eq!(found, expected, "{source}");
    // What stands beside the errors is valid Rust.
    let input = parse_str(source).expect("an item");
    syn::parse2::<syn::File>(derive(&input, which)).expect("items");
}

/// A struct with these attributes and one layer.
#[track_caller]
fn attributes(attributes: &str, expected: &[(&str, &str)]) {
    refuses(&format!("{attributes} struct Net {{ {LAYER} }}"), Derive::LightningModule, expected);
}

/// A struct that is trained as usual with these fields.
#[track_caller]
fn fields(fields: &str, expected: &[(&str, &str)]) {
    refuses(&format!("{TRAINED} struct Net {{ {fields} }}"), Derive::LightningModule, expected);
}

/// A layer built like this.
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
                "field `extra` needs an attribute: `#[layer(…)]` for a module, `#[hparam]` for a \
                 hyperparameter or `#[state]` for anything else",
            ),
            ("cros_entropy", "unknown loss `cros_entropy`: did you mean `cross_entropy`?"),
            ("acuracy", "unknown metric `acuracy`: did you mean `accuracy`?"),
            (
                "momentum",
                "`adamw` has no `momentum`: it takes `lr`, `betas`, `eps`, `weight_decay`",
            ),
            ("epoc", "unknown interval `epoc`: did you mean `epoch`?"),
            ("cosine_annealing", "`cosine_annealing` needs `t_max`: add `t_max = …`"),
            ("on_stp", "`log` has no `on_stp`: did you mean `on_step`?"),
        ],
    );
}

mod shape {
    use super::*;

    #[test]
    fn only_structs_with_named_fields() {
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
                "name the fields, as in `{ model: Linear }`: parameters are called after them, `model.weight`",
            ),
        );
    }

    #[test]
    fn at_least_one_layer() {
        let text =
            "`Net` has no layers: give it a field such as `#[layer(linear(64, 10))] model: Linear`";
        fields("#[hparam] width: i64", &[("Net", text)]);
        refuses("struct Net;", Derive::Module, &[("Net", text)]);
    }

    #[test]
    fn attributes_on_the_right_level() {
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
    fn nothing_of_training_in_a_block() {
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
    fn single_attributes_once() {
        attributes(
            "#[loss(mse_loss)] #[loss(l1_loss)] #[optimizer(sgd, lr = 0.1)] #[optimizer(sgd, lr = 0.2)]",
            &[
                ("loss", "`#[loss]` is given twice: keep one"),
                ("optimizer", "`#[optimizer]` is given twice: keep one"),
            ],
        );
    }

    #[test]
    fn arguments_in_parentheses() {
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
}

mod field {
    use super::*;

    #[test]
    fn one_kind() {
        fields(
            &format!("{LAYER}, #[hparam] #[state] width: i64"),
            &[(
                "state",
                "field `width` is `#[hparam]` already: take `#[hparam]` or `#[state]` away",
            )],
        );
        fields(
            &format!("{LAYER}, #[layr(relu)] act: Relu"),
            &[("layr", "field `act`: did you mean `#[layer]`?")],
        );
    }

    #[test]
    fn names_of_the_builder_and_of_the_context_are_taken() {
        fields(
            &format!(
                "{LAYER}, #[hparam] build: i64, #[hparam] hyperparameters: i64, #[layer(relu)] cx: Relu"
            ),
            &[
                (
                    "build",
                    "`build` is a method of the builder: give the hyperparameter another name",
                ),
                (
                    "hyperparameters",
                    "`hyperparameters` is a method of the builder: give the hyperparameter another name",
                ),
                ("cx", "`cx` is the context in `forward`: give the layer another name"),
            ],
        );
    }

    #[test]
    fn defaults_of_hyperparameters() {
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
    fn initial_states() {
        fields(
            &format!("{LAYER}, #[state(default = 3)] seen: i64, #[state(1, 2)] last: (i64, i64)"),
            &[
                ("default = 3", "write the value alone: `#[state(3)]`"),
                ("2", "`#[state]` takes one value: put several into a tuple"),
            ],
        );
    }

    #[test]
    fn precisions() {
        let precision = |args: &str, at: &str, text: &str| {
            fields(&format!("#[layer(relu)] #[precision({args})] act: Relu"), &[(at, text)]);
        };
        let all = "`fp32`, `fp16`, `bf16`, `fp64` or `autocast = off`";
        precision("bfloat16", "bfloat16", "unknown precision `bfloat16`: did you mean `bf16`?");
        precision("int8", "int8", &format!("unknown precision `int8`: expected {all}"));
        precision("\"fp32\"", "\"fp32\"", &format!("expected {all}"));
        precision("", "precision", &format!("name the precision: {all}"));
        precision("fp32, fp16", "fp16", "a layer runs in one precision: keep one");
        precision("autocast = on", "on", "unknown autocast `on`: expected `off`");
        precision("autocast = false", "false", "`autocast` is `off`");
    }

    #[test]
    fn precision_is_for_layers() {
        fields(
            &format!(
                "{LAYER}, #[hparam] #[precision(fp32)] width: i64, #[state] #[precision(fp32)] seen: i64"
            ),
            &[
                ("precision", "`#[precision]` is for layers: `width` is `#[hparam]`"),
                ("precision", "`#[precision]` is for layers: `seen` is `#[state]`"),
            ],
        );
    }
}

mod layers {
    use super::*;

    #[test]
    fn unknown_names() {
        layer("lienar(64, 10)", &[("lienar", "unknown layer `lienar`: did you mean `linear`?")]);
        let found = run(
            &format!("{TRAINED} struct Net {{ #[layer(my_block(64))] model: Block }}"),
            Derive::LightningModule,
        );
        let errors = found.expect_err("an unknown layer");
        assert!(errors[0].1.starts_with("unknown layer `my_block`: expected `linear`, `conv2d`,"));
        assert!(
            errors[0].1.ends_with(
                "a function of your own is called by its path, as in `self::my_block(…)`"
            )
        );
    }

    #[test]
    fn numbers_of_arguments() {
        layer(
            "linear(64)",
            &[("linear", "`linear` takes `in_features`, `out_features`; got 1 argument")],
        );
        layer("linear", &[("linear", "`linear` takes `in_features`, `out_features`; got none")]);
        layer(
            "linear(64, 10, false)",
            &[(
                "linear",
                "`linear` takes `in_features`, `out_features`; got 3 arguments; options are given by name, as in `bias = …`",
            )],
        );
        layer("relu(1)", &[("relu", "`relu` takes no arguments; got 1 argument")]);
    }

    #[test]
    fn keywords() {
        layer(
            "linear(64, 10, biass = false)",
            &[("biass", "`linear` has no `biass`: did you mean `bias`?")],
        );
        layer(
            "linear(64, 10, bias = false, bias = true)",
            &[("bias", "`bias` is given twice: keep one")],
        );
        layer(
            "linear(64, in_features = 3)",
            &[("in_features", "`in_features` is given twice: keep one")],
        );
        layer("linear(out_features = 10, 64)", &[("64", "arguments without a name come first")]);
        layer(
            "relu(inplace = true)",
            &[("inplace", "`relu` has no `inplace`: nothing is overwritten here: leave it out")],
        );
        layer(
            "transformer_encoder_layer(64, 8, batch_first = true)",
            &[(
                "batch_first",
                "`transformer_encoder_layer` has no `batch_first`: batches always come first here: leave it out",
            )],
        );
    }

    #[test]
    fn literals_in_range() {
        layer("dropout(20)", &[("20", "`p` of `dropout` takes a value between 0 and 1, not 20")]);
        layer("linear(0, 10)", &[("0", "`in_features` of `linear` takes a value above 0, not 0")]);
        layer(
            "conv2d(1, 8, 3, padding = -1)",
            &[("-1", "`padding` of `conv2d` takes a value of at least 0, not -1")],
        );
    }

    #[test]
    fn spellings_of_python_and_question_marks() {
        layer("Linear(64, 10)", &[("Linear", "`Linear` is written `linear` here")]);
        layer(
            "nn::BatchNorm1d(64)",
            &[("BatchNorm1d", "`BatchNorm1d` is written `batch_norm1d` here")],
        );
        layer("nn.ReLU()", &[("ReLU", "`ReLU` is written `relu` here")]);
        layer(
            "linear(64, 10)?",
            &[("?", "take the `?` away: a failing `linear` is an error of `build`")],
        );
    }

    #[test]
    fn containers() {
        layer(
            "sequential()",
            &[(
                "sequential",
                "`sequential` needs layers, as in `sequential(linear(64, 10), relu)`",
            )],
        );
        layer(
            "sequential(relu, bias = true)",
            &[("bias", "`sequential` takes layers: `bias` belongs inside one of them")],
        );
        layer(
            "relu, relu",
            &[("relu", "a field holds one layer: wrap several in `sequential(…)`")],
        );
        layer(
            "repeat(3, relu)",
            &[(
                "repeat",
                "`repeat` takes a count and a layer by index: `repeat(6, |i| linear(64, 64))`",
            )],
        );
        layer(
            "optional(relu)",
            &[(
                "optional",
                "`optional` takes a condition and a layer: `optional(norm, layer_norm(64))`",
            )],
        );
        layer(
            "checkpoint(relu, on = true)",
            &[(
                "checkpoint",
                "`checkpoint` takes a layer and perhaps a condition: `checkpoint(linear(64, 64), enabled = use_checkpointing)`",
            )],
        );
    }

    #[test]
    fn mistakes_inside_containers_come_together() {
        layer(
            "sequential(liner(1, 2), repeat(2, |_| dropout(2.0)), optional(x, rellu))",
            &[
                ("liner", "unknown layer `liner`: did you mean `linear`?"),
                ("2.0", "`p` of `dropout` takes a value between 0 and 1, not 2.0"),
                ("rellu", "unknown layer `rellu`: did you mean `relu`?"),
            ],
        );
    }

    #[test]
    fn everything_else_is_rust() {
        for build in [
            "Block::builder(64).build()?",
            "self::make(64)?",
            "Relu",
            "sequential(linear(64, 10), Block::new(3))",
            "linear(in_features = 64, out_features = 10, bias = false)",
            "transformer_encoder_layer(64, nhead = 8)",
            "relu()",
        ] {
            layer(build, &[]);
        }
    }
}

mod forward {
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
                "`forward` never runs `head`: call it in the closure, where `model`, `head` are functions, or take the field away",
            )],
        );
        for forward in [
            "|x| model(&head(x)?)",
            "|x| self.run(x)",
            "|x| model(self.head.weight())",
            "Self::run",
        ] {
            refuses(&source(forward), Derive::LightningModule, &[]);
        }
    }
}

mod training {
    use super::*;

    const OPTIMIZER: &str = "#[optimizer(sgd, lr = 0.1)]";

    #[track_caller]
    fn training(attrs: &str, expected: &[(&str, &str)]) {
        attributes(&format!("{OPTIMIZER} {attrs}"), expected);
    }

    #[test]
    fn a_loss() {
        training("", &[("Net", "`Net` has no loss: add one, as in `#[loss(cross_entropy)]`")]);
        training("#[loss(mse)]", &[("mse", "unknown loss `mse`: did you mean `mse_loss`?")]);
        let names = "`cross_entropy`, `nll_loss`, `mse_loss`, `l1_loss`, `binary_cross_entropy` or \
                     `binary_cross_entropy_with_logits`";
        training("#[loss]", &[("loss", &format!("name the loss: {names}"))]);
        training("#[loss(\"mse\")]", &[("\"mse\"", &format!("name the loss first: {names}"))]);
        training(
            "#[loss(cross_entropy, label_smoothing = 0.1)]",
            &[(
                "label_smoothing = 0.1",
                "`cross_entropy` takes no options: for a loss of your own write `#[loss(with = |output, target| …)]`",
            )],
        );
        training(
            "#[loss(with = f, mse_loss)]",
            &[("mse_loss", "`#[loss(with = …)]` takes nothing else")],
        );
        training(
            "#[loss(with = |o| f(o))]",
            &[("|o| f(o)", "a loss has two arguments: `|output, target| …`")],
        );
    }

    #[test]
    fn a_loss_that_autocast_takes() {
        training(
            "#[loss(binary_cross_entropy)]",
            &[(
                "binary_cross_entropy",
                "cuda autocast refuses `binary_cross_entropy`: use `binary_cross_entropy_with_logits` and take the sigmoid off the model's end",
            )],
        );
    }

    #[test]
    fn one_sigmoid() {
        let source = |last| {
            format!(
                "#[loss(binary_cross_entropy_with_logits)] {OPTIMIZER} struct Net {{ #[layer(sequential(linear(4, 1), {last}))] model: Sequential }}"
            )
        };
        refuses(
            &source("sigmoid"),
            Derive::LightningModule,
            &[(
                "sigmoid",
                "`binary_cross_entropy_with_logits` applies the sigmoid itself: take this one away",
            )],
        );
        refuses(&source("identity"), Derive::LightningModule, &[]);
    }

    #[test]
    fn a_loss_not_divided_for_accumulation() {
        training(
            "#[loss(with = |o, t| Ok(mse(o, t)? / self.accumulation_steps))]",
            &[(
                "self.accumulation_steps",
                "the trainer divides the loss by the accumulation window: take this division away",
            )],
        );
        training("#[loss(with = |o, t| { Ok(mse(o, t)? / 2.0) })]", &[]);
    }

    #[track_caller]
    fn metrics(attrs: &str, expected: &[(&str, &str)]) {
        training(&format!("#[loss(mse_loss)] {attrs}"), expected);
    }

    #[test]
    fn metrics_with_their_keys() {
        metrics("#[metric(top_k)]", &[("top_k", "`top_k` needs `k`: add `k = …`")]);
        metrics("#[metric(top_k, k = 0)]", &[("0", "`k` of `top_k` takes a value above 0, not 0")]);
        metrics(
            "#[metric(accuracy, k = 5)]",
            &[("k", "`accuracy` has no `k`: it takes `name`, `stage`")],
        );
        metrics("#[metric(accuracy, name)]", &[("name", "`name` needs a value: `name = …`")]);
        metrics(
            "#[metric(accuracy, \"acc\")]",
            &[("\"acc\"", "expected `key = value`, as in `name = …`")],
        );
        metrics(
            "#[metric(with = Mine)]",
            &[("with", "a metric of your own needs a name: add `name = \"…\"`")],
        );
    }

    #[test]
    fn metrics_with_names_of_their_own() {
        metrics(
            "#[metric(accuracy, name = acc)]",
            &[("acc", "a metric's name is a string: `name = \"acc\"`")],
        );
        metrics(
            "#[metric(accuracy, name = \"a c\")]",
            &[("\"a c\"", "a metric's name has letters, digits and `_` only: `name = \"acc\"`")],
        );
        metrics(
            "#[metric(accuracy, name = \"loss\")]",
            &[("accuracy", "`loss` is logged already: give the metric another name")],
        );
        metrics(
            "#[metric(top_k, k = 3)] #[metric(top_k, k = 5)]",
            &[(
                "top_k",
                "two metrics are called `top_k`: give this one a name, as in `name = \"top_k_2\"`",
            )],
        );
        metrics("#[metric(accuracy, stage = train)] #[metric(accuracy, stage = val)]", &[]);
    }

    #[test]
    fn stages() {
        metrics(
            "#[metric(accuracy, stage = validation)]",
            &[("validation", "unknown stage `validation`: did you mean `val`?")],
        );
        metrics(
            "#[metric(accuracy, stage = \"val\")]",
            &[("\"val\"", "write it without quotes: `stage = val`")],
        );
    }

    #[test]
    fn logged_names() {
        metrics(
            "#[metric(accuracy, name = \"acc\", stage = val)] #[log(train_acc)]",
            &[(
                "train_acc",
                "unknown logged value `train_acc`: expected `train_loss`, `val_loss` or `val_acc`; for a new one add `#[metric(…, name = \"acc\")]`",
            )],
        );
        metrics(
            "#[log(train_los)]",
            &[("train_los", "unknown logged value `train_los`: did you mean `train_loss`?")],
        );
        metrics("#[log]", &[("log", "name what is logged: `train_loss` or `val_loss`")]);
        metrics(
            "#[log(on_step = true)]",
            &[("on_step = true", "name what is logged first: `train_loss` or `val_loss`")],
        );
        metrics(
            "#[log(val_loss)] #[log(val_loss, prog_bar)]",
            &[("val_loss", "`#[log(val_loss)]` is given twice: keep one")],
        );
    }

    #[test]
    fn log_flags() {
        metrics(
            "#[log(val_loss, progbar)]",
            &[("progbar", "`log` has no `progbar`: did you mean `prog_bar`?")],
        );
        metrics(
            "#[log(val_loss, prog_bar, prog_bar)]",
            &[("prog_bar", "`prog_bar` is given twice: keep one")],
        );
        metrics("#[log(val_loss, prog_bar = 1)]", &[("1", "`prog_bar` is `true` or `false`")]);
        metrics(
            "#[log(val_loss, \"prog_bar\")]",
            &[("\"prog_bar\"", "expected flags: `on_step`, `on_epoch`, `prog_bar`")],
        );
        metrics(
            "#[log(val_loss, on_epoch = false)]",
            &[(
                "val_loss",
                "`val_loss` is logged neither per step nor per epoch: add `on_step` or `on_epoch`",
            )],
        );
    }

    #[test]
    fn replaced_steps() {
        let own = "#[training_step(Self::train)]";
        metrics(
            &format!("{own} #[log(train_loss)]"),
            &[(
                "train_loss",
                "`#[log]` has no effect: `training_step` is yours, log `train_loss` there",
            )],
        );
        metrics(
            &format!("{own} #[metric(accuracy, stage = train)]"),
            &[("accuracy", "`#[metric]` has no effect: `training_step` is yours, log it there")],
        );
        metrics(
            &format!("{own} #[validation_step(Self::val)] #[log(val_loss)]"),
            &[
                ("loss", "`#[loss]` has no effect: both steps are yours: compute and log there"),
                ("log", "`#[log]` has no effect: both steps are yours: compute and log there"),
            ],
        );
        training(&format!("{own} #[validation_step(Self::val)]"), &[]);
        metrics(
            "#[training_step(|b| b)]",
            &[(
                "training_step",
                "`#[training_step]` takes the path of a function, as in `#[training_step(Self::my_training_step)]`, with the signature `fn(&mut Self, &Batch, &mut Step<'_>) -> Result<Tensor>`",
            )],
        );
    }

    #[test]
    fn hooks_are_functions() {
        metrics(
            "#[on_train_start] #[on_train_end(1)]",
            &[
                (
                    "on_train_start",
                    "`#[on_train_start]` takes the path of a function, as in `#[on_train_start(Self::my_on_train_start)]`, with the signature `fn(&mut Self) -> Result<()>`",
                ),
                (
                    "on_train_end",
                    "`#[on_train_end]` takes the path of a function, as in `#[on_train_end(Self::my_on_train_end)]`, with the signature `fn(&mut Self) -> Result<()>`",
                ),
            ],
        );
    }
}

mod optimizer {
    use super::*;

    #[track_caller]
    fn optimizer(attrs: &str, expected: &[(&str, &str)]) {
        attributes(&format!("#[loss(mse_loss)] {attrs}"), expected);
    }

    #[track_caller]
    fn scheduler(args: &str, expected: &[(&str, &str)]) {
        optimizer(&format!("#[optimizer(sgd, lr = 0.1)] #[scheduler({args})]"), expected);
    }

    #[test]
    fn an_optimizer() {
        optimizer(
            "",
            &[("Net", "`Net` has no optimizer: add one, as in `#[optimizer(adamw, lr = 1e-3)]`")],
        );
        optimizer(
            "#[scheduler(step_lr, step_size = 5)]",
            &[(
                "scheduler",
                "a scheduler needs an optimizer: add one, as in `#[optimizer(adamw, lr = 1e-3)]`",
            )],
        );
        optimizer(
            "#[optimizer(lion, lr = 0.1)]",
            &[("lion", "unknown optimizer `lion`: expected `adamw`, `adam` or `sgd`")],
        );
        optimizer(
            "#[optimizer(AdamW, lr = 0.1)]",
            &[("AdamW", "unknown optimizer `AdamW`: did you mean `adamw`?")],
        );
        optimizer(
            "#[optimizer(lr = 0.1)]",
            &[("lr = 0.1", "name the optimizer first: `adamw`, `adam` or `sgd`")],
        );
    }

    #[test]
    fn keys() {
        optimizer("#[optimizer(adamw)]", &[("adamw", "`adamw` needs `lr`: add `lr = …`")]);
        optimizer(
            "#[optimizer(sgd, learning_rate = 0.1)]",
            &[("learning_rate", "`sgd` has no `learning_rate`: did you mean `lr`?")],
        );
        optimizer(
            "#[optimizer(sgd, lr = 0.1, lr = 0.2)]",
            &[("lr", "`lr` is given twice: keep one")],
        );
        optimizer(
            "#[optimizer(sgd, lr = -0.1)]",
            &[("-0.1", "`lr` of `sgd` takes a value of at least 0, not -0.1")],
        );
    }

    #[test]
    fn combinations_of_keys() {
        optimizer(
            "#[optimizer(sgd, lr = 0.1, nesterov = true)]",
            &[("nesterov", "`nesterov` needs a momentum: add `momentum = 0.9`")],
        );
        optimizer("#[optimizer(sgd, lr = 0.1, nesterov = true, momentum = 0.9)]", &[]);
        let betas = "`betas` are two values below 1, as in `(0.9, 0.999)`";
        optimizer("#[optimizer(adam, lr = 0.1, betas = (0.9, 1.0))]", &[("(0.9, 1.0)", betas)]);
        optimizer("#[optimizer(adam, lr = 0.1, betas = 0.9)]", &[("0.9", betas)]);
        optimizer("#[optimizer(adam, lr = 0.1, betas = self.betas)]", &[]);
    }

    #[test]
    fn schedulers() {
        scheduler(
            "cosine, t_max = 5",
            &[("cosine", "unknown scheduler `cosine`: did you mean `cosine_annealing`?")],
        );
        scheduler(
            "one_cycle, max_lr = 0.1",
            &[("one_cycle", "`one_cycle` needs `total_steps`: add `total_steps = …`")],
        );
        scheduler(
            "step_lr, step_size = 5, interval = batch",
            &[("batch", "unknown interval `batch`: did you mean `step`?")],
        );
        scheduler(
            "step_lr, step_size = 5, interval = \"epoch\"",
            &[("\"epoch\"", "write it without quotes: `interval = epoch`")],
        );
        scheduler(
            "step_lr, step_size = 5, interval = 3",
            &[("3", "`interval` is `step` or `epoch`")],
        );
    }

    #[test]
    fn counts_of_the_interval() {
        let total = "total_steps = plan.estimated_stepping_batches";
        let text = "but the scheduler moves every epoch";
        scheduler(
            &format!("one_cycle, max_lr = 0.1, {total}, interval = epoch"),
            &[(
                "epoch",
                &format!("`total_steps` counts optimizer steps, {text}: write `interval = step`"),
            )],
        );
        scheduler(
            "cosine_annealing, t_max = plan.estimated_stepping_batches",
            &[(
                "cosine_annealing",
                &format!("`t_max` counts optimizer steps, {text}: add `interval = step`"),
            )],
        );
        scheduler(&format!("one_cycle, max_lr = 0.1, {total}"), &[]);
    }

    #[test]
    fn a_replaced_one() {
        optimizer(
            "#[configure_optimizers(Self::mine)] #[optimizer(sgd, lr = 0.1)]",
            &[(
                "optimizer",
                "`#[optimizer]` has no effect: `#[configure_optimizers]` replaces it: keep one of the two",
            )],
        );
        optimizer("#[configure_optimizers(Self::mine)]", &[]);
    }
}

mod advice {
    use super::*;

    #[test]
    fn a_small_eps() {
        let source = |eps| {
            format!(
                "#[loss(mse_loss)] #[optimizer(adamw, lr = 0.1, eps = {eps})] struct Net {{ {LAYER} }}"
            )
        };
        advises(&source("1e-8"), &[("1e-8", "EPS_UNDERFLOWS_IN_HALF_PRECISION")]);
        advises(&source("1e-4"), &[]);
        advises(&source("self.eps"), &[]);
    }

    #[test]
    fn batch_norm_behind_half_precision() {
        let source = |first, second| {
            format!(
                "{TRAINED} struct Net {{ #[layer(linear(4, 4))] {first} a: Linear, \
                 #[layer(sequential(relu, batch_norm1d(4)))] {second} b: Sequential }}"
            )
        };
        advises(
            &source("#[precision(fp16)]", ""),
            &[("batch_norm1d", "BATCH_NORM_AFTER_LOW_PRECISION")],
        );
        advises(&source("#[precision(fp16)]", "#[precision(fp32)]"), &[]);
        advises(&source("#[precision(fp32)]", ""), &[]);
        advises(&source("", ""), &[]);
    }
}

/// The attributes that rustc lets through are the ones that are read.
#[test]
fn both_derives_register_every_attribute() {
    let source: syn::File = parse_str(include_str!("../lib.rs")).expect("a Rust file");
    let known = [crate::symbol::ON_STRUCT, crate::symbol::ON_FIELD].concat();
    let mut derives = 0;
    for item in source.items {
        let syn::Item::Fn(function) = item else { continue };
        for attr in function.attrs.iter().filter(|a| a.path().is_ident("proc_macro_derive")) {
            let syn::Meta::List(list) = &attr.meta else { continue };
            let text = list.tokens.to_string();
            let names = text.split_once('(').map(|(_, names)| names.trim_end_matches(')'));
            let names: Vec<&str> = names.unwrap_or_default().split(',').map(str::trim).collect();
            assert_eq!(names, known, "{}", function.sig.ident);
            derives += 1;
        }
    }
    assert_eq!(derives, 2);
}
