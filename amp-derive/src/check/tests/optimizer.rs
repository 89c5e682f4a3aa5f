//! Tests of the rules about `#[optimizer]` and `#[scheduler]`.

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
fn a_missing_or_unknown_optimizer_is_refused() {
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
        "#[optimizer(shampoo, lr = 0.1)]",
        &[(
            "shampoo",
            "unknown optimizer `shampoo`: expected `adamw`, `adam`, `sgd`, `rmsprop`, `lion`, `muon`, `adafactor` or `lamb`",
        )],
    );
    optimizer(
        "#[optimizer(AdamW, lr = 0.1)]",
        &[("AdamW", "unknown optimizer `AdamW`: did you mean `adamw`?")],
    );
    optimizer(
        "#[optimizer(lr = 0.1)]",
        &[(
            "lr = 0.1",
            "name the optimizer first: `adamw`, `adam`, `sgd`, `rmsprop`, `lion`, `muon`, `adafactor` or `lamb`",
        )],
    );
}

#[test]
fn wrong_keys_of_optimizers_are_refused() {
    optimizer("#[optimizer(adamw)]", &[("adamw", "`adamw` needs `lr`: add `lr = …`")]);
    optimizer(
        "#[optimizer(sgd, learning_rate = 0.1)]",
        &[("learning_rate", "`sgd` has no `learning_rate`: did you mean `lr`?")],
    );
    optimizer("#[optimizer(sgd, lr = 0.1, lr = 0.2)]", &[("lr", "`lr` is given twice: keep one")]);
    optimizer(
        "#[optimizer(sgd, lr = -0.1)]",
        &[("-0.1", "`lr` of `sgd` takes a value of at least 0, not -0.1")],
    );
}

