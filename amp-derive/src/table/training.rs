//! The table of optimizers and the table of schedulers.

use super::{
    Entry, Interval, Key, Range, Scheduler, any, choice, fraction, not_negative, positive,
};
use crate::symbol;

const ADAM_OPTIONS: &[Key] =
    &[any("betas"), not_negative("eps"), not_negative("weight_decay"), any("fused")];

const RATE: &[Key] = &[not_negative("lr")];

const fn optimizer(name: &'static str, ty: &'static str, options: &'static [Key]) -> Entry {
    Entry { name, ty, required: RATE, options }
}

pub(crate) const OPTIMIZERS: &[Entry] = &[
    optimizer("adamw", "AdamW", ADAM_OPTIONS),
    optimizer("adam", "Adam", ADAM_OPTIONS),
    optimizer(
        "sgd",
        "Sgd",
        &[
            not_negative("momentum"),
            any("dampening"),
            not_negative("weight_decay"),
            any("nesterov"),
            any("fused"),
        ],
    ),
    optimizer(
        "rmsprop",
        "RmsProp",
        &[
            fraction("alpha"),
            not_negative("eps"),
            not_negative("weight_decay"),
            not_negative("momentum"),
            any("centered"),
        ],
    ),
    optimizer("lion", "Lion", &[any("betas"), not_negative("weight_decay")]),
    optimizer(
        "muon",
        "Muon",
        &[
            not_negative("weight_decay"),
            not_negative("momentum"),
            any("nesterov"),
            any("ns_coefficients"),
            not_negative("eps"),
            not_negative("ns_steps"),
            choice(
                "adjust_lr_fn",
                &[
                    ("original", "__amp::optim::AdjustLr::Original"),
                    ("match_rms_adamw", "__amp::optim::AdjustLr::MatchRmsAdamw"),
                ],
            ),
        ],
    ),
    optimizer(
        "adafactor",
        "Adafactor",
        &[any("beta2_decay"), any("eps"), positive("d"), not_negative("weight_decay")],
    ),
    optimizer("lamb", "Lamb", &[any("betas"), not_negative("eps"), not_negative("weight_decay")]),
];

pub(crate) const SCHEDULERS: &[Scheduler] = &[
    by_epoch(
        "cosine_annealing",
        "CosineAnnealing",
        &[positive("t_max")],
        &[not_negative("eta_min")],
    ),
    by_epoch(
        "cosine_annealing_warm_restarts",
        "CosineAnnealingWarmRestarts",
        &[positive("t_0")],
        &[positive("t_mult"), not_negative("eta_min")],
    ),
    by_step(
        "one_cycle",
        "OneCycle",
        &[positive("max_lr"), positive("total_steps")],
        &[
            fraction("pct_start"),
            positive("div_factor"),
            positive("final_div_factor"),
            fraction("base_momentum"),
            fraction("max_momentum"),
        ],
    ),
    by_epoch("step_lr", "StepLr", &[positive("step_size")], &[not_negative("gamma")]),
    by_epoch(
        "multi_step_lr",
        "MultiStepLr",
        &[Key { name: "milestones", range: Range::Rising }],
        &[not_negative("gamma")],
    ),
    by_epoch("exponential_lr", "ExponentialLr", &[not_negative("gamma")], &[]),
    by_epoch(
        "linear_lr",
        "LinearLr",
        &[positive("total_iters")],
        &[positive("start_factor"), fraction("end_factor")],
    ),
    by_epoch("constant_lr", "ConstantLr", &[positive("total_iters")], &[positive("factor")]),
    by_epoch("polynomial_lr", "PolynomialLr", &[positive("total_iters")], &[not_negative("power")]),
    by_epoch("lambda_lr", "LambdaLr", &[any("lr_lambda")], &[]),
    by_step(
        "warmup_cosine",
        "WarmupCosine",
        &[not_negative("warmup_steps"), positive("total_steps")],
        &[],
    ),
    by_step(
        "wsd",
        "Wsd",
        &[not_negative("warmup_steps"), not_negative("decay_steps"), positive("total_steps")],
        &[
            choice(
                "decay_type",
                &[
                    ("linear", "__amp::optim::Decay::Linear"),
                    ("cosine", "__amp::optim::Decay::Cosine"),
                    ("one_minus_sqrt", "__amp::optim::Decay::OneMinusSqrt"),
                ],
            ),
            fraction("min_lr_ratio"),
        ],
    ),
    by_epoch(
        "reduce_lr_on_plateau",
        "ReduceLrOnPlateau",
        &[Key { name: symbol::MONITOR, range: Range::Logged }],
        &[
            choice("mode", &[("min", "__amp::Mode::Min"), ("max", "__amp::Mode::Max")]),
            fraction("factor"),
            not_negative("patience"),
            not_negative("threshold"),
            choice(
                "threshold_mode",
                &[
                    ("rel", "__amp::optim::ThresholdMode::Rel"),
                    ("abs", "__amp::optim::ThresholdMode::Abs"),
                ],
            ),
            not_negative("cooldown"),
            not_negative("min_lr"),
            not_negative("eps"),
        ],
    ),
];

const fn by_epoch(
    name: &'static str,
    ty: &'static str,
    required: &'static [Key],
    options: &'static [Key],
) -> Scheduler {
    Scheduler { entry: Entry { name, ty, required, options }, interval: Interval::Epoch }
}

const fn by_step(
    name: &'static str,
    ty: &'static str,
    required: &'static [Key],
    options: &'static [Key],
) -> Scheduler {
    Scheduler { entry: Entry { name, ty, required, options }, interval: Interval::Step }
}
