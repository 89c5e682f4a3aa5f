//! Tests of the rules about losses, metrics, logging and the user's functions.

use super::*;

const OPTIMIZER: &str = "#[optimizer(sgd, lr = 0.1)]";

#[track_caller]
fn training(attrs: &str, expected: &[(&str, &str)]) {
    attributes(&format!("{OPTIMIZER} {attrs}"), expected);
}

#[test]
fn a_missing_or_wrong_loss_is_refused() {
    training("", &[("Net", "`Net` has no loss: add one, as in `#[loss(cross_entropy)]`")]);
    training("#[loss(mse)]", &[("mse", "unknown loss `mse`: did you mean `mse_loss`?")]);
    let names = "`cross_entropy`, `nll_loss`, `mse_loss`, `l1_loss`, `huber_loss`, `smooth_l1_loss`, `binary_cross_entropy_with_logits`, `kl_div`, `poisson_nll_loss`, `hinge_embedding_loss`, `ctc_loss`, `cosine_similarity`, `info_nce`, `dice` or `focal`";
    training("#[loss]", &[("loss", &format!("name the loss: {names}"))]);
    training("#[loss(\"mse\")]", &[("\"mse\"", &format!("name the loss first: {names}"))]);
    training(
        "#[loss(cross_entropy, label_smooting = 0.1)]",
        &[(
            "label_smooting",
            "`cross_entropy` has no `label_smooting`: did you mean `label_smoothing`?",
        )],
    );
    training(
        "#[loss(cross_entropy, label_smoothing = 1.5)]",
        &[("1.5", "`label_smoothing` of `cross_entropy` takes a value between 0 and 1, not 1.5")],
    );
    training(
        "#[loss(huber_loss, delta = 0.0)]",
        &[("0.0", "`delta` of `huber_loss` takes a value above 0, not 0.0")],
    );
    training(
        "#[loss(mse_loss, reduction = sum)]",
        &[("reduction", "`mse_loss` has no `reduction`: it takes no options")],
    );
    training(
        "#[loss(value = Own, of = examples)]",
        &[("of", "`loss` has no `of`: it takes `value`")],
    );
    training(
        "#[loss(with = f, mse_loss)]",
        &[("mse_loss", "`loss` has no `mse_loss`: it takes `with`, `of`, `counts`")],
    );
    training(
        "#[loss(with = f, of = rows)]",
        &[("rows", "unknown of `rows`: expected `examples` or `batch`")],
    );
    training(
        "#[loss(with = |o| f(o))]",
        &[("|o| f(o)", "a loss takes two arguments: `|output, target| …`")],
    );
}

/// Checks that a model with `manual_step` needs no loss. If the user has also written the
/// validation step, a loss is refused, because no step would compute the loss.
#[test]
fn a_model_with_a_manual_step_needs_no_loss() {
    training("#[manual_step(f)] #[validation_step(g)]", &[]);
    training("#[manual_step(f)]", &[]);
    training(
        "#[manual_step(f)] #[validation_step(g)] #[loss(mse_loss)]",
        &[(
            "loss",
            "`#[loss]` has no effect, because you have written the training and the \
             validation step: compute and log losses and metrics in these functions",
        )],
    );
}

#[test]
fn a_loss_that_autocast_refuses_is_refused() {
    training(
        "#[loss(binary_cross_entropy)]",
        &[(
            "binary_cross_entropy",
            "cuda autocast refuses `binary_cross_entropy`: use `binary_cross_entropy_with_logits` and remove the sigmoid from the model's end",
        )],
    );
}

/// Checks the last layer of a model whose loss and metrics are `attrs`.
#[track_caller]
fn ends_in(last: &str, attrs: &str, expected: &[(&str, &str)]) {
    let source = format!(
        "{attrs} {OPTIMIZER} struct Net {{ #[layer(sequential(linear(4, 1), {last}))] model: Sequential }}"
    );
    refuses(&source, Derive::LightningModule, expected);
}

#[test]
fn a_second_sigmoid_or_softmax_is_refused() {
    let loss = "#[loss(binary_cross_entropy_with_logits)]";
    ends_in(
        "sigmoid",
        loss,
        &[(
            "sigmoid",
            "`binary_cross_entropy_with_logits` applies the sigmoid itself: remove this sigmoid",
        )],
    );
    ends_in("identity", loss, &[]);
    ends_in(
        "softmax(1)",
        "#[loss(cross_entropy)]",
        &[("softmax", "`cross_entropy` applies the softmax itself: remove this softmax")],
    );
    ends_in("log_softmax(1)", "#[loss(nll_loss)]", &[]);
}

