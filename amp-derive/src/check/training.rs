//! Rules about the loss, the metrics and the steps they are part of.

use proc_macro2::Ident;
use syn::{BinOp, Expr, ExprClosure, ExprLit, ExprPath, Lit, Stmt, ext::IdentExt};

use super::{
    Own, has_no_effect, keys, logging,
    optimizer::{self, begins_with_a_name},
    own_function,
};
use crate::{
    check::only,
    diag::Diagnostics,
    model::{Lightning, Loss, Metric, MetricValue, OwnHook, Pair, Step},
    spec::{Arg, Attr, Spec, has, named, word},
    symbol,
    table::{self, HOOKS, Hook, LOSSES, METRICS},
};

/// A half of training with a step of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Train,
    Val,
}

impl Stage {
    /// As users write it, and what logged names begin with.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }

    /// What `value` is logged as.
    pub(super) fn name_of(self, value: &str) -> String {
        format!("{}_{value}", self.word())
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Train => Self::Val,
            Self::Val => Self::Train,
        }
    }

    pub(super) fn step(self) -> &'static str {
        match self {
            Self::Train => symbol::TRAINING_STEP,
            Self::Val => symbol::VALIDATION_STEP,
        }
    }
}

const STAGES: &[(&str, Stage)] = &[("train", Stage::Train), ("val", Stage::Val)];

/// A metric as declared, for one or both stages.
pub(super) struct Declared {
    pub(super) name: String,
    stage: Option<Stage>,
    value: MetricValue,
}

impl Declared {
    pub(super) fn is_for(&self, stage: Stage) -> bool {
        self.stage.is_none_or(|only| only == stage)
    }
}

/// What `LightningModule` has beyond `Module`; `None` if something was refused.
pub(super) fn check(spec: &Spec, diag: &Diagnostics) -> Option<Lightning> {
    let train = own_function(
        spec,
        symbol::TRAINING_STEP,
        "fn(&mut Self, &Batch, &mut Step<'_>) -> Result<Tensor>",
        diag,
    );
    let val = own_function(
        spec,
        symbol::VALIDATION_STEP,
        "fn(&mut Self, &Batch, &mut Step<'_>) -> Result<()>",
        diag,
    );
    let manual = own_function(
        spec,
        symbol::MANUAL_STEP,
        "fn(&mut Self, &Batch, &mut ManualStep<'_>) -> Result<()>",
        diag,
    );
    let manual = match manual {
        Own::Generated => None,
        Own::Refused => return None,
        Own::Function { path, .. } => Some(path),
    };
    if manual.is_some() {
        let because = "the model optimizes manually: put it into the function of `manual_step`";
        has_no_effect(
            spec,
            &[symbol::TRAINING_STEP, symbol::ON_BEFORE_OPTIMIZER_STEP],
            because,
            diag,
        );
        if !has(&spec.attrs, symbol::LOSS) && val.is_generated() {
            return manual_alone(spec, manual?, diag);
        }
    }
    let (loss, (metrics, complete)) = if train.is_generated() || val.is_generated() {
        let loss = loss(spec, diag);
        (loss, metrics(spec, [&train, &val], diag))
    } else {
        let because = "both steps are yours: compute and log there";
        has_no_effect(spec, &[symbol::LOSS, symbol::METRIC, symbol::LOG], because, diag);
        (None, (Vec::new(), true))
    };
    let optimizers = optimizer::check(spec, diag);
    let hooks = hooks(spec, diag);
    let names = logging::Names::new(&metrics, complete, [&train, &val]);
    let logs = logging::check(spec, &names, diag);
    let step = |stage: Stage, own: Own| match own {
        Own::Refused => None,
        Own::Function { path, marked } => Some(Step::Function { path, captured: marked }),
        Own::Generated => {
            let logs = logs.as_ref()?;
            let of_stage = metrics.iter().filter(|metric| metric.is_for(stage));
            Some(Step::Generated {
                loss: loss.clone()?,
                log: logs.options(stage, symbol::LOSS),
                metrics: of_stage
                    .map(|metric| Metric {
                        name: stage.name_of(&metric.name),
                        value: metric.value.clone(),
                        log: logs.options(stage, &metric.name),
                    })
                    .collect(),
            })
        }
    };
    complete.then_some(())?;
    let training = match manual {
        Some(path) => Step::Manual(path),
        None => step(Stage::Train, train)?,
    };
    Some(Lightning {
        training,
        validation: Some(step(Stage::Val, val)?),
        optimizers: optimizers?,
        hooks: hooks?,
    })
}

/// A model without a loss, whose updates and values are its own function's affair.
fn manual_alone(spec: &Spec, path: ExprPath, diag: &Diagnostics) -> Option<Lightning> {
    let because = "the model has no generated step: log in the function of `manual_step`";
    has_no_effect(spec, &[symbol::METRIC, symbol::LOG], because, diag);
    let (optimizers, hooks) = (optimizer::check(spec, diag), hooks(spec, diag));
    Some(Lightning {
        training: Step::Manual(path),
        validation: None,
        optimizers: optimizers?,
        hooks: hooks?,
    })
}