#[test]
fn fields_without_self_are_refused() {
    let source = |lr| {
        format!(
            "#[loss(mse_loss)] #[optimizer(sgd, lr = {lr})]
            struct Net {{ #[hparam] rate: f64, {LAYER} }}"
        )
    };
    refuses(
        &source("rate * 2.0"),
        Derive::LightningModule,
        &[("rate", "`rate` is a field of the model: write `self.rate`")],
    );
    for lr in ["self.rate", "rate(self)", "{ let rate = 1.0; rate }"] {
        refuses(&source(lr), Derive::LightningModule, &[]);
    }
}

#[test]
fn nesterov_without_momentum_and_wrong_betas_are_refused() {
    optimizer(
        "#[optimizer(sgd, lr = 0.1, nesterov = true)]",
        &[("nesterov", "`nesterov` needs a momentum: add `momentum = 0.9`")],
    );
    optimizer("#[optimizer(sgd, lr = 0.1, nesterov = true, momentum = 0.9)]", &[]);
    let betas = "`betas` takes two values below 1, as in `(0.9, 0.999)`";
    optimizer("#[optimizer(adam, lr = 0.1, betas = (0.9, 1.0))]", &[("(0.9, 1.0)", betas)]);
    optimizer("#[optimizer(adam, lr = 0.1, betas = 0.9)]", &[("0.9", betas)]);
    optimizer("#[optimizer(adam, lr = 0.1, betas = self.betas)]", &[]);
}

#[test]
fn wrong_schedulers_are_refused() {
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
        &[("3", "`interval` must be `step` or `epoch`")],
    );
}

#[test]
fn wrong_keys_of_schedulers_are_refused() {
    scheduler("multi_step_lr, milestones = [30, 80, 80], gamma = 0.1", &[]);
    scheduler("multi_step_lr, milestones = self.milestones.clone()", &[]);
    let rising = "`milestones` of `multi_step_lr` must be positive numbers in ascending order, \
                  as in `[30, 80]`";
    for list in ["[80, 30]", "[0, 30]", "[]", "30"] {
        scheduler(&format!("multi_step_lr, milestones = {list}"), &[(list, rising)]);
    }
    scheduler("wsd, warmup_steps = 1, decay_steps = 2, total_steps = 9, decay_type = linear", &[]);
    scheduler(
        "wsd, warmup_steps = 1, decay_steps = 2, total_steps = 9, decay_type = sqrt",
        &[("sqrt", "unknown decay_type `sqrt`: expected `linear`, `cosine` or `one_minus_sqrt`")],
    );
    scheduler("lambda_lr, lr_lambda = |epoch| 0.9_f64.powf(epoch as f64)", &[]);
    scheduler(
        "constant_lr, total_iters = 3, factor = -1.0",
        &[("-1.0", "`factor` of `constant_lr` takes a value above 0, not -1.0")],
    );
    scheduler(
        "linear, total_iters = 3",
        &[("linear", "unknown scheduler `linear`: did you mean `linear_lr`?")],
    );
}

#[test]
fn an_own_scheduler_needs_an_interval() {
    scheduler("InverseRoot, warmup_steps = 100, interval = step", &[]);
    scheduler("my::InverseRoot, interval = epoch", &[]);
    scheduler("value = my::schedule(), interval = step", &[]);
    let when = "the scheduler needs an interval: add `interval = step` or `interval = epoch`";
    scheduler("my::InverseRoot, warmup_steps = 100", &[("my::InverseRoot", when)]);
    scheduler("value = my::schedule()", &[("my::schedule()", when)]);
    scheduler(
        "my::InverseRoot, warmup_steps = plan.estimated_stepping_batches, interval = epoch",
        &[(
            "epoch",
            "`warmup_steps` counts optimizer steps, but the scheduler advances once per epoch: write `interval = step`",
        )],
    );
    scheduler(
        "value = my::schedule(), steps = 3, interval = step",
        &[("steps", "`scheduler` has no `steps`: it takes `interval`")],
    );
    scheduler(
        "StepLR, step_size = 5",
        &[("StepLR", "unknown scheduler `StepLR`: did you mean `step_lr`?")],
    );
}

#[test]
fn an_own_optimizer_takes_the_keys_of_its_fields() {
    optimizer(
        "#[optimizer(my::Signum, lr = 0.1, params = [\"head.*\"])] #[optimizer(sgd, lr = 0.1)]",
        &[],
    );
    optimizer("#[optimizer(Signum, lr = 0.1, group(params = [\"*.bias\"], lr = 0.2))]", &[]);
    optimizer("#[optimizer(value = my::optimizer(), params = [\"head.*\"])]", &[]);
    optimizer(
        "#[optimizer(Signum, lr = 0.1, lr = 0.2)]",
        &[("lr", "`lr` is given twice: keep one")],
    );
    optimizer("#[optimizer(Signum, 0.1)]", &[("0.1", "expected `key = value`, as in `lr = …`")]);
    optimizer("#[optimizer(Signum, lr)]", &[("lr", "`lr` needs a value: `lr = …`")]);
    optimizer(
        "#[optimizer(value = my::optimizer(), lr = 0.1)]",
        &[("lr", "`optimizer` has no `lr`: it takes `params`, `except`, `ndim`")],
    );
    optimizer(
        "#[optimizer(value = my::optimizer(), group(params = [\"*.bias\"], lr = 0.2))]",
        &[(
            "group(params = [\"*.bias\"], lr = 0.2)",
            "`group(…)` is not allowed after an optimizer that is given as a value: build its \
             groups with `ParamGroups`",
        )],
    );
}

#[test]
fn counts_of_steps_with_an_interval_of_epochs_are_refused() {
    let total = "total_steps = plan.estimated_stepping_batches";
    let text = "but the scheduler advances once per epoch";
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
fn only_one_of_several_optimizers_may_take_the_rest() {
    optimizer(
        "#[optimizer(sgd, lr = 0.1)] #[optimizer(sgd, lr = 0.2)]",
        &[(
            "optimizer",
            "two optimizers would train all parameters: select those of this optimizer, as in \
             `params = [\"head.*\"]`, or keep one of the two",
        )],
    );
    optimizer(
        "#[optimizer(sgd, lr = 0.1)] #[optimizer(sgd, lr = 0.2, params = [\"head.*\"])]",
        &[],
    );
    let below = "put the scheduler after its optimizer";
    let steps = "#[scheduler(step_lr, step_size = 5)]";
    optimizer(
        &format!("{steps} #[optimizer(sgd, lr = 1, params = [\"a\"])] #[optimizer(sgd, lr = 1)]"),
        &[("scheduler", below)],
    );
    optimizer(
        &format!(
            "#[optimizer(sgd, lr = 1, params = [\"a\"])] {steps} #[optimizer(sgd, lr = 1)] {steps}"
        ),
        &[],
    );
    optimizer(
        &format!("#[optimizer(sgd, lr = 1)] {steps} {steps}"),
        &[("scheduler", "`#[scheduler]` is given twice: keep one")],
    );
    optimizer(&format!("{steps} #[optimizer(sgd, lr = 1)]"), &[]);
    let params = |args: &str| format!("#[optimizer(sgd, lr = 1, {args})]");
    let list = "`params` takes a list of name patterns, as in `params = [\"head.*\"]`";
    optimizer(&params("params = \"head.*\""), &[("\"head.*\"", list)]);
    optimizer(&params("params = [head]"), &[("[head]", list)]);
    optimizer(&params("params = []"), &[("[]", list)]);
    optimizer(
        &params("params(\"head.*\")"),
        &[("params(\"head.*\")", "write it as a list: `params = [\"head.*\"]`")],
    );
    optimizer(
        &params("params = [\"a\"], params = [\"b\"]"),
        &[("params", "`params` is given twice: keep one")],
    );
}

#[test]
fn ndim_is_a_literal_number() {
    optimizer(
        "#[optimizer(muon, lr = 0.02, ndim = 2, except = [\"embedding.*\", \"head.*\"])] #[optimizer(adamw, lr = 1e-3)]",
        &[],
    );
    optimizer("#[optimizer(adamw, lr = 0.1, group(ndim = 1, weight_decay = 0.0))]", &[]);
    optimizer(
        "#[optimizer(muon, lr = 0.1, ndim = two)]",
        &[("two", "`ndim` takes a number of dimensions, as in `ndim = 2` for matrices")],
    );
    optimizer(
        "#[optimizer(muon, lr = 0.1, except = \"head.*\")]",
        &[("\"head.*\"", "`except` takes a list of name patterns, as in `except = [\"head.*\"]`")],
    );
    optimizer("#[optimizer(muon, lr = 0.1, nesterov = true, adjust_lr_fn = match_rms_adamw)]", &[]);
    optimizer(
        "#[optimizer(muon, lr = 0.1, adjust_lr_fn = \"original\")]",
        &[("\"original\"", "write it without quotes: `adjust_lr_fn = original`")],
    );
    optimizer(
        "#[optimizer(muon, lr = 0.1, ns_steps = -1)]",
        &[("-1", "`ns_steps` of `muon` takes a value of at least 0, not -1")],
    );
    optimizer("#[optimizer(adafactor, lr = 0.1, eps = (None, 1e-3), beta2_decay = -0.8)]", &[]);
    optimizer("#[optimizer(lamb, lr = 0.1, betas = (0.9, 0.99), weight_decay = 0.1)]", &[]);
}

#[test]
fn wrong_parameter_groups_are_refused() {
    let sgd = |args: &str| format!("#[optimizer(sgd, lr = 0.1, {args})]");
    optimizer(&sgd("group(params = [\"*.bias\", \"*.norm.*\"], weight_decay = 0.0)"), &[]);
    optimizer(
        &sgd("grup(params = [\"*.bias\"], lr = 1.0)"),
        &[(
            "grup(params = [\"*.bias\"], lr = 1.0)",
            "unknown argument `grup`: did you mean `group`?",
        )],
    );
    optimizer(
        &sgd("group(weight_decay = 0.0)"),
        &[(
            "group(weight_decay = 0.0)",
            "select the parameters of the group, as in `group(params = [\"*.bias\"], …)`",
        )],
    );
    optimizer(
        &sgd("group(params = [\"*.bias\"])"),
        &[(
            "group(params = [\"*.bias\"])",
            "give the options of the group, as in `weight_decay = 0.0`",
        )],
    );
    optimizer(
        &sgd("group(params = [\"*.bias\"], betas = (0.9, 0.9))"),
        &[(
            "betas",
            "`sgd` has no `betas`: it takes `lr`, `momentum`, `dampening`, `weight_decay`, \
             `nesterov`, `fused`, `params`, `except`, `ndim`",
        )],
    );
    optimizer(
        &sgd("group(params = [\"*.bias\"], lr = -1.0)"),
        &[("-1.0", "`lr` of `sgd` takes a value of at least 0, not -1.0")],
    );
    optimizer(
        &sgd("momentum = 0.9, group(params = [\"b\"], nesterov = true, momentum = 0.0)"),
        &[("nesterov", "`nesterov` needs a momentum: add `momentum = 0.9`")],
    );
    optimizer(&sgd("momentum = 0.9, group(params = [\"b\"], nesterov = true)"), &[]);
}

#[test]
fn a_monitoring_scheduler_takes_no_interval() {
    let plateau = |args: &str| format!("reduce_lr_on_plateau, {args}");
    scheduler(&plateau("monitor = val_loss, mode = min, threshold_mode = abs"), &[]);
    scheduler(
        "reduce_lr_on_plateau, patience = 3",
        &[("reduce_lr_on_plateau", "`reduce_lr_on_plateau` needs `monitor`: add `monitor = …`")],
    );
    scheduler(
        &plateau("monitor = \"val_loss\""),
        &[("\"val_loss\"", "write it without quotes: `monitor = val_loss`")],
    );
    scheduler(
        &plateau("monitor = 3"),
        &[("3", "`monitor` takes the name of a logged value, as in `monitor = val_loss`")],
    );
    scheduler(
        &plateau("monitor = val_loss, mode = maximum"),
        &[("maximum", "unknown mode `maximum`: did you mean `max`?")],
    );
    scheduler(
        &plateau("monitor = val_loss, interval = step"),
        &[(
            "step",
            "`reduce_lr_on_plateau` monitors a value that is logged at the end of an epoch, so \
             it cannot advance per step: remove `interval`",
        )],
    );
}

#[test]
fn an_optimizer_next_to_configure_optimizers_is_refused() {
    optimizer(
        "#[configure_optimizers(Self::mine)] #[optimizer(sgd, lr = 0.1)]",
        &[(
            "optimizer",
            "`#[optimizer]` has no effect, because `#[configure_optimizers]` replaces it: keep one of the two",
        )],
    );
    optimizer("#[configure_optimizers(Self::mine)]", &[]);
}