#[test]
fn a_metric_of_logits_is_refused_after_a_sigmoid() {
    ends_in(
        "sigmoid",
        "#[loss(mse_loss)] #[metric(accuracy)] #[metric(binary_f_beta, beta = 1.0)]",
        &[(
            "sigmoid",
            "`binary_f_beta` takes logits and compares them with 0, so that every output of this \
             sigmoid counts as positive: remove the sigmoid, and apply it in the loss",
        )],
    );
    ends_in("sigmoid", "#[loss(mse_loss)] #[metric(auroc)]", &[]);
    ends_in("identity", "#[loss(mse_loss)] #[metric(binary_accuracy)]", &[]);
}

#[test]
fn a_loss_divided_for_accumulation_is_refused() {
    training(
        "#[loss(with = |o, t| Ok(mse(o, t)? / self.accumulation_steps))]",
        &[(
            "self.accumulation_steps",
            "the trainer divides the loss by the number of accumulated batches: remove this division",
        )],
    );
    training("#[loss(with = |o, t| { Ok(mse(o, t)? / 2.0) })]", &[]);
}

#[track_caller]
fn metrics(attrs: &str, expected: &[(&str, &str)]) {
    training(&format!("#[loss(mse_loss)] {attrs}"), expected);
}

#[test]
fn wrong_keys_of_metrics_are_refused() {
    metrics("#[metric(top_k)]", &[("top_k", "`top_k` needs `k`: add `k = …`")]);
    metrics("#[metric(top_k, k = 0)]", &[("0", "`k` of `top_k` takes a value above 0, not 0")]);
    metrics(
        "#[metric(accuracy, k = 5)]",
        &[(
            "k",
            "`accuracy` has no `k`: it takes `ignore_index`, `classes`, `name`, `stage`, `output`, `target`",
        )],
    );
    metrics("#[metric(accuracy, name)]", &[("name", "`name` needs a value: `name = …`")]);
    metrics(
        "#[metric(accuracy, \"acc\")]",
        &[("\"acc\"", "expected `key = value`, as in `ignore_index = …`")],
    );
    metrics("#[metric(with = Mine)]", &[("with", "a custom metric needs a name: add `name = …`")]);
}

#[test]
fn wrong_names_of_metrics_are_refused() {
    metrics(
        "#[metric(accuracy, name = 3)]",
        &[("3", "a metric's name must be a word, as in `name = acc`")],
    );
    metrics(
        "#[metric(accuracy, name = \"a c\")]",
        &[("\"a c\"", "a metric's name may have only letters, digits and `_`, as in `name = acc`")],
    );
    metrics(
        "#[metric(accuracy, name = \"loss\")]",
        &[("accuracy", "`loss` is logged already: give the metric another name")],
    );
    metrics(
        "#[metric(top_k, k = 3)] #[metric(top_k, k = 5)]",
        &[(
            "top_k",
            "two metrics are called `top_k`: give this one a name, as in `name = top_k_2`",
        )],
    );
    metrics("#[metric(accuracy, stage = train)] #[metric(accuracy, stage = val)]", &[]);
}