/// The functions given for hooks, or `None` if one was refused.
fn hooks(spec: &Spec, diag: &Diagnostics) -> Option<Vec<OwnHook>> {
    // Collected in two steps, so that every hook is looked at.
    let found: Vec<(&'static Hook, Own)> = HOOKS
        .iter()
        .map(|hook| (hook, own_function(spec, hook.name, hook.signature, diag)))
        .collect();
    let mut hooks = Vec::new();
    for (hook, own) in found {
        match own {
            Own::Generated => {}
            Own::Function { path, marked } => hooks.push(OwnHook { hook, path, late: marked }),
            Own::Refused => return None,
        }
    }
    Some(hooks)
}

fn loss(spec: &Spec, diag: &Diagnostics) -> Option<Loss> {
    let attr = has_a_loss(spec, diag)?;
    let args = attr.args.as_deref()?;
    if let Some(first) = args.first()
        && let Arg::Pair(key, value) = Arg::from(first)
        && key == symbol::WITH
    {
        has_no_more(&args[1..], "`#[loss(with = …)]` takes nothing else", diag)?;
        return match value {
            Expr::Closure(closure) => {
                takes_output_and_target(closure, diag)?;
                is_not_divided_for_accumulation(closure, diag)?;
                Some(Loss::Closure(closure.clone()))
            }
            function => Some(Loss::Function(function.clone())),
        };
    }
    runs_under_autocast(args, diag)?;
    let (name, rest) = begins_with_a_name(attr, symbol::LOSS, LOSSES, diag)?;
    let more = format!(
        "`{name}` takes no options: for a loss of your own write \
         `#[loss(with = |output, target| …)]`"
    );
    has_no_more(rest, &more, diag)?;
    Some(Loss::Known(name.clone()))
}

/// Rule: a generated step has a loss.
fn has_a_loss<'a>(spec: &'a Spec, diag: &Diagnostics) -> Option<&'a Attr> {
    let found = only(&spec.attrs, symbol::LOSS, diag);
    if found.is_none() {
        diag.error(
            &spec.ident,
            format!("`{}` has no loss: add one, as in `#[loss(cross_entropy)]`", spec.ident),
        );
    }
    found
}

fn has_no_more(rest: &[Expr], message: &str, diag: &Diagnostics) -> Option<()> {
    let Some(first) = rest.first() else {
        return Some(());
    };
    diag.error(first, message);
    None
}

/// Rule: binary cross entropy of probabilities is refused, because CUDA autocast refuses it and
/// every model must run in every precision: its logarithm overflows in f16.
fn runs_under_autocast(args: &[Expr], diag: &Diagnostics) -> Option<()> {
    let name = args.first().and_then(word);
    if let Some(name) = name.filter(|name| *name == "binary_cross_entropy") {
        diag.error(
            name,
            "cuda autocast refuses `binary_cross_entropy`: use `binary_cross_entropy_with_logits` \
             and take the sigmoid off the model's end",
        );
        return None;
    }
    Some(())
}

/// Rule: a loss is a function of the output and the target.
fn takes_output_and_target(closure: &ExprClosure, diag: &Diagnostics) -> Option<()> {
    if closure.inputs.len() != 2 {
        diag.error(closure, "a loss has two arguments: `|output, target| …`");
        return None;
    }
    Some(())
}

/// Rule: the trainer divides by the accumulation window already; a loss that does so too makes
/// gradients N times too small.
fn is_not_divided_for_accumulation(closure: &ExprClosure, diag: &Diagnostics) -> Option<()> {
    let Some(divisor) = divisor(&closure.body) else {
        return Some(());
    };
    let text = quote::ToTokens::to_token_stream(divisor).to_string();
    if text.to_lowercase().contains("accum") {
        diag.error(
            divisor,
            "the trainer divides the loss by the accumulation window: take this division away",
        );
        return None;
    }
    Some(())
}

/// The divisor of the quotient that `expr` returns.
fn divisor(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Binary(binary) if matches!(binary.op, BinOp::Div(_)) => Some(&binary.right),
        Expr::Call(call) => call.args.first().and_then(divisor),
        Expr::Paren(paren) => divisor(&paren.expr),
        Expr::Block(block) => match block.block.stmts.last()? {
            Stmt::Expr(last, None) => divisor(last),
            _ => None,
        },
        _ => None,
    }
}

