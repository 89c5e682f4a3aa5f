//! `#[optimizer]` and `#[scheduler]`.

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
    optimizer("#[optimizer(sgd, lr = 0.1, lr = 0.2)]", &[("lr", "`lr` is given twice: keep one")]);
    optimizer(
        "#[optimizer(sgd, lr = -0.1)]",
        &[("-0.1", "`lr` of `sgd` takes a value of at least 0, not -0.1")],
    );
}

#[test]
fn fields_without_self() {
    let source = |lr| {
        format!(
            "#[loss(mse_loss)] #[optimizer(sgd, lr = {lr})]
            struct Net {{ #[hparam] rate: f64, {LAYER} }}"
        )
    };
    refuses(
        &source("rate * 2.0"),
        Derive::LightningModule,
        &[("rate", "`rate` is a field here: write `self.rate`")],
    );
    for lr in ["self.rate", "rate(self)", "{ let rate = 1.0; rate }"] {
        refuses(&source(lr), Derive::LightningModule, &[]);
    }
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
    scheduler("step_lr, step_size = 5, interval = 3", &[("3", "`interval` is `step` or `epoch`")]);
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