#[test]
fn unknown_stages_are_refused() {
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
fn unknown_logged_names_are_refused() {
    metrics(
        "#[metric(accuracy, name = \"acc\", stage = val)] #[log(train_acc)]",
        &[("train_acc", "`train_acc` is not computed: remove `stage = val` from `acc`")],
    );
    metrics(
        "#[log(train_los)]",
        &[("train_los", "unknown logged value `train_los`: did you mean `train_loss`?")],
    );
    metrics("#[log]", &[("log", "name the values to log: `train_loss` or `val_loss`")]);
    metrics(
        "#[log(on_step = true)]",
        &[(
            "on_step = true",
            "write the name of a logged value before the flags: `train_loss` or `val_loss`",
        )],
    );
    metrics(
        "#[log(val_loss)] #[log(val_loss, prog_bar)]",
        &[("val_loss", "`#[log(val_loss)]` is given twice: keep one")],
    );
}

#[test]
fn an_unknown_logged_name_is_explained() {
    metrics(
        "#[log(train_speed)]",
        &[(
            "train_speed",
            "unknown logged value `train_speed`: expected `train_loss` or `val_loss`; to compute \
             a new metric, add `#[metric(…, name = speed)]`",
        )],
    );
}

#[test]
fn one_log_attribute_takes_several_values() {
    metrics("#[log(train_loss(on_epoch), val_loss(on_step, prog_bar))]", &[]);
    metrics(
        "#[log(val_loss(progbar), train_los(on_step), val_loss(prog_bar))]",
        &[
            ("progbar", "`log` has no `progbar`: did you mean `prog_bar`?"),
            ("train_los", "unknown logged value `train_los`: did you mean `train_loss`?"),
            ("val_loss", "`#[log(val_loss)]` is given twice: keep one"),
        ],
    );
    metrics(
        "#[log(val_loss(prog_bar), train_loss)]",
        &[("train_loss", "add a flag for `train_loss`: `train_loss(prog_bar)`")],
    );
}

#[test]
fn wrong_flags_of_log_are_refused() {
    metrics(
        "#[log(val_loss, progbar)]",
        &[("progbar", "`log` has no `progbar`: did you mean `prog_bar`?")],
    );
    metrics(
        "#[log(val_loss, prog_bar, prog_bar)]",
        &[("prog_bar", "`prog_bar` is given twice: keep one")],
    );
    metrics("#[log(val_loss, prog_bar = 1)]", &[("1", "`prog_bar` must be `true` or `false`")]);
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
fn attributes_without_effect_are_refused() {
    let own = "#[training_step(Self::train)]";
    metrics(
        &format!("{own} #[log(train_loss)]"),
        &[(
            "train_loss",
            "`#[log]` has no effect, because you have written `training_step`: log `train_loss` in \
             `training_step`",
        )],
    );
    metrics(
        &format!("{own} #[metric(accuracy, stage = train)]"),
        &[(
            "accuracy",
            "`#[metric]` has no effect, because you have written `training_step`: log the metric \
             in `training_step`",
        )],
    );
    metrics(
        &format!("{own} #[validation_step(Self::val)] #[log(val_loss)]"),
        &[
            (
                "loss",
                "`#[loss]` has no effect, because you have written the training and the \
                 validation step: compute and log losses and metrics in these functions",
            ),
            (
                "log",
                "`#[log]` has no effect, because you have written the training and the \
                 validation step: compute and log losses and metrics in these functions",
            ),
        ],
    );
    training(&format!("{own} #[validation_step(Self::val)]"), &[]);
    training(
        "#[training_step(Self::train, captured, of = examples, counts = words)] #[validation_step(Self::val)]",
        &[],
    );
    training(
        "#[training_step(Self::train, counts = |batch| words(batch), captured)] #[validation_step(Self::val)]",
        &[],
    );
    training("#[loss(mse_loss)] #[test_step(Self::test)] #[predict_step(Self::predict)]", &[]);
    metrics(
        "#[training_step(Self::train, of = words, weight = 1)]",
        &[("weight", "`training_step` has no `weight`: it takes `of`, `counts`")],
    );
    metrics(
        "#[validation_step(Self::val, of = examples)]",
        &[(
            "validation_step",
            "`#[validation_step]` takes the path of a function, as in `#[validation_step(Self::my_validation_step)]`, with the signature `fn(&mut Self, &Batch, &mut Step<'_>) -> Result<()>`",
        )],
    );
    metrics(
        "#[predict_step(|b| b)]",
        &[(
            "predict_step",
            "`#[predict_step]` takes the path of a function, as in `#[predict_step(Self::my_predict_step)]`, with the signature `fn(&mut Self, &Batch, &mut Step<'_>) -> Result<Output>`",
        )],
    );
    metrics(
        "#[training_step(|b| b)]",
        &[(
            "training_step",
            "`#[training_step]` takes the path of a function, as in `#[training_step(Self::my_training_step)]`, with the signature `fn(&mut Self, &Batch, &mut Step<'_>) -> Result<Tensor>`; `captured` may follow the path",
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

#[test]
fn only_a_hook_after_a_step_takes_late() {
    metrics("#[on_train_batch_end(Self::note, late)]", &[]);
    metrics(
        "#[on_train_start(Self::start, late)] #[on_train_batch_end(Self::note, later)]",
        &[
            (
                "on_train_start",
                "`#[on_train_start]` takes the path of a function, as in `#[on_train_start(Self::my_on_train_start)]`, with the signature `fn(&mut Self) -> Result<()>`",
            ),
            (
                "on_train_batch_end",
                "`#[on_train_batch_end]` takes the path of a function, as in `#[on_train_batch_end(Self::my_on_train_batch_end)]`, with the signature `fn(&mut Self, &Tensor, Option<&StepOutcome>, &mut Hook<'_>) -> Result<()>`; `late` may follow the path",
            ),
        ],
    );
}