/// The metrics, each with a name of its own, and whether none was refused.
fn metrics(spec: &Spec, steps: [&Own; 2], diag: &Diagnostics) -> (Vec<Declared>, bool) {
    let mut declared: Vec<Declared> = Vec::new();
    let mut complete = true;
    for attr in named(&spec.attrs, symbol::METRIC) {
        let Some((metric, at)) = metric(spec, attr, diag) else {
            complete = false;
            continue;
        };
        complete &= name_is_its_own(&metric, &at, &declared, diag);
        complete &= stage_is_generated(&metric, &at, steps, diag);
        declared.push(metric);
    }
    (declared, complete)
}

fn metric(spec: &Spec, attr: &Attr, diag: &Diagnostics) -> Option<(Declared, Ident)> {
    let args = attr.args.as_deref()?;
    if let Some(first) = args.first()
        && let Arg::Pair(with, _) = Arg::from(first)
        && with == symbol::WITH
    {
        let known = [symbol::WITH, symbol::NAME, symbol::STAGE];
        let mut pairs = keys::pairs(symbol::METRIC, args, &known, diag)?;
        let value = keys::take(&mut pairs, symbol::WITH)?.value;
        let (name, stage) = name_and_stage(&mut pairs, diag)?;
        let name = own_metric_is_named(name, with, diag)?;
        return Some((Declared { name, stage, value: MetricValue::Rust(value) }, with.clone()));
    }
    let (at, args) = begins_with_a_name(attr, symbol::METRIC, &table::names(METRICS), diag)?;
    let row = table::find(METRICS, &at.to_string())?;
    let mut known: Vec<&str> = row.keys().map(|key| key.name).collect();
    known.extend([symbol::NAME, symbol::STAGE]);
    let mut pairs = keys::pairs(row.name, args, &known, diag)?;
    let choices = name_and_stage(&mut pairs, diag);
    keys::fit(at, row, &pairs, diag)?;
    keys::fields_are_read_from_self(spec, &pairs, diag)?;
    let (name, stage) = choices?;
    let name = name.unwrap_or_else(|| row.name.to_owned());
    let value = MetricValue::Known { row, at: at.clone(), keys: pairs };
    Some((Declared { name, stage, value }, at.clone()))
}

fn name_and_stage(
    pairs: &mut Vec<Pair>,
    diag: &Diagnostics,
) -> Option<(Option<String>, Option<Stage>)> {
    let name = match keys::take(pairs, symbol::NAME) {
        None => Some(None),
        Some(pair) => name_can_be_logged(&pair, diag).map(Some),
    };
    let stage = match keys::take(pairs, symbol::STAGE) {
        None => Some(None),
        Some(pair) => keys::choice(&pair, STAGES, diag).map(Some),
    };
    Some((name?, stage?))
}

/// Rule: a metric's name is one that `#[log(train_NAME)]` can name.
fn name_can_be_logged(pair: &Pair, diag: &Diagnostics) -> Option<String> {
    if let Some(name) = word(&pair.value) {
        return Some(name.unraw().to_string());
    }
    let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value else {
        diag.error(&pair.value, "a metric's name is a word, as in `name = acc`");
        return None;
    };
    let name = text.value();
    // Behind a prefix, so that a digit in front does no harm.
    let fits = !name.is_empty() && syn::parse_str::<Ident>(&format!("train_{name}")).is_ok();
    if !fits {
        diag.error(text, "a metric's name has letters, digits and `_` only, as in `name = acc`");
    }
    fits.then_some(name)
}

/// Rule: a metric of one's own has a name to be logged under.
fn own_metric_is_named(name: Option<String>, at: &Ident, diag: &Diagnostics) -> Option<String> {
    if name.is_none() {
        diag.error(at, "a metric of your own needs a name: add `name = …`");
    }
    name
}

/// Rule: two values are not logged under one name.
fn name_is_its_own(metric: &Declared, at: &Ident, before: &[Declared], diag: &Diagnostics) -> bool {
    let name = &metric.name;
    let meets = |other: &&Declared| {
        let both = |stage| metric.is_for(stage) && other.is_for(stage);
        other.name == *name && (both(Stage::Train) || both(Stage::Val))
    };
    if name == symbol::LOSS {
        diag.error(at, "`loss` is logged already: give the metric another name");
        return false;
    }
    if before.iter().any(|other| meets(&other)) {
        diag.error(
            at,
            format!(
                "two metrics are called `{name}`: give this one a name, as in `name = {name}_2`"
            ),
        );
        return false;
    }
    true
}

/// Rule: a metric of one stage needs that stage's generated step.
fn stage_is_generated(metric: &Declared, at: &Ident, steps: [&Own; 2], diag: &Diagnostics) -> bool {
    let [train, val] = steps;
    let own = match metric.stage {
        Some(stage @ Stage::Train) if !train.is_generated() => stage,
        Some(stage @ Stage::Val) if !val.is_generated() => stage,
        _ => return true,
    };
    let message = format!("`#[metric]` has no effect: `{}` is yours, log it there", own.step());
    diag.error(at, message);
    false
}
