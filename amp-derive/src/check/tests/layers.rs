//! Tests of the rules about expressions that build layers.

use super::*;

#[test]
fn unknown_layers_are_refused_with_the_closest_name() {
    layer("lienar(64, 10)", &[("lienar", "unknown layer `lienar`: did you mean `linear`?")]);
    layer(
        "my_block(64)",
        &[(
            "my_block",
            "unknown layer `my_block`: call a function of your own by its path, \
             `self::my_block(…)`; the layers are in the documentation of \
             `derive(LightningModule)`",
        )],
    );
}

#[test]
fn wrong_numbers_of_arguments_are_refused() {
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
fn wrong_keywords_are_refused() {
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
    layer(
        "linear(out_features = 10, 64)",
        &[("64", "positional arguments must come before named ones: name this argument too")],
    );
    layer(
        "relu(inplace = true)",
        &[("inplace", "`relu` has no `inplace`: layers never work in place: leave it out")],
    );
    layer(
        "transformer_encoder_layer(64, 8, batch_first = true)",
        &[(
            "batch_first",
            "`transformer_encoder_layer` has no `batch_first`: batches always have the batch dimension first: leave it out",
        )],
    );
}

#[test]
fn literals_out_of_range_are_refused() {
    layer("dropout(20)", &[("20", "`p` of `dropout` takes a value between 0 and 1, not 20")]);
    layer("linear(0, 10)", &[("0", "`in_features` of `linear` takes a value above 0, not 0")]);
    layer(
        "conv2d(1, 8, 3, padding = -1)",
        &[("-1", "`padding` of `conv2d` takes a value of at least 0, not -1")],
    );
    layer(
        "max_pool2d(2, stride = 0)",
        &[("0", "`stride` of `max_pool2d` takes a value of at least 1, not 0")],
    );
    layer(
        "conv2d(1, 8, 3, padding_mode = mirror)",
        &[(
            "mirror",
            "unknown padding_mode `mirror`: expected `zeros`, `reflect`, `replicate` or `circular`",
        )],
    );
}

#[test]
fn spellings_of_python_and_question_marks_are_refused() {
    layer("Linear(64, 10)", &[("Linear", "`Linear` is written `linear` here")]);
    layer(
        "nn::BatchNorm1d(64)",
        &[("BatchNorm1d", "`BatchNorm1d` is written `batch_norm1d` here")],
    );
    layer("nn.ReLU()", &[("ReLU", "`ReLU` is written `relu` here")]);
    layer("linear(64, 10)?", &[("?", "remove the `?`: `build` returns the error of `linear`")]);
}

#[test]
fn wrong_arguments_of_containers_are_refused() {
    layer(
        "sequential()",
        &[("sequential", "`sequential` needs layers, as in `sequential(linear(64, 10), relu)`")],
    );
    layer(
        "sequential(relu, bias = true)",
        &[("bias", "`sequential` takes only layers: move `bias` into one of them")],
    );
    layer("relu, relu", &[("relu", "a field holds one layer: wrap several in `sequential(…)`")]);
    layer(
        "repeat(3, relu)",
        &[("repeat", "`repeat` takes a count and a closure: `repeat(6, |i| linear(64, 64))`")],
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
            "`checkpoint` takes a layer and optionally a condition: `checkpoint(linear(64, 64), enabled = use_checkpointing)`",
        )],
    );
}

#[test]
fn all_mistakes_inside_containers_are_reported() {
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
fn any_other_expression_is_rust() {
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
